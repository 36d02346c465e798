import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_module, covers
from hypothesis import given
from oracles.losses import patch_token_contrast
from strategies import generator, random_mask, seeds, sizes, small

from wsss_blocks.losses import PatchTokenContrastLoss, patch_token_contrast_loss


def problem(seed=0, batch=2, size=(3, 2), dim=5, classes=3):
    g = generator(seed)
    features = torch.randn(batch, dim, *size, generator=g, dtype=torch.float64)
    return features, random_mask((batch, *size), classes, g)


@covers("patch_token_contrast_loss", "oracle")
@given(seeds, small, sizes(4))
def test_equals_the_formula(seed, batch, size):
    features, mask = problem(seed, batch, size)
    assert_close(patch_token_contrast_loss(features, mask), patch_token_contrast(features, mask))
    other = mask.where(mask != 255, 0)  # label 1 is now the ignored one
    expected = patch_token_contrast(features, other, ignore_index=1)
    assert_close(patch_token_contrast_loss(features, other, ignore_index=1), expected)


@covers("patch_token_contrast_loss", "properties")
@given(seeds)
def test_properties(seed):
    features, mask = problem(seed)
    mask[0, 0] = 1  # at least one pair
    features.requires_grad_()
    loss = patch_token_contrast_loss(features, mask)
    assert 0 <= loss <= 1
    # patches may be permuted together with their labels, scaled and flipped in sign
    order = torch.randperm(6, generator=generator(seed))
    shuffled = features.flatten(2)[..., order].view_as(features)
    assert_close(patch_token_contrast_loss(shuffled, mask.flatten(1)[:, order].view_as(mask)), loss)
    assert_close(patch_token_contrast_loss(-3 * features, mask), loss)
    # ignored patches have no gradient, and moving them changes nothing
    (gradient,) = torch.autograd.grad(loss, features)
    ignored = (mask == 255)[:, None].expand_as(features)
    assert (gradient[ignored] == 0).all()
    moved = torch.where(ignored, torch.randn_like(features), features)
    assert_close(patch_token_contrast_loss(moved, mask), loss)


@covers("patch_token_contrast_loss", "properties")
def test_known_values():
    # label 0: two equal patches; label 1: orthogonal to them
    features = torch.tensor([[[1.0, 2.0, 0.0]], [[0.0, 0.0, 3.0]]])[None]
    mask = torch.tensor([[[0, 0, 1]]])
    assert patch_token_contrast_loss(features, mask) == 0
    assert patch_token_contrast_loss(features, torch.tensor([[[0, 1, 0]]])) == 0.75
    # pairs of different images are no pairs
    two = features[..., :1].expand(2, 2, 1, 1)
    assert patch_token_contrast_loss(two, torch.tensor([[[0]], [[1]]])) == 0


@covers("patch_token_contrast_loss", "gradcheck")
def test_gradient():
    features, mask = problem()
    assert_gradcheck(lambda x: patch_token_contrast_loss(x, mask), features.requires_grad_())


@covers("patch_token_contrast_loss", "module", "compile")
def test_module_and_compile():
    features, mask = problem()
    for ignore in (255, 1):
        expected = patch_token_contrast_loss(features, mask, ignore_index=ignore)
        assert_module(PatchTokenContrastLoss(ignore_index=ignore), expected, features, mask)
    assert_compiles(patch_token_contrast_loss, features, mask)


@covers("patch_token_contrast_loss", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    features, mask = problem()
    exact = patch_token_contrast_loss(features.to(dtype).double(), mask)
    features = features.to(dtype).requires_grad_()
    for ids in (mask, mask.to(torch.uint8), mask.int()):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=ids is not mask):
            loss = patch_token_contrast_loss(features, ids)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(loss, exact, dtype=torch.float32)
        assert torch.autograd.grad(loss, features)[0].isfinite().all()


@covers("patch_token_contrast_loss", "degenerate")
@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
@pytest.mark.parametrize("fill", ["ignored", "background", "distinct", "zero"])
def test_degenerate(size, fill):
    features = torch.ones(2, 4, *size) if fill != "zero" else torch.zeros(2, 4, *size)
    features.requires_grad_()
    mask = torch.full((2, *size), 255 if fill == "ignored" else 0)
    if fill == "distinct":
        mask = torch.arange(mask.numel()).view_as(mask)
    loss = patch_token_contrast_loss(features, mask)
    pairs = size != (1, 1)
    # no positive pair: the pull half vanishes; equal patches: it is zero; zero patches: S = 0
    expected = {"ignored": 0.0, "background": 0.0, "distinct": 0.5 * pairs, "zero": 0.5 * pairs}
    assert_close(loss, expected[fill])
    assert torch.autograd.grad(loss, features)[0].isfinite().all()


@covers("patch_token_contrast_loss", "errors")
def test_errors():
    features, mask = problem()
    with pytest.raises(ValueError, match=r"features must have shape .* got \(2, 5, 6\)"):
        patch_token_contrast_loss(features.flatten(2), mask)
    with pytest.raises(ValueError, match=r"mask must have shape \(B, h, w\) with B=2, h=3, w=2"):
        patch_token_contrast_loss(features, mask[:, :2])
    with pytest.raises(ValueError, match="mask must be on the device of features"):
        patch_token_contrast_loss(features, mask.to("meta"))
    with pytest.raises(TypeError, match=r"features must be a floating-point tensor"):
        patch_token_contrast_loss(features.long(), mask)
    for wrong in (mask.float(), mask.bool()):
        with pytest.raises(TypeError, match=r"mask must be an integer tensor"):
            patch_token_contrast_loss(features, wrong)
