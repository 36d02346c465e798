import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_module, covers
from hypothesis import given
from hypothesis import strategies as st
from oracles.losses import multi_label_soft_margin
from strategies import generator, random_labels, seeds, small
from torch.nn import functional as F

from wsss_blocks.losses import MultiLabelSoftMarginLoss, multi_label_soft_margin_loss


def problem(seed=0, batch=3, classes=5, dtype=torch.float64):
    g = generator(seed)
    logits = 3 * torch.randn(batch, classes, generator=g, dtype=torch.float64)
    return logits.to(dtype), random_labels(batch, classes, g)


@covers("multi_label_soft_margin_loss", "oracle")
@given(seeds, small, st.integers(1, 6))
def test_equals_the_formula(seed, batch, classes):
    logits, labels = problem(seed, batch, classes)
    expected = multi_label_soft_margin(logits, labels)
    assert_close(multi_label_soft_margin_loss(logits, labels, reduction="none"), expected)
    assert_close(multi_label_soft_margin_loss(logits, labels, reduction="sum"), expected.sum())
    assert_close(multi_label_soft_margin_loss(logits, labels), expected.mean())


@covers("multi_label_soft_margin_loss", "properties")
def test_is_torchs_loss_and_symmetric_in_the_classes():
    logits, labels = problem()
    loss = multi_label_soft_margin_loss(logits, labels)
    assert_close(loss, F.multilabel_soft_margin_loss(logits, labels.double()))
    order = torch.tensor([3, 0, 4, 2, 1])
    assert_close(multi_label_soft_margin_loss(logits[:, order], labels[:, order]), loss)
    assert_close(multi_label_soft_margin_loss(-logits, 1 - labels), loss)
    assert multi_label_soft_margin_loss(40 * (labels - 0.5), labels) < 1e-8


@covers("multi_label_soft_margin_loss", "gradcheck")
def test_gradient():
    logits, labels = problem()
    assert_gradcheck(lambda x: multi_label_soft_margin_loss(x, labels), logits.requires_grad_())


@covers("multi_label_soft_margin_loss", "module", "compile")
def test_module_and_compile():
    logits, labels = problem()
    for reduction in ("mean", "sum", "none"):
        expected = multi_label_soft_margin_loss(logits, labels, reduction=reduction)
        assert_module(MultiLabelSoftMarginLoss(reduction=reduction), expected, logits, labels)
    assert_compiles(multi_label_soft_margin_loss, logits, labels)


@covers("multi_label_soft_margin_loss", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    logits, labels = problem()
    loss = multi_label_soft_margin_loss(logits.to(dtype), labels)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(loss, multi_label_soft_margin_loss(logits, labels), dtype=dtype)
    for integer in (labels.long(), labels.bool()):
        assert_close(multi_label_soft_margin_loss(logits.to(dtype), integer), loss)


@covers("multi_label_soft_margin_loss", "degenerate")
def test_degenerate():
    # a row without classes is evidence that each class is absent
    logits = torch.zeros(1, 4, requires_grad=True)
    loss = multi_label_soft_margin_loss(logits, torch.zeros(1, 4))
    assert_close(loss, torch.tensor(2.0).log())
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient > 0).all()
    huge = torch.tensor([[1e30, -1e30]])
    assert multi_label_soft_margin_loss(huge, torch.tensor([[1.0, 0.0]])) == 0
    assert multi_label_soft_margin_loss(torch.zeros(1, 1), torch.ones(1, 1)).isfinite()
    assert multi_label_soft_margin_loss(torch.zeros(0, 4), torch.zeros(0, 4)) == 0


@covers("multi_label_soft_margin_loss", "errors")
def test_errors():
    logits, labels = problem()
    with pytest.raises(ValueError, match=r"logits must have shape \(B, K\), got \(3, 5, 1\)"):
        multi_label_soft_margin_loss(logits[..., None], labels)
    with pytest.raises(ValueError, match="background column too many"):
        multi_label_soft_margin_loss(logits, F.pad(labels, (1, 0)))
    with pytest.raises(ValueError, match=r"labels must be multi-hot .* from 0 to 2"):
        multi_label_soft_margin_loss(logits, 2.0 * torch.eye(3, 5))
    with pytest.raises(ValueError, match=r"labels must be on cpu, got meta"):
        multi_label_soft_margin_loss(logits, labels.to("meta"))
    with pytest.raises(TypeError, match=r"logits must be a floating-point tensor, got torch.int64"):
        multi_label_soft_margin_loss(logits.long(), labels)
    for call in (
        MultiLabelSoftMarginLoss,
        lambda **k: multi_label_soft_margin_loss(*problem(), **k),
    ):
        with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', 'none'"):
            call(reduction="max")
