import copy
import math

import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_module, covers
from hypothesis import given
from hypothesis import strategies as st
from oracles.backbones import bilateral_features, fit
from packed import Packed
from strategies import generator, seeds, sizes

from wsss_blocks.backbones import BilateralFeatures, Encoder


def picture(seed=0, batch=2, size=(8, 6), dtype=torch.float32):
    return torch.rand(batch, 3, *size, generator=generator(seed), dtype=dtype)


def cosines(features):
    """All pairs of cells of an image: (B, N, N)."""
    return features.patch_tokens @ features.patch_tokens.mT


@covers("BilateralFeatures", "oracle")
@given(seeds, st.sampled_from([2, 6]), st.integers(1, 3), sizes(6), st.sampled_from([0.1, 0.7]))
def test_equals_the_loops(seed, dim, stride, size, scale):
    images = picture(seed, 2, size, torch.float64)
    scales = {"colour_scale": scale, "position_scale": 2 * scale}
    model = BilateralFeatures(dim, stride=stride, seed=seed, **scales).double()
    drawn = torch.randn(dim // 2, 5, generator=generator(seed)).double()
    found = model(images).feature_map
    for image, features in zip(images, found, strict=True):
        image = fit(image, stride, "resize")
        expected = bilateral_features(image, drawn, stride=stride, **scales)
        # the directions are divided in float32
        torch.testing.assert_close(features, expected, rtol=0, atol=3e-5)


@covers("BilateralFeatures", "oracle")
@pytest.mark.parametrize("dim", [64, 4096])
def test_cosines_are_the_kernel_up_to_the_stated_error(dim):
    images = picture(batch=1, size=(10, 14), dtype=torch.float64)
    z = torch.cat(
        [
            images[0].flatten(1) / 0.4,
            torch.cartesian_prod(torch.arange(10) + 0.5, torch.arange(14) + 0.5).mT / 14 / 0.5,
        ]
    )
    kernel = torch.exp(-torch.cdist(z.mT, z.mT).square() / 2)
    errors = []
    for seed in range(8):
        model = BilateralFeatures(
            dim, colour_scale=0.4, position_scale=0.5, stride=1, seed=seed
        ).double()
        errors.append(cosines(model(images))[0] - kernel)
    errors = torch.stack(errors)
    assert 0.3 / math.sqrt(dim) < errors.square().mean().sqrt() < 1 / math.sqrt(dim)
    assert errors.abs().max() < 5 / math.sqrt(dim)


@covers("BilateralFeatures", "properties")
@given(seeds, st.integers(1, 3), sizes(7))
def test_properties(seed, stride, size):
    images = picture(seed, 3, size, torch.float64)
    model = BilateralFeatures(8, stride=stride, seed=seed).double()
    features = model(images)
    assert features.feature_map.shape[2:] == tuple(math.ceil(side / stride) for side in size)
    assert_close(features.feature_map.square().sum(1), torch.ones_like(features.feature_map[:, 0]))
    # images do not meet each other
    order = torch.tensor([2, 0, 1])
    assert_close(model(images[order]).feature_map, features.feature_map[order])
    assert_close(model(images[1:2]).feature_map, features.feature_map[1:2])
    # only differences of colours and positions matter
    assert_close(cosines(model(images / 2 + 0.25)), cosines(model(images / 2)))
    # without positions to speak of, cells are where their colours are
    far = BilateralFeatures(8, stride=stride, seed=seed, position_scale=1e9).double()
    for axis in (2, 3):
        moved = far(images.flip(axis)).feature_map
        torch.testing.assert_close(moved, far(images).feature_map.flip(axis), rtol=0, atol=1e-6)


@covers("BilateralFeatures", "properties")
def test_near_cells_and_like_colours_are_alike():
    image = torch.zeros(1, 3, 4, 32)
    image[..., 16:] = 0.6
    similar = cosines(BilateralFeatures(4096, stride=4)(image))[0]  # a row of 8 cells
    assert (similar[0, :4].diff() < 0).all()  # falls with distance
    assert similar[3, 4] < 0.1  # the next cell, of another colour
    assert similar[3, 2] > 0.8


@covers("BilateralFeatures", "properties")
def test_directions_are_those_of_the_seed_and_travel_with_the_state():
    images = picture()
    one, again, other = (BilateralFeatures(seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one(images).feature_map, again(images).feature_map)
    assert not torch.allclose(one(images).feature_map, other(images).feature_map)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(images).feature_map, other(images).feature_map)


@covers("BilateralFeatures", "properties")
def test_is_an_encoder_without_parameters():
    model = BilateralFeatures(6, stride=3)
    assert isinstance(model, Encoder)
    assert (model.dim, model.stride, model.num_class_tokens, model.layer_dims) == (6, 3, 0, {})
    assert not list(model.parameters())
    features = model(picture(), layers=[])
    assert features.class_tokens.shape == (2, 0, 6)
    assert (features.intermediates, features.class_tokens_at, features.taps) == ({}, {}, {})
    assert features.global_token.shape == (2, 6)
    tokens = features.patch_tokens
    assert model.project(tokens) is tokens


@covers("BilateralFeatures", "gradcheck")
def test_gradient():
    model = BilateralFeatures(4, colour_scale=0.5).double()
    images = picture(batch=1, size=(3, 4), dtype=torch.float64).requires_grad_()
    assert_gradcheck(lambda x: model(x).feature_map, images)


@covers("BilateralFeatures", "module")
def test_module():
    images = picture(size=(5, 7))
    model = Packed(BilateralFeatures(8))
    assert_module(model, model(images), images, state_keys=("encoder.directions",))
    assert repr(model.encoder) == (
        "BilateralFeatures(dim=8, colour_scale=0.15, position_scale=0.3, stride=2)"
    )


@covers("BilateralFeatures", "compile")
def test_compiles():
    assert_compiles(Packed(BilateralFeatures(8)), picture(size=(5, 8)))


@covers("BilateralFeatures", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_dtypes(dtype, autocast):
    model, images = BilateralFeatures(16), picture().to(dtype)
    exact = copy.deepcopy(model).double()(images.double()).feature_map
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = model(images).feature_map
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(found, exact, dtype=torch.float32)
    rough = copy.deepcopy(model).to(torch.bfloat16)(images).feature_map  # of rounded directions
    assert rough.dtype == found.dtype
    torch.testing.assert_close(rough.double(), exact, rtol=0, atol=0.1)


@covers("BilateralFeatures", "degenerate")
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 4)])
def test_tiny_constant_and_no_images(size):
    model = BilateralFeatures(2)
    for value in (0.0, 0.5, 1.0):
        images = torch.full((1, 3, *size), value, requires_grad=True)
        found = model(images).feature_map
        assert found.shape == (1, 2, *(math.ceil(side / 2) for side in size))
        assert_close(found.square().sum(1), torch.ones_like(found[:, 0]))
        (gradient,) = torch.autograd.grad(found.sum(), images)
        assert gradient.isfinite().all()
    assert model(torch.zeros(0, 3, *size)).feature_map.shape[0] == 0


@covers("BilateralFeatures", "errors")
def test_refuses():
    images, model = picture(), BilateralFeatures()
    for dim in (0, 1, -2):
        with pytest.raises(ValueError, match=f"dim must be at least 2, got {dim}"):
            BilateralFeatures(dim)
    with pytest.raises(ValueError, match="dim must be even, got 7"):
        BilateralFeatures(7)
    for name in ("colour_scale", "position_scale"):
        for bad in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"{name} must be positive and finite, got {bad}"):
                BilateralFeatures(**{name: bad})
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        BilateralFeatures(stride=0)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        BilateralFeatures(seed=-1)
    with pytest.raises(ValueError, match=r"layers must be empty: there are none, got \(1,\)"):
        model(images, layers=(1,))
    with pytest.raises(TypeError, match="layers must be a sequence, got None"):
        model(images, layers=None)
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, H, W\)"):
        model(images[:, :1])
    with pytest.raises(ValueError, match=r"images must be RGB in \[0, 1\]"):
        model(255 * images)
    with pytest.raises(TypeError, match="images must be a floating-point tensor"):
        model(images.byte())
    with pytest.raises(ValueError, match="images must be on the device of the directions"):
        model(images.to("meta"))
