"""Pairs of near cells: which there are, views of their far ends, sums over them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._validate import check_finite, check_floating, values_are_checked

__all__ = ["NeighbourSum", "Offsets", "check_unit", "half_disc", "on_grid", "path", "shifted"]

Offsets = tuple[tuple[int, int], ...]


def check_unit(name: str, x: Tensor) -> None:
    """Raise unless ``x`` is floating point and, where values are checked, in [0, 1]."""
    check_floating(name, x)
    check_finite(name, x)
    if values_are_checked(x) and x.numel():
        low, high = (float(v) for v in x.detach().aminmax())
        if not 0 <= low <= high <= 1:
            raise ValueError(f"{name} must be in [0, 1], got values from {low:.4g} to {high:.4g}.")


def half_disc(radius: int) -> Offsets:
    """List the offsets (dy, dx) nearer than ``radius``, one of each two opposite ones."""
    right = [(0, x) for x in range(1, radius)]
    down = [
        (y, x)
        for y in range(1, radius)
        for x in range(1 - radius, radius)
        if y * y + x * x < radius * radius
    ]
    return (*right, *down)


def path(dy: int, dx: int) -> Offsets:
    """List the cells between (0, 0) and (dy, dx), ends included: less than 1 off the line."""
    low, high = min(0, dx), max(0, dx)
    square = dy * dy + dx * dx
    return tuple(
        (y, x)
        for y in range(dy + 1)
        for x in range(low, high + 1)
        if (dy * x - dx * y) ** 2 < square
    )


def shifted(x: Tensor, offsets: Sequence[tuple[int, int]], *, fill: float = 0) -> list[Tensor]:
    """Views of one padded copy of ``x (..., h, w)``: what stands ``offset`` further down-right."""
    height, width = x.shape[-2:]
    p = max(max(abs(y), abs(x)) for y, x in offsets)
    padded = F.pad(x, (p, p, 0, p), value=fill)
    return [padded[..., dy : dy + height, p + dx : p + dx + width] for dy, dx in offsets]


def on_grid(like: Tensor, offsets: Offsets) -> Tensor:
    """``(1, R, h, w)``: 1 where the far end of a pair lies on the grid, else 0."""
    ones = like.new_ones(1, 1, *like.shape[-2:])
    return torch.cat(shifted(ones, offsets), 1)


class NeighbourSum:
    """Sum each cell and its neighbours, times their weights, over and over.

    A neighbour is a shift along one axis of all cells: what that brings from the other end of the
    next row meets a weight of 0.

    Args:
        weights: ``(B, R, h, w)``, each pair once and 0 where it leaves the grid.
        offsets: R pairs (dy, dx).
        channels: Number of maps of :meth:`__call__`.
        recorded: A gradient is wanted. Without one all sums read one buffer through the same
            views: making views is what costs on small grids.
    """

    def __init__(self, weights: Tensor, offsets: Offsets, channels: int, *, recorded: bool) -> None:
        batch, _, height, width = weights.shape
        self.cells = height * width
        shifts = [dy * width + dx for dy, dx in offsets]
        self.reach = max(abs(shift) for shift in shifts)
        self.starts = [self.reach + sign * shift for shift in shifts for sign in (1, -1)]
        flat = F.pad(weights.flatten(2), (self.reach, self.reach)).unsqueeze(2)
        self.planes = [
            plane[..., start : start + self.cells]
            for plane, shift in zip(flat.unbind(1), shifts, strict=True)
            for start in (self.reach, self.reach - shift)
        ]
        self.buffer = None
        if not recorded:
            self.buffer = flat.new_zeros(batch, channels, self.cells + 2 * self.reach)
            self.views = self._windows(self.buffer)

    def __call__(self, maps: Tensor) -> Tensor:
        """Return the sums of ``(B, channels, h * w)``."""
        if self.buffer is None:
            return self.once(maps)
        self.buffer[..., self.reach : self.reach + self.cells] = maps
        return self._total(maps, self.views)

    def once(self, maps: Tensor) -> Tensor:
        """Return the sums of maps of any number and precision."""
        return self._total(maps, self._windows(F.pad(maps, (self.reach, self.reach))))

    def _windows(self, padded: Tensor) -> list[Tensor]:
        return [padded[..., start : start + self.cells] for start in self.starts]

    def _total(self, maps: Tensor, windows: list[Tensor]) -> Tensor:
        total = maps.clone()
        for window, plane in zip(windows, self.planes, strict=True):
            total.addcmul_(window, plane)
        return total
