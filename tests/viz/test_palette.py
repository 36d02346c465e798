import pytest
import torch
from hypothesis import given
from strategies import generator, random_mask, seeds, sizes

from wsss_blocks.data import voc_palette
from wsss_blocks.viz import colorize, heat_colors


def voc_color(k):
    red = green = blue = 0
    for j in range(8):
        red |= (k >> 0 & 1) << (7 - j)
        green |= (k >> 1 & 1) << (7 - j)
        blue |= (k >> 2 & 1) << (7 - j)
        k >>= 3
    return [red, green, blue]


def test_voc_palette_equals_the_loop_and_the_published_colours():
    palette = voc_palette()
    assert palette.tolist() == [voc_color(k) for k in range(256)]
    published = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        8: (64, 0, 0),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    for k, color in published.items():
        assert tuple(palette[k].tolist()) == color
    assert palette.dtype == torch.uint8
    assert len(palette.unique(dim=0)) == 256
    assert torch.equal(voc_palette(21), palette[:21])


@pytest.mark.parametrize("n", [0, 257])
def test_voc_palette_has_256_colours(n):
    with pytest.raises(ValueError, match=r"n must be in \[1, 256\]"):
        voc_palette(n)


@given(seed=seeds, size=sizes())
def test_colorize_equals_the_loop(seed, size):
    mask = random_mask((2, *size), 21, generator(seed))
    painted = colorize(mask.to(torch.uint8))
    assert painted.shape == (2, 3, *size)
    assert painted.dtype == torch.float32
    for b in range(2):
        for i in range(size[0]):
            for j in range(size[1]):
                color = (painted[b, :, i, j] * 255).round().int().tolist()
                assert color == voc_color(int(mask[b, i, j]))


def test_colorize_with_an_own_palette_and_its_errors():
    palette = torch.tensor([[0, 0, 0], [255, 0, 51]], dtype=torch.uint8)
    painted = colorize(torch.tensor([[1, 0]]), palette=palette)
    torch.testing.assert_close(painted[:, 0, 0], torch.tensor([1.0, 0.0, 0.2]))
    with pytest.raises(ValueError, match=r"mask must hold ids in \[0, 2\), got 0 to 2"):
        colorize(torch.tensor([[2, 0]]), palette=palette)
    with pytest.raises(ValueError, match="got -1 to 0"):
        colorize(torch.tensor([[-1, 0]]))
    with pytest.raises(TypeError, match="mask must be an integer"):
        colorize(torch.rand(2, 2))


def test_heat_colours_rise_evenly_in_lightness():
    colors = heat_colors(torch.linspace(0, 1, 256)[None])[:, 0].T.double()
    linear = torch.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    luminance = linear @ torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64)
    lightness = torch.where(
        luminance > 0.008856, 116 * luminance.clamp_min(1e-9) ** (1 / 3) - 16, 903.3 * luminance
    )
    steps = lightness.diff()
    assert steps.min() > 0, "grey-scale order is lost"
    assert steps.max() < 3 * steps.mean()
    assert lightness[0] < 10
    assert lightness[-1] > 90
    assert colors.min() > 0
    assert colors.max() < 1, "a clipped colour would break the even steps"


def test_heat_colours_outside_the_range():
    heat = torch.tensor([[-1.0, 0.0, 1.0, 7.0, float("nan")]])
    colors = heat_colors(heat)[:, 0]
    assert torch.equal(colors[:, 0], colors[:, 1])
    assert torch.equal(colors[:, 2], colors[:, 3])
    assert torch.equal(colors[:, 4], colors[:, 1])
    assert heat_colors(heat.bfloat16()).dtype == torch.float32
