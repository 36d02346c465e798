import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, covers
from hypothesis import given
from hypothesis import strategies as st
from oracles import gradient as oracle
from strategies import generator, random_labels, seeds, small

from wsss_blocks.cam import present_softmax_scores


def problem(seed=0, batch=2, classes=4, words=3):
    g = generator(seed)
    logits = 3 * torch.randn(batch, classes, generator=g, dtype=torch.float64)
    background = 3 * torch.randn(batch, words, generator=g, dtype=torch.float64)
    return logits, random_labels(batch, classes, g).double(), background


@covers("present_softmax_scores", "oracle")
@given(seeds, small, st.integers(1, 5), st.integers(0, 3))
def test_oracle(seed, batch, classes, words):
    logits, labels, background = problem(seed, batch, classes, max(words, 1))
    background = background if words else None
    found = present_softmax_scores(logits, labels, background=background)
    assert_close(found, oracle.present_softmax_scores(logits, labels, background))


@covers("present_softmax_scores", "properties")
def test_only_what_is_present_competes():
    logits, labels, background = problem(1, batch=3)
    labels[0] = torch.tensor([1, 0, 1, 0])
    found = present_softmax_scores(logits, labels, background=background)
    louder = logits + 9 * (1 - labels)
    assert torch.equal(present_softmax_scores(louder, labels, background=background), found)
    alone = present_softmax_scores(logits, labels)
    assert_close(alone.sum(1), (labels.sum(1) > 0).double())
    assert (alone >= found).all()
    shifted = present_softmax_scores(logits + 5, labels, background=background + 5)
    assert_close(shifted, found)


@covers("present_softmax_scores", "gradcheck")
def test_gradcheck():
    logits, labels, background = problem(2)
    labels[0], labels[1] = torch.tensor([1, 0, 1, 1]), 0

    def fn(x, b):
        return present_softmax_scores(x, labels, background=b)

    inputs = logits.requires_grad_(), background.requires_grad_()
    assert_gradcheck(fn, *inputs)
    assert torch.autograd.gradgradcheck(fn, inputs)


@covers("present_softmax_scores", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    logits, labels, background = problem(3)
    rough = logits.to(dtype), labels.to(dtype), background.to(dtype)
    found = present_softmax_scores(*rough[:2], background=rough[2])
    assert found.dtype == dtype
    exact = present_softmax_scores(rough[0].double(), labels, background=rough[2].double())
    assert_close(found, exact)
    with torch.autocast("cpu", torch.bfloat16):
        again = present_softmax_scores(*rough[:2], background=rough[2])
    assert torch.equal(again, found)


@covers("present_softmax_scores", "compile")
def test_compile():
    assert_compiles(present_softmax_scores, *problem(4)[:2])
    assert_compiles(lambda *x: present_softmax_scores(*x[:2], background=x[2]), *problem(5))


@covers("present_softmax_scores", "errors")
def test_errors():
    logits, labels, background = problem(6)
    with pytest.raises(ValueError, match=r"logits must have shape \(B, K\), got \(4,\)"):
        present_softmax_scores(logits[0], labels)
    with pytest.raises(ValueError, match=r"labels must have shape \(B, K\) with B=2, K=4"):
        present_softmax_scores(logits, labels[:1])
    with pytest.raises(ValueError, match=r"background must have shape \(B, M\) with B=2, got \(1"):
        present_softmax_scores(logits, labels, background=background[:1])
    with pytest.raises(ValueError, match="background must be on the device of logits"):
        present_softmax_scores(logits, labels, background=background.to("meta"))
    with pytest.raises(ValueError, match="logits must be finite"):
        present_softmax_scores(logits / 0, labels)
    with pytest.raises(ValueError, match="background must be finite"):
        present_softmax_scores(logits, labels, background=background / 0)
    with pytest.raises(TypeError, match="logits must be a floating-point tensor"):
        present_softmax_scores(logits.long(), labels)
    with pytest.raises(TypeError, match="background must be a floating-point tensor"):
        present_softmax_scores(logits, labels, background=background.long())


@covers("present_softmax_scores", "degenerate")
def test_degenerate():
    logits, labels = torch.tensor([[4.0], [-2.0]], requires_grad=True), torch.tensor([[1], [0]])
    found = present_softmax_scores(logits, labels)
    assert found.tolist() == [[1.0], [0.0]]  # one class and no rival: constant
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient.tolist() == [[0.0], [0.0]]
    assert present_softmax_scores(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0, 3)
    huge = torch.tensor([[1e30, -1e30]])
    assert present_softmax_scores(huge, torch.ones(1, 2)).tolist() == [[1.0, 0.0]]
