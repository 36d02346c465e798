"""Bilinear samples of coarse maps, exact where it matters, and their exact extremes."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Axis", "axis", "extent", "resize"]


class Axis(NamedTuple):
    """Bilinear samples along one axis: the cell each is in, and how far towards the next."""

    cell: Tensor
    fraction: Tensor


def axis(source: int, size: int, like: Tensor, *, corners: bool = False) -> Axis | None:
    """Place ``size`` samples over ``source`` cells (``align_corners=False``, clamped at the ends).

    None means that samples are cells. Otherwise sample ``i`` stands at
    ``((2 i + 1) source - size) / (2 size)``, whole numbers until the last division.

    With ``corners`` only the samples next to a border of cells are given: between two borders a
    bilinear map is linear along each axis, so its extremes are among their products.
    """
    if source == size:
        return None
    sample = torch.arange(size, device=like.device)
    if corners:
        border = torch.arange(source + 1, device=like.device)
        behind = -torch.div(source - (2 * border + 1) * size, 2 * source, rounding_mode="floor")
        sample = torch.stack([behind - 1, behind], 1).flatten().clamp_(0, size - 1)
    position = ((2 * sample + 1) * source - size).clamp_min_(0)
    cell = torch.div(position, 2 * size, rounding_mode="floor")
    return Axis(cell, (position - 2 * size * cell).to(like.dtype) / (2 * size))


def resize(
    maps: Tensor, rows: Axis | None, columns: Axis | None, *, out: Tensor, step: Tensor
) -> Tensor:
    """Resize ``maps (n, h, w)`` into ``out``, ``step`` being scratch; constants stay exact.

    Products and sums are steps of their own: a fused one might round differently in the tail of a
    vector, and the least of all samples would no longer be exactly the least of the corners.
    """
    wide = maps
    if columns is not None:
        slope = maps.diff(dim=2, append=maps[..., -1:]).index_select(2, columns.cell)
        wide = slope.mul_(columns.fraction).add_(maps.index_select(2, columns.cell))
    if rows is None:
        return out.copy_(wide)
    torch.index_select(wide, 1, rows.cell, out=out)
    torch.index_select(wide.diff(dim=1, append=wide[:, -1:]), 1, rows.cell, out=step)
    return out.add_(step.mul_(rows.fraction[:, None]))


def extent(
    maps: Tensor, rows: Axis | None, columns: Axis | None, relu: bool
) -> tuple[Tensor, Tensor]:
    """Return what to subtract from resized ``maps (n, S, h, w)`` and the factor after that.

    Both are ``(n, S, 1, 1)``; the samples then lie in [0, 1).
    """
    flat = maps.flatten(0, 1)
    sides = [
        side if along is None else len(along.cell)
        for side, along in zip(flat.shape[1:], (rows, columns), strict=True)
    ]
    out, step = flat.new_empty((2, len(flat), *sides))
    samples = resize(flat, rows, columns, out=out, step=step).flatten(1)
    low, high = samples.amin(1), samples.amax(1)
    if relu:
        low, high = low.clamp_min(0), high.clamp_min(0)
    shape = (*maps.shape[:2], 1, 1)
    return low.view(shape), (1 / (high - low + 1e-5)).view(shape)
