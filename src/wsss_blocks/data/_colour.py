"""Blur and hue as torchvision computes them, to rounding, in a fraction of the time."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from wsss_blocks._numerics import at_least_float32

__all__ = ["blur", "turn_hue"]


def blur(image: Tensor, sigma: float, reach: int) -> Tensor:
    """Blur with Gaussian weights up to ``reach`` pixels away; the border is reflected.

    A weighted sum of shifted images per axis: ``4 reach + 2`` passes, where a convolution with the
    square kernel has ``(2 reach + 1) ** 2`` products a pixel.
    """
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-reach, reach + 1)]
    pixels, total = at_least_float32(image), sum(weights)
    for axis, border in ((-2, (0, 0, reach, reach)), (-1, (reach, reach, 0, 0))):
        side = pixels.shape[axis]
        padded = F.pad(pixels[None], border, mode="reflect")[0]
        pixels = torch.zeros_like(pixels)
        for start, weight in enumerate(weights):
            pixels.add_(padded.narrow(axis, start, side), alpha=weight / total)
    return pixels.to(image.dtype)


def turn_hue(image: Tensor, turn: float) -> Tensor:
    """Turn the hue by a share of the colour circle, without a branch on which channel is largest.

    In sixths of the circle the hue is ``1 + (g + b - r - low) / (high - low)``, counted towards
    green if ``g > b``, else towards blue. A channel is then ``low + (high - low) * w``, where ``w``
    is 1 up to one sixth away from the channel's own hue, 0 beyond two, and linear between.
    """
    pixels = at_least_float32(image)
    red, green, blue = pixels.unbind(-3)
    low = pixels.amin(-3)
    chroma = pixels.amax(-3).sub_(low)
    hue = (green + blue).sub_(red).sub_(low).div_(chroma.clamp_min(1e-30)).add_(1)
    hue.copysign_(green - blue)
    away = torch.stack([hue + (6 * turn - own) for own in (0, 2, 4)])
    away.sub_((away / 6).round_(), alpha=6).abs_()
    return away.neg_().add_(2).clamp_(0, 1).mul_(chroma).add_(low).to(image.dtype)
