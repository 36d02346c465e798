"""Blur and hue against definitions in plain Python and against torchvision."""

import colorsys
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import generator, seeds
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as TF

from wsss_blocks.data import ColorJitter, GaussianBlur, new_sample
from wsss_blocks.data._colour import blur, turn_hue

turns = st.floats(-0.5, 0.5)


def rand(*shape, seed=0):
    return torch.rand(shape, generator=generator(seed))


def turned(image, turn):
    """Turn the hue pixel by pixel, with the standard library."""
    pixels = image.double().flatten(1).T.tolist()
    hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in pixels]
    rgb = [colorsys.hsv_to_rgb((h + turn) % 1, s, v) for h, s, v in hsv]
    return torch.tensor(rgb, dtype=torch.float64).T.reshape(image.shape)


def mirrored(index, side):
    while not 0 <= index < side:
        index = -index if index < 0 else 2 * side - 2 - index
    return index


def blurred(image, sigma, reach):
    """Sum the square neighbourhood of each pixel."""
    _, height, width = image.shape
    weights = [math.exp(-(o**2) / (2 * sigma**2)) for o in range(-reach, reach + 1)]
    weights = [w / sum(weights) for w in weights]
    values, new = image.double(), torch.zeros(image.shape, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            for y, wy in enumerate(weights, -reach):
                for x, wx in enumerate(weights, -reach):
                    new[:, i, j] += (
                        wy * wx * values[:, mirrored(i + y, height), mirrored(j + x, width)]
                    )
    return new


@given(turns, seeds, st.booleans())
def test_hue_is_turned_as_the_standard_library_does(turn, seed, coarse):
    image = rand(3, 4, 5, seed=seed)
    if coarse:  # equal channels, black and white
        image = image.mul(3).round() / 3
    assert_close(turn_hue(image, turn).double(), turned(image, turn), atol=1e-6, rtol=0)
    assert_close(turn_hue(image.double(), turn), turned(image, turn), atol=1e-12, rtol=0)


def test_each_pure_hue():
    image = torch.tensor(
        [[1.0, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1]]
    ).T[:, None]
    assert_close(
        turn_hue(image, 1 / 3)[:, 0, :6], image[:, 0, [2, 3, 4, 5, 0, 1]], atol=1e-6, rtol=0
    )
    assert torch.equal(turn_hue(image, 1 / 3)[..., 6:], image[..., 6:])
    assert_close(turn_hue(image, 0.5), turn_hue(image, -0.5), atol=1e-6, rtol=0)
    assert_close(turn_hue(image, 0.0), image, atol=1e-6, rtol=0)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.03, 0.5])
def test_hue_is_that_of_torchvision_to_its_rounding(turn):
    bytes_ = torch.randint(0, 256, (3, 64, 64), generator=generator(0)) / 255
    for image in (rand(3, 64, 64), bytes_, rand(1, 8, 8).expand(3, -1, -1), torch.zeros(3, 2, 2)):
        before = image.clone()
        assert_close(turn_hue(image, turn), TF.adjust_hue(image, turn), atol=2e-6, rtol=0)
        assert torch.equal(image, before)


@given(st.floats(0.1, 1.5), st.integers(1, 6), st.integers(1, 6), seeds)
def test_blur_is_the_weighted_mean_of_the_neighbourhood(sigma, height, width, seed):
    image = rand(2, height, width, seed=seed)
    reach = min(math.ceil(3 * sigma), 3, height - 1, width - 1)
    assert_close(
        blur(image, sigma, reach).double(), blurred(image, sigma, reach), atol=1e-6, rtol=0
    )
    assert_close(
        blur(image.double(), sigma, reach), blurred(image, sigma, reach), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_is_that_of_torchvision_to_its_rounding(sigma):
    image, reach = rand(3, 40, 50), math.ceil(3 * sigma)
    before, side = image.clone(), 2 * reach + 1
    expected = TF.gaussian_blur(image, [side, side], [sigma, sigma])
    assert_close(blur(image, sigma, reach), expected, atol=1e-6, rtol=0)
    assert torch.equal(image, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    image = rand(3, 12, 12).to(dtype)
    assert torch.equal(turn_hue(image, 0.1), turn_hue(image.float(), 0.1).to(dtype))
    assert torch.equal(blur(image, 1.0, 3), blur(image.float(), 1.0, 3).to(dtype))


def test_the_order_of_pixels_in_memory_does_not_matter():
    image = rand(3, 20, 24)
    pixels = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert pixels.stride() != image.stride()
    for seed in range(4):
        for transform in (ColorJitter(p=1.0), GaussianBlur()):
            one, other = (
                transform(new_sample(x, id="a"), generator(seed))["image"] for x in (image, pixels)
            )
            assert np.abs((one - other).numpy()).max() <= 1e-6
