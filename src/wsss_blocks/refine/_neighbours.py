"""Rings of neighbours and the weights that pixel-adaptive refinement gives them."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._validate import (
    check_choice,
    check_int,
    check_number,
    check_positive,
    check_sequence,
)

__all__ = ["check_options", "neighbour_weights", "weighted_sum"]


def check_options(
    dilations: tuple[int, ...], iterations: int, scale: float, position_weight: float, kernel: str
) -> None:
    """Raise unless the options of pixel-adaptive refinement are in range."""
    check_sequence("dilations", dilations)
    if not dilations or not all(isinstance(d, int | np.integer) and d >= 1 for d in dilations):
        raise ValueError(f"dilations must be one or more integers >= 1, got {dilations}.")
    check_int("iterations", iterations, least=0)
    check_positive("colour_scale", scale)
    check_number("position_weight", position_weight)
    if not 0 <= position_weight < math.inf:
        raise ValueError(f"position_weight must be finite and >= 0, got {position_weight}.")
    check_choice("kernel", kernel, ("par", "pamr"))


def neighbour_weights(
    images: Tensor,
    dilations: tuple[int, ...],
    scale: float,
    position_weight: float,
    kernel: str,
) -> list[Tensor]:
    """Softmax of the colour kernel plus that of the distance: one ``(B, 1, H, W)`` a neighbour."""
    near = _neighbours(images, dilations)
    # The authors' codes guard against flat colour with 1e-8 outside (PAMR) or inside the scale.
    guard = 1e-8 if kernel == "pamr" else scale * 1e-8
    samples = near + [images] * len(dilations) if kernel == "pamr" else near
    inverse = 1 / (scale * _deviation(samples) + guard)
    shape = torch.abs if kernel == "pamr" else torch.square
    # The weights are the largest thing here. Without a gradient, each step of their softmax writes
    # where the one before has read: `room` is all that they take.
    recorded = inverse.requires_grad
    room = [None if recorded else torch.empty_like(inverse[:, :1]) for _ in near]
    planes = [
        torch.mean(shape((plane - images) * inverse), 1, keepdim=True, out=slot)
        for plane, slot in zip(near, room, strict=True)
    ]
    least = planes[0].detach().clone()
    for plane in planes[1:]:
        torch.minimum(least, plane.detach(), out=least)
    total = torch.zeros_like(least)
    for plane in planes:
        total.add_(plane.neg_().add_(least).exp_())
    share = 1 / total
    position = position_weight * _position_weights(images, dilations, scale)
    return [
        torch.addcmul(p, plane, share, out=slot)
        for p, plane, slot in zip(position, planes, room, strict=True)
    ]


def weighted_sum(maps: Tensor, weights: list[Tensor], dilations: tuple[int, ...]) -> Tensor:
    """Sum of the neighbours of each pixel of ``maps (B, C, H, W)``, times their weights."""
    near = _neighbours(maps, dilations)
    total = near[0] * weights[0]
    for plane, weight in zip(near[1:], weights[1:], strict=True):
        total.addcmul_(plane, weight)
    return total


def _neighbours(x: Tensor, dilations: tuple[int, ...]) -> list[Tensor]:
    """Views of one replicate-padded copy, one per neighbour: no shifted copies, no convolution."""
    height, width = x.shape[-2:]
    p = max(dilations)
    padded = F.pad(x, (p, p, p, p), mode="replicate")
    steps = (-1, 0, 1)
    offsets = [(dy * d, dx * d) for d in dilations for dy in steps for dx in steps if dy or dx]
    return [padded[..., p + y : p + y + height, p + x : p + x + width] for y, x in offsets]


def _position_weights(like: Tensor, dilations: tuple[int, ...], scale: float) -> Tensor:
    """Softmax of the distance kernel over the neighbours, ``(R,)``, made on the device."""
    tap = torch.arange(9, dtype=like.dtype, device=like.device)
    radius = torch.hypot(tap.div(3, rounding_mode="floor") - 1, tap.remainder(3) - 1)
    ring = torch.cat([radius[:4], radius[5:]])
    radii = torch.cat([ring * d for d in dilations])
    scores = (radii / (scale * (radii.std() + 1e-8))).square().neg()
    return scores.softmax(0)


def _deviation(samples: list[Tensor]) -> Tensor:
    # Two passes over views, the mean first: moments about the centre pixel would cancel badly
    # where a pixel stands out from flat surroundings.
    mean = samples[0] / len(samples)
    for plane in samples[1:]:
        mean.add_(plane, alpha=1 / len(samples))
    variance = (samples[0] - mean).square()
    for plane in samples[1:]:
        difference = plane - mean
        variance.addcmul_(difference, difference)
    # The floor keeps the slope of the root finite on flat colour; the weights are uniform there.
    return (variance / (len(samples) - 1)).clamp_min(1e-30).sqrt()
