import math

import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_module, covers
from hypothesis import given
from hypothesis import strategies as st
from oracles.losses import segmentation
from strategies import generator, random_mask, seeds, sizes, small

from wsss_blocks.losses import (
    SegmentationLoss,
    balanced_segmentation_loss,
    segmentation_counts,
    segmentation_loss,
)


def problem(seed=0, batch=2, classes=3, grid=(2, 3), size=(4, 5)):
    g = generator(seed)
    logits = 2 * torch.randn(batch, classes, *grid, generator=g, dtype=torch.float64)
    return logits, random_mask((batch, *size), classes, g)


@covers("segmentation_loss", "oracle")
@given(seeds, small, st.integers(1, 4), sizes(4), sizes(6), st.booleans())
def test_equals_the_formula(seed, batch, classes, grid, size, resize):
    logits, mask = problem(seed, batch, classes, grid, size if resize else grid)
    assert_close(segmentation_loss(logits, mask), segmentation(logits, mask))
    no_ignored = mask.where(mask != 255, 0)
    expected = segmentation(logits, no_ignored, ignore_index=1)
    assert_close(segmentation_loss(logits, no_ignored, ignore_index=1), expected)


@covers("segmentation_loss", "properties")
@given(seeds)
def test_properties(seed):
    logits, mask = problem(seed, grid=(4, 5))
    logits.requires_grad_()
    loss = segmentation_loss(logits, mask)
    assert_close(segmentation_loss(torch.cat([logits] * 3), torch.cat([mask] * 3)), loss)
    # each pixel weighs the same: the mean of parts, weighed by their pixels
    parts = [mask.where(mask == 0, 255), mask.where(mask != 0, 255)]
    sums = [segmentation_loss(logits, part) * segmentation_counts(part) for part in parts]
    assert_close(sum(sums) / segmentation_counts(mask).clamp_min(1), loss)
    order = torch.randperm(3, generator=generator(seed))
    moved = order.argsort()[mask.clamp_max(2)].where(mask != 255, 255)  # no class is special
    assert_close(segmentation_loss(logits[:, order], moved), loss)
    assert_close(segmentation_loss(logits.flip(3), mask.flip(2)), loss)
    assert_close(segmentation_loss(logits + 5, mask), loss)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient.movedim(1, -1)[mask == 255] == 0).all()


@covers("segmentation_loss", "properties")
def test_halves_of_equal_size_are_balanced():
    logits, _ = problem(grid=(2, 2))
    mask = torch.tensor([[[0, 1], [255, 255]], [[2, 0], [1, 0]]])
    assert_close(segmentation_loss(logits, mask), balanced_segmentation_loss(logits, mask))


@covers("segmentation_loss", "gradcheck")
def test_gradient():
    logits, mask = problem()
    assert_gradcheck(lambda x: segmentation_loss(x, mask), logits.requires_grad_())


@covers("segmentation_loss", "module", "compile")
def test_module_and_compile():
    for grid in ((2, 3), (4, 5)):
        logits, mask = problem(grid=grid)
        for ignore in (255, 1):
            ids = mask.where(mask != 255, ignore)
            expected = segmentation_loss(logits, ids, ignore_index=ignore)
            assert_module(SegmentationLoss(ignore_index=ignore), expected, logits, ids)
        assert_compiles(segmentation_loss, logits, mask)


@covers("segmentation_loss", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    logits, mask = problem()
    exact = segmentation_loss(logits.to(dtype).double(), mask)
    logits = logits.to(dtype).requires_grad_()
    for ids in (mask, mask.to(torch.uint8), mask.short()):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=ids is not mask):
            loss = segmentation_loss(logits, ids)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(loss, exact, dtype=torch.float32)
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()


@covers("segmentation_loss", "degenerate")
@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
def test_degenerate(size):
    logits = torch.zeros(2, 3, 1, 1, requires_grad=True)
    for fill, expected in ((255, 0.0), (0, math.log(3)), (2, math.log(3))):
        mask = torch.full((2, *size), fill)
        loss = segmentation_loss(logits, mask)
        assert_close(loss, expected)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.isfinite().all()
        assert bool((gradient == 0).all()) == (fill == 255)
    assert segmentation_loss(torch.randn(1, 1, 2, 2), torch.zeros(1, *size).long()) == 0


@covers("segmentation_loss", "errors")
def test_errors():
    logits, mask = problem()
    with pytest.raises(ValueError, match=r"logits must have shape \(B, C, h, w\), got \(3, 2, 3\)"):
        segmentation_loss(logits[0], mask)
    with pytest.raises(ValueError, match=r"mask must have shape .* with B=2, got \(1, 4, 5\)"):
        segmentation_loss(logits, mask[:1])
    with pytest.raises(ValueError, match=r"mask must hold ids in \[0, 3\) .*, got 3"):
        segmentation_loss(logits, torch.full_like(mask, 3))
    with pytest.raises(ValueError, match="mask must be on the device of logits"):
        segmentation_loss(logits, mask.to("meta"))
    with pytest.raises(TypeError, match=r"logits must be a floating-point tensor"):
        segmentation_loss(logits.long(), mask)
    with pytest.raises(TypeError, match=r"mask must be an integer tensor, got torch.float64"):
        segmentation_loss(logits, mask.double())
