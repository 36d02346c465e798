import math
from pathlib import Path

import pytest
import torch
from contract import (
    assert_close,
    assert_compiles,
    assert_gradcheck,
    assert_module,
    assert_same,
    covers,
)
from hypothesis import given
from hypothesis import strategies as st
from oracles import image_text as oracle
from oracles.cti import nested
from strategies import generator, seeds
from two_ranks import run_two_ranks

from wsss_blocks.losses import ImageTextContrastiveLoss, image_text_contrastive_loss


def problem(seed=0, batch=4, dim=5):
    g = generator(seed)
    image, text = torch.randn(2, batch, dim, generator=g, dtype=torch.float64)
    return image, text, torch.randint(0, 2, (batch,), generator=g)


@covers("image_text_contrastive_loss", "oracle")
@given(seeds, st.integers(1, 6), st.integers(1, 4), st.floats(0.1, 30), st.booleans())
def test_oracle(seed, batch, dim, scale, grouped):
    image, text, groups = problem(seed, batch, dim)
    expected = oracle.image_text_contrastive(
        image.tolist(), text.tolist(), scale, groups.tolist() if grouped else None
    )
    found = image_text_contrastive_loss(image, text, scale, positives=groups if grouped else None)
    assert_close(found, expected)


@covers("image_text_contrastive_loss", "oracle")
@pytest.mark.parametrize("grouped", [False, True])
def test_gradients_equal_those_of_the_loops(grouped):
    image, text, groups = problem(1)
    scale = torch.tensor(7.0, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (image, text, scale)]
    loss = image_text_contrastive_loss(*inputs, positives=groups if grouped else None)
    loops = oracle.image_text_contrastive(
        nested(image), nested(text), scale, groups.tolist() if grouped else None
    )
    assert_close(loss, loops)
    found, expected = torch.autograd.grad(loss, inputs), torch.autograd.grad(loops, inputs)
    for a, b in zip(found, expected, strict=True):
        assert b.abs().max() > 1e-3
        assert_close(a, b)


@covers("image_text_contrastive_loss", "oracle")
def test_equals_that_of_open_clip():
    clip = pytest.importorskip("open_clip.loss").ClipLoss()
    image, text, _ = problem(2, batch=9, dim=16)
    scale = torch.tensor(1 / 0.07, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (image, text, scale)]
    unit = [torch.nn.functional.normalize(x, dim=1) for x in (image, text)]
    loss, theirs = image_text_contrastive_loss(*inputs), clip(*unit, scale)
    assert_close(loss, theirs)
    found, expected = torch.autograd.grad(loss, inputs), torch.autograd.grad(theirs, inputs)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


@covers("image_text_contrastive_loss", "oracle", "properties")
def test_known_values_and_symmetries():
    same = torch.ones(6, 3, dtype=torch.float64)
    assert_close(image_text_contrastive_loss(same, same, 20.0), math.log(6))
    apart = torch.eye(3, dtype=torch.float64)
    expected = math.log(1 + 2 * math.exp(-4))
    assert_close(image_text_contrastive_loss(apart, apart, 4.0), expected)
    image, text, groups = problem(3)
    loss = image_text_contrastive_loss(image, text, 5.0, positives=groups)
    assert_close(image_text_contrastive_loss(text, image, 5.0, positives=groups), loss)
    assert_close(image_text_contrastive_loss(3 * image, text / 7, 5.0, positives=groups), loss)
    order = torch.randperm(4, generator=generator(4))
    shuffled = image_text_contrastive_loss(
        image[order], text[order], 5.0, positives=groups[order] + 1000
    )
    assert_close(shuffled, loss)
    alone = image_text_contrastive_loss(image, text, 5.0, positives=torch.arange(4).flip(0))
    assert_close(alone, image_text_contrastive_loss(image, text, 5.0))


@covers("image_text_contrastive_loss", "properties")
def test_a_second_caption_of_an_image_is_no_negative():
    image = torch.eye(3, dtype=torch.float64)[[0, 0, 1]]  # pairs 0 and 1 show the same
    groups = torch.tensor([5, 5, 6])
    for scale in (10.0, 100.0):
        plain = image_text_contrastive_loss(image, image, scale)
        grouped = image_text_contrastive_loss(image, image, scale, positives=groups)
        assert_close(plain, 2 / 3 * math.log(2), dtype=torch.float32)
        assert_close(grouped, plain)  # at their best both split the mass evenly
    text = image.clone().requires_grad_()
    loss = image_text_contrastive_loss(image, text, 10.0, positives=groups)
    assert torch.autograd.grad(loss, text)[0].abs().max() < 1e-3  # nothing to push apart
    other = torch.tensor([[1.0, 0.5, 0.0], [1.0, -0.5, 0.0], [0.0, 0.0, 1.0]]).double()
    pushed = image_text_contrastive_loss(other, other, 10.0)
    assert image_text_contrastive_loss(other, other, 10.0, positives=groups) > pushed


@covers("image_text_contrastive_loss", "gradcheck")
@pytest.mark.parametrize("grouped", [False, True])
def test_gradient(grouped):
    image, text, groups = problem(5)
    scale = torch.tensor(3.0, dtype=torch.float64)
    options = {"positives": groups if grouped else None}
    assert_gradcheck(
        lambda *x: image_text_contrastive_loss(*x, **options),
        *(x.requires_grad_() for x in (image, text, scale)),
    )


@covers("image_text_contrastive_loss", "module", "compile")
def test_module_and_compile():
    image, text, groups = problem(6)
    module = ImageTextContrastiveLoss()
    assert "gather_distributed=False" in repr(module)
    for options in ({}, {"positives": groups}):
        expected = image_text_contrastive_loss(image, text, 5.0, **options)
        assert_module(module, expected, image, text, 5.0, **options)
        assert_same(
            ImageTextContrastiveLoss(gather_distributed=True)(image, text, 5.0, **options), expected
        )
    assert_compiles(image_text_contrastive_loss, image, text, torch.tensor(5.0))
    assert_compiles(
        lambda *x: image_text_contrastive_loss(*x[:3], positives=x[3]), image, text, 5.0, groups
    )


@covers("image_text_contrastive_loss", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grouped", [False, True])
def test_dtypes(dtype, grouped):
    image, text, groups = problem(7)
    options = {"positives": groups.to(torch.int32) if grouped else None}
    image, text = image.to(dtype).requires_grad_(), text.to(dtype).requires_grad_()
    scale = torch.tensor(100.0, dtype=dtype, requires_grad=True)
    expected = image_text_contrastive_loss(image.double(), text.double(), 100.0, **options)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = image_text_contrastive_loss(image, text, scale, **options)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(loss, expected, dtype=torch.float32)  # also under autocast
        for grad in torch.autograd.grad(loss, (image, text, scale)):
            assert grad.isfinite().all()
    mixed = image_text_contrastive_loss(image, text.float(), scale.float(), **options)
    assert mixed.dtype == loss.dtype


@covers("image_text_contrastive_loss", "degenerate")
def test_degenerate():
    image, text, _ = problem(8)
    image.requires_grad_()
    for options in ({}, {"positives": torch.tensor([-1])}):
        loss = image_text_contrastive_loss(image[:1], text[:1], 100.0, **options)
        assert loss == 0  # no other pair
        assert torch.autograd.grad(loss, image)[0].abs().max() == 0
    one = torch.zeros(4, dtype=torch.int64)
    alike = image_text_contrastive_loss(image, text, 3.0, positives=one)
    assert alike >= math.log(4) - 1e-9  # all fit all: best where all logits are equal
    zero = torch.zeros(3, 4, requires_grad=True)
    loss = image_text_contrastive_loss(zero, zero, 1e4)
    assert_close(loss, math.log(3))
    assert torch.autograd.grad(loss, zero)[0].isfinite().all()
    huge = torch.eye(3)
    assert image_text_contrastive_loss(huge, huge, 1e6) == 0
    assert_close(image_text_contrastive_loss(huge, huge[[1, 2, 0]], 1e6), 1e6)
    empty = image_text_contrastive_loss(image[:0], text[:0], torch.tensor(2.0))
    assert empty == 0
    assert torch.autograd.grad(empty, image)[0].abs().max() == 0
    none = torch.zeros(0, dtype=torch.int64)
    assert image_text_contrastive_loss(image[:0], text[:0], 2.0, positives=none) == 0


@covers("image_text_contrastive_loss", "errors")
def test_errors():
    image, text, groups = problem()
    with pytest.raises(ValueError, match=r"image must have shape \(B, D\), got \(4,\)"):
        image_text_contrastive_loss(image[:, 0], text, 1.0)
    with pytest.raises(ValueError, match=r"text must have shape \(B, D\) with B=4, D=5, got \(3"):
        image_text_contrastive_loss(image, text[:3], 1.0)
    with pytest.raises(TypeError, match="text must be a floating-point tensor"):
        image_text_contrastive_loss(image, text.long(), 1.0)
    with pytest.raises(ValueError, match="text must be on the device of image"):
        image_text_contrastive_loss(image, text.to("meta"), 1.0)
    with pytest.raises(ValueError, match="image must be finite"):
        image_text_contrastive_loss(image / 0, text, 1.0)
    for scale in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="logit_scale must be positive and finite"):
            image_text_contrastive_loss(image, text, scale)
    for scale in (0.0, -1.0):
        with pytest.raises(ValueError, match="logit_scale must be positive, got"):
            image_text_contrastive_loss(image, text, torch.tensor(scale))
    with pytest.raises(ValueError, match=r"logit_scale must hold one value, got shape \(4, 4\)"):
        image_text_contrastive_loss(image, text, torch.ones(4, 4))
    with pytest.raises(TypeError, match="logit_scale must be a floating-point tensor"):
        image_text_contrastive_loss(image, text, torch.tensor(1))
    with pytest.raises(ValueError, match="logit_scale must be on the device of image"):
        image_text_contrastive_loss(image, text, torch.tensor(1.0, device="meta"))
    with pytest.raises(ValueError, match=r"positives must have shape \(B,\) with B=4, got \(3,\)"):
        image_text_contrastive_loss(image, text, 1.0, positives=groups[:3])
    with pytest.raises(TypeError, match=r"positives must be an integer tensor, got torch\.bool"):
        image_text_contrastive_loss(image, text, 1.0, positives=groups.bool())
    with pytest.raises(ValueError, match="positives must be on the device of image"):
        image_text_contrastive_loss(image, text, 1.0, positives=groups.to("meta"))


SCRIPT = """
import sys
import torch
import torch.distributed as dist
from wsss_blocks.distributed import sum_over_ranks
from wsss_blocks.losses import image_text_contrastive_loss

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
g = torch.Generator().manual_seed(0)
image, text = torch.randn(2, 6, 5, generator=g, dtype=torch.float64)
rows = slice(3 * rank, 3 * rank + 3)
for groups in (None, torch.tensor([3, 3, 9, 3, 9, 4])):  # across the ranks
    def run(rows, gather):
        w, v = (torch.eye(5, dtype=torch.float64) * a for a in (1, 2))
        scale = torch.tensor(2.6593, dtype=torch.float64)
        leaves = [x.requires_grad_() for x in (w, v, scale)]
        loss = image_text_contrastive_loss(
            image[rows] @ w, text[rows] @ v, scale.exp(),
            positives=None if groups is None else groups[rows], gather_distributed=gather,
        )
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    mean = [sum_over_ranks(x) / 2 for x in run(rows, True)]
    apart = [sum_over_ranks(x) / 2 for x in run(rows, False)]
    for ours, whole, other in zip(mean, run(slice(None), False), apart):
        assert (ours - whole).abs().max() < 1e-12, (ours, whole)
        assert (other - whole).abs().max() > 1e-2
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(tmp_path: Path):
    run_two_ranks(SCRIPT, tmp_path / "store")
