import pickle

import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, covers
from hypothesis import given
from hypothesis import strategies as st
from oracles.backbones import fit
from strategies import generator, seeds, sizes, small

from wsss_blocks.backbones import (
    BilateralFeatures,
    Encoder,
    Features,
    SmallCNN,
    TextEncoder,
    resize_to_stride,
)

POLICIES = ("resize", "pad", "floor")


@covers("resize_to_stride", "oracle")
@given(seeds, small, small, sizes(9), st.integers(1, 5), st.sampled_from(POLICIES))
def test_fits_like_the_loops(seed, batch, channels, size, stride, policy):
    images = torch.randn(batch, channels, *size, generator=generator(seed), dtype=torch.float64)
    if policy == "floor" and min(size) < stride:
        with pytest.raises(ValueError, match=rf"images must be at least {stride} pixels high"):
            resize_to_stride(images, stride=stride, policy=policy)
        return
    expected = torch.stack([fit(image, stride, policy) for image in images])
    assert_close(resize_to_stride(images, stride=stride, policy=policy), expected)


@covers("resize_to_stride", "properties")
@pytest.mark.parametrize("policy", POLICIES)
def test_a_size_that_fits_stays_the_same_tensor(policy):
    images = torch.rand(2, 3, 8, 12)
    assert resize_to_stride(images, stride=4, policy=policy) is images


@covers("resize_to_stride", "properties")
def test_resize_keeps_a_constant_and_the_range():
    images = torch.rand(2, 3, 7, 9)
    out = resize_to_stride(images, stride=4)
    assert out.shape == (2, 3, 8, 12)
    assert images.min() - 1e-6 <= out.min()
    assert out.max() <= images.max() + 1e-6
    assert_close(resize_to_stride(images * 0 + 0.3, stride=4), torch.full((2, 3, 8, 12), 0.3))


@covers("resize_to_stride", "gradcheck")
@pytest.mark.parametrize("policy", POLICIES)
def test_gradient_of_fitting(policy):
    images = torch.rand(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert_gradcheck(lambda x: resize_to_stride(x, stride=4, policy=policy), images)


@covers("resize_to_stride", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("policy", POLICIES)
def test_dtypes_of_fitting(dtype, policy):
    images = torch.rand(1, 3, 5, 6)
    out = resize_to_stride(images.to(dtype), stride=4, policy=policy)
    assert out.dtype == dtype
    assert_close(out, resize_to_stride(images, stride=4, policy=policy), dtype=torch.bfloat16)


@covers("resize_to_stride", "compile")
@pytest.mark.parametrize("policy", POLICIES)
def test_fitting_compiles(policy):
    assert_compiles(lambda x: resize_to_stride(x, stride=4, policy=policy), torch.rand(2, 3, 9, 6))


@covers("resize_to_stride", "errors")
def test_fitting_refuses():
    with pytest.raises(ValueError, match=r"images must have shape \(B, C, H, W\), got \(3, 4, 4\)"):
        resize_to_stride(torch.rand(3, 4, 4), stride=2)
    with pytest.raises(TypeError, match=r"images must be a floating-point tensor"):
        resize_to_stride(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), stride=2)
    with pytest.raises(ValueError, match=r"policy must be one of 'resize'"):
        resize_to_stride(torch.rand(1, 3, 4, 4), stride=2, policy="crop")
    with pytest.raises(ValueError, match=r"stride must be at least 1, got 0"):
        resize_to_stride(torch.rand(1, 3, 4, 4), stride=0)


@covers("resize_to_stride", "degenerate")
def test_a_single_pixel_and_an_empty_batch():
    one = torch.full((1, 3, 1, 1), 0.7)
    assert_close(resize_to_stride(one, stride=16), torch.full((1, 3, 16, 16), 0.7))
    padded = resize_to_stride(one, stride=2, policy="pad")
    assert_close(padded[0, 0], [[0.7, 0.0], [0.0, 0.0]])
    assert resize_to_stride(torch.rand(0, 3, 8, 8), stride=4).shape == (0, 3, 8, 8)


def features(n):
    g = generator(n)
    return Features(
        torch.randn(2, 5, 3, 4, generator=g), torch.randn(2, n, 5, generator=g), {}, {}, {}
    )


def test_patch_tokens_are_the_map_row_by_row():
    f = features(1)
    for i in range(3):
        for j in range(4):
            assert torch.equal(f.patch_tokens[:, i * 4 + j], f.feature_map[:, :, i, j])


def test_global_token_is_the_class_token_or_the_mean():
    assert torch.equal(features(1).global_token, features(1).class_tokens[:, 0])
    total = torch.zeros(2, 5)
    for i in range(3):
        for j in range(4):
            total += features(0).feature_map[:, :, i, j]
    assert_close(features(0).global_token, total / 12)
    with pytest.raises(ValueError, match=r"n=0 or n=1, got n=3"):
        _ = features(3).global_token
    half = features(0)._replace(feature_map=features(0).feature_map.bfloat16())
    assert half.global_token.dtype == torch.bfloat16


def test_features_pickle():
    restored = pickle.loads(pickle.dumps(features(1)))
    assert torch.equal(restored.feature_map, features(1).feature_map)


def test_encoders_meet_the_protocol():
    assert isinstance(SmallCNN((8,), blocks=(0,)), Encoder)
    assert not isinstance(torch.nn.Linear(1, 1), Encoder)
    assert not isinstance(SmallCNN((8,), blocks=(0,)), TextEncoder)


@pytest.mark.parametrize("kind", ["CNN", "bilateral"])
def test_encoders_without_attention_say_so(kind):
    encoder = SmallCNN((8,), blocks=(0,)) if kind == "CNN" else BilateralFeatures(8)
    assert encoder(torch.rand(1, 3, 8, 8)).attention == {}
    with pytest.raises(ValueError, match=r"attention_layers must be empty: .* got \(0,\)"):
        encoder(torch.rand(1, 3, 8, 8), attention_layers=(0,))
    with pytest.raises(TypeError, match="attention_layers must be a sequence"):
        encoder(torch.rand(1, 3, 8, 8), attention_layers=1)


def test_unknown_name_is_an_attribute_error():
    import wsss_blocks.backbones as package

    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'ResNet'"):
        _ = package.ResNet
