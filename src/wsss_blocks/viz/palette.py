"""Colours of class masks and of scores."""

import math

import torch
from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import check_integer, check_shape, check_tensor
from wsss_blocks.data.names import voc_palette

__all__ = ["colorize", "heat_colors"]


def colorize(mask: Tensor, *, palette: Tensor | None = None) -> Tensor:
    """Paint a mask with one colour per class id.

    Args:
        mask: ``(..., H, W)`` ids in [0, n).
        palette: ``(n, 3)`` uint8, default ``voc_palette()``.

    Returns:
        ``(..., 3, H, W)`` float32 in [0, 1].

    Raises:
        TypeError: ``mask`` or ``palette`` does not hold integers.
        ValueError: a shape is wrong, or an id has no colour.

    Example:
        >>> import torch
        >>> colorize(torch.tensor([[0, 15]])).shape
        torch.Size([3, 1, 2])
    """
    check_integer("mask", mask)
    if mask.ndim < 2:
        raise ValueError(f"mask must have shape (..., H, W), got {tuple(mask.shape)}.")
    if palette is not None:
        check_shape("palette", palette, "n 3")
        check_integer("palette", palette)
    colors = (voc_palette() if palette is None else palette).to(mask.device)
    if mask.numel() and not 0 <= int(mask.min()) <= int(mask.max()) < len(colors):
        raise ValueError(
            f"mask must hold ids in [0, {len(colors)}), got {int(mask.min())} to {int(mask.max())}."
        )
    return (colors[mask.long()].float() / 255).movedim(-1, -3)


def heat_colors(heat: Tensor) -> Tensor:
    r"""Paint scores from dark violet over red to light yellow in even steps of lightness.

    The colours follow a curve in OKLCh whose lightness grows linearly from 0.15 to 0.95, so equal
    differences look equally large and the picture survives a grey-scale printer.

    Reference:
        Bjorn Ottosson, "A perceptual color space for image processing",
        https://bottosson.github.io/posts/oklab/

    Args:
        heat: ``(..., H, W)``; values outside [0, 1] are clamped, NaN is painted as 0.

    Returns:
        ``(..., 3, H, W)`` float32 in [0, 1].

    Raises:
        TypeError: ``heat`` is not a tensor of real numbers.
        ValueError: ``heat`` has fewer than two axes.

    Example:
        >>> import torch
        >>> heat_colors(torch.rand(2, 4, 6)).shape
        torch.Size([2, 3, 4, 6])
    """
    check_tensor("heat", heat)
    if heat.ndim < 2:
        raise ValueError(f"heat must have shape (..., H, W), got {tuple(heat.shape)}.")
    if heat.is_complex():
        raise TypeError(f"heat must hold real numbers, got {heat.dtype}.")
    table = _heat_table().to(heat.device)
    level = at_least_float32(heat).nan_to_num(0.0).clamp(0, 1) * (len(table) - 1)
    return table[level.round().long()].movedim(-1, -3)


def _heat_table() -> Tensor:
    t = torch.linspace(0, 1, 256, dtype=torch.float64)
    lightness = 0.15 + 0.8 * t
    hue = (-75 + 180 * t) * math.pi / 180
    chroma = 0.05 + 0.14 * (math.pi * t).sin()
    a, b = chroma * hue.cos(), chroma * hue.sin()
    # OKLab -> cone responses -> linear RGB -> sRGB.
    to_cones = torch.tensor(
        [
            [1.0, 0.3963377774, 0.2158037573],
            [1.0, -0.1055613458, -0.0638541728],
            [1.0, -0.0894841775, -1.2914855480],
        ],
        dtype=torch.float64,
    )
    to_linear = torch.tensor(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ],
        dtype=torch.float64,
    )
    linear = (torch.stack([lightness, a, b], -1) @ to_cones.T) ** 3 @ to_linear.T
    linear = linear.clamp(0, 1)
    srgb = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return srgb.float()
