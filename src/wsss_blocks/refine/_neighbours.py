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

__all__ = ["check_options", "colour_weights", "neighbours", "position_weights"]


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


def neighbours(x: Tensor, dilations: tuple[int, ...]) -> list[Tensor]:
    """Views of one replicate-padded copy, one per neighbour: no shifted copies, no convolution."""
    height, width = x.shape[-2:]
    p = max(dilations)
    padded = F.pad(x, (p, p, p, p), mode="replicate")
    steps = (-1, 0, 1)
    offsets = [(dy * d, dx * d) for d in dilations for dy in steps for dx in steps if dy or dx]
    return [padded[..., p + y : p + y + height, p + x : p + x + width] for y, x in offsets]


def colour_weights(images: Tensor, dilations: tuple[int, ...], scale: float, kernel: str) -> Tensor:
    """Softmax of the colour kernel over the neighbours, ``(B, R, H, W)``."""
    near = neighbours(images, dilations)
    samples = near + [images] * len(dilations) if kernel == "pamr" else near
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
    sigma = (variance / (len(samples) - 1)).clamp_min(1e-30).sqrt()
    # The authors' codes guard against flat colour with 1e-8 outside (PAMR) or inside the scale.
    inverse = 1 / (scale * sigma + (1e-8 if kernel == "pamr" else scale * 1e-8))
    shape = torch.abs if kernel == "pamr" else torch.square
    scores = [shape((plane - images) * inverse).mean(1) for plane in near]
    return torch.stack(scores, 1).neg().softmax(1)


def position_weights(like: Tensor, dilations: tuple[int, ...], scale: float) -> Tensor:
    """Softmax of the distance kernel over the neighbours, ``(R, 1, 1)``, made on the device."""
    tap = torch.arange(9, dtype=like.dtype, device=like.device)
    radius = torch.hypot(tap.div(3, rounding_mode="floor") - 1, tap.remainder(3) - 1)
    ring = torch.cat([radius[:4], radius[5:]])
    radii = torch.cat([ring * d for d in dilations])
    scores = (radii / (scale * (radii.std() + 1e-8))).square().neg()
    return scores.softmax(0).view(-1, 1, 1)
