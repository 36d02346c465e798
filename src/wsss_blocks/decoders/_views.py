"""Run a dense model on scaled and mirrored copies of images; shared by CAMs and logits."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import reduce
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._symbols import are_symbols
from wsss_blocks._validate import (
    check_choice,
    check_finite,
    check_floating,
    check_positive,
    check_sequence,
    check_shape,
    check_size,
)

__all__ = [
    "check_reductions",
    "largest_grid",
    "merge",
    "resize_maps",
    "run_scales",
    "split_mirrored",
]

REDUCTIONS = ("max", "mean", "sum")


def run_scales(
    name: str,
    fn: Callable[[Tensor], Tensor | tuple[Tensor, ...]],
    images: Tensor,
    *,
    scales: Sequence[float],
    flip: bool,
) -> list[Tensor | tuple[Tensor, ...]]:
    """Return the output of one forward per scale; ``flip`` appends the mirrored images.

    Sides are rounded half up. ``name`` is how messages call ``fn``.
    """
    check_shape("images", images, "B C H W")
    check_floating("images", images)
    check_finite("images", images)
    check_sequence("scales", scales)
    if not len(scales):
        raise ValueError("scales must name at least one scale, got none.")
    outputs = []
    for scale in scales:
        check_positive("scales", scale)
        x = images
        if scale != 1:
            sides = [_scaled(side, scale) for side in images.shape[-2:]]
            x = F.interpolate(images, size=sides, mode="bilinear", align_corners=False)
        out = fn(torch.cat([x, x.flip(-1)]) if flip else x)
        views = images.shape[0] * (2 if flip else 1)
        for maps in out if isinstance(out, tuple) else (out,):
            if not isinstance(maps, Tensor):
                raise TypeError(f"{name} must return tensors, got {type(maps).__name__}.")
            if maps.ndim != 4 or maps.shape[0] != views:
                raise ValueError(
                    f"{name} must return maps of shape (B, C, h, w) with B={views} "
                    f"(all views of one scale), got {tuple(maps.shape)}."
                )
            check_finite(f"the maps of {name}", maps)
        outputs.append(out)
    return outputs


def _scaled(side: int, scale: float) -> int:
    if not are_symbols(side):
        return max(1, int(side * scale + 0.5))
    # In whole numbers: torch.export would keep one value of a rounded product.
    top, bottom = Fraction(scale).limit_denominator(1000).as_integer_ratio()
    rounded = (2 * top * side + bottom) // (2 * bottom)
    return rounded if 2 * scale >= 1 else cast(int, torch.sym_max(1, rounded))


def split_mirrored(maps: Tensor, flip: bool) -> list[Tensor]:
    """Return the maps of the images and, un-mirrored, of their mirrored copies."""
    if not flip:
        return [maps]
    half = maps.shape[0] // 2
    return [maps[:half], maps[half:].flip(-1)]


def merge(maps: Sequence[Tensor], how: str) -> Tensor:
    """Reduce maps of one size by ``"max"``, ``"mean"`` or ``"sum"``."""
    if how == "max":
        return reduce(torch.maximum, maps)
    total = reduce(torch.add, maps)
    return total / len(maps) if how == "mean" else total


def largest_grid(maps: Sequence[Tensor], scales: Sequence[float]) -> tuple[int, int]:
    """Return the grid of the largest scale."""
    biggest = maps[list(scales).index(max(scales))]
    return biggest.shape[-2], biggest.shape[-1]


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bilinearly to ``size``."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def check_reductions(flip_reduce: str, scale_reduce: str, size: tuple[int, int] | None) -> None:
    """Raise unless both reductions are known and ``size`` is None or two positive sides."""
    check_choice("flip_reduce", flip_reduce, REDUCTIONS)
    check_choice("scale_reduce", scale_reduce, REDUCTIONS)
    check_size("size", size, optional=True)
