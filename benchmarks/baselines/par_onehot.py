"""Pixel-adaptive refinement, from the formula, in eager torch.

The form in which the field runs it: each ring of eight neighbours is read by a dilated convolution
with eight one-hot 3x3 kernels, for the image once and for the maps in each iteration. ``best``
reads the neighbours as slices of a padded copy instead.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["best", "published"]

Dilations = tuple[int, ...]
RINGS = (1, 2, 4, 8, 12, 24)


@torch.no_grad()
def published(
    images: Tensor,
    maps: Tensor,
    *,
    dilations: Dilations = RINGS,
    iterations: int = 10,
    colour_scale: float = 0.3,
    position_weight: float = 0.01,
    kernel: Literal["par", "pamr"] = "par",
) -> Tensor:
    """Refine ``maps (B, C, H, W)`` along the edges of ``images (B, 3, H, W)``."""
    weights = _weights(images, dilations, colour_scale, position_weight, kernel, _one_hot)
    for _ in range(iterations):
        maps = (_one_hot(maps, dilations) * weights).sum(2)
    return maps


@torch.no_grad()
def best(
    images: Tensor,
    maps: Tensor,
    *,
    dilations: Dilations = RINGS,
    iterations: int = 10,
    colour_scale: float = 0.3,
    position_weight: float = 0.01,
    kernel: Literal["par", "pamr"] = "par",
) -> Tensor:
    """Do the same without convolutions and without copies of the maps."""
    weights = _weights(images, dilations, colour_scale, position_weight, kernel, _stacked)[:, 0]
    for _ in range(iterations):
        views = _views(maps, dilations)
        maps = sum((v * weights[:, r : r + 1] for r, v in enumerate(views)), torch.zeros_like(maps))
    return maps


def _weights(
    images: Tensor,
    dilations: Dilations,
    scale: float,
    position_weight: float,
    kernel: str,
    copies: Callable[[Tensor, Dilations], Tensor],
) -> Tensor:
    """Weight of each neighbour, ``(B, 1, 8 * rings, H, W)``."""
    near, centre = copies(images, dilations), images.unsqueeze(2)
    difference = (near - centre).abs()
    if kernel == "pamr":  # its windows hold the pixel itself, once per ring
        window = torch.cat([near, centre.expand(-1, -1, len(dilations), -1, -1)], 2)
        sigma = window.std(2, keepdim=True)
        colour = -(difference / (1e-8 + scale * sigma)).mean(1, keepdim=True)
    else:
        sigma = near.std(2, keepdim=True)
        colour = -((difference / (sigma + 1e-8) / scale) ** 2).mean(1, keepdim=True)
    weights = colour.softmax(2)
    if not position_weight:
        return weights
    root = 2.0**0.5
    ring = torch.tensor([root, 1, root, 1, 1, root, 1, root], device=images.device)
    distance = torch.cat([ring * d for d in dilations])
    position = -((distance / (distance.std() + 1e-8) / scale) ** 2)
    return weights + position_weight * position.softmax(0).view(1, 1, -1, 1, 1)


def _one_hot(x: Tensor, dilations: Dilations) -> Tensor:
    """Copy the neighbours of each pixel: ``(B, C, H, W)`` to ``(B, C, 8 * rings, H, W)``."""
    batch, channels, height, width = x.shape
    taps = [t for t in range(9) if t != 4]
    kernel = torch.eye(9, dtype=x.dtype, device=x.device)[taps].reshape(8, 1, 3, 3)
    planes = x.reshape(batch * channels, 1, height, width)
    rings = [
        F.conv2d(F.pad(planes, (d, d, d, d), mode="replicate"), kernel, dilation=d)
        for d in dilations
    ]
    return torch.cat(rings, 1).reshape(batch, channels, -1, height, width)


def _stacked(x: Tensor, dilations: Dilations) -> Tensor:
    return torch.stack(_views(x, dilations), 2)


def _views(x: Tensor, dilations: Dilations) -> list[Tensor]:
    """View each neighbour in one padded copy."""
    height, width = x.shape[2:]
    p = max(dilations)
    padded = F.pad(x, (p, p, p, p), mode="replicate")
    return [
        padded[:, :, p + i * d : p + i * d + height, p + j * d : p + j * d + width]
        for d in dilations
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
        if i or j
    ]
