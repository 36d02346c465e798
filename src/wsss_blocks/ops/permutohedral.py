r"""Gaussian filtering on the permutohedral lattice: linear in the pixels, on a CPU.

Paper: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
Eurographics 2010, https://graphics.stanford.edu/papers/permutohedral/
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks.ops._lattice_points import Codes, barycentric, locate
from wsss_blocks.ops.mean_field import Kernel

__all__ = ["PermutohedralLattice", "lattice_kernel"]


def lattice_kernel(features: Tensor) -> Kernel:
    """Return the product with the Gaussian kernel of features ``(B, N, d)`` or ``(1, N, d)``.

    Each image has a lattice of its own: they are built, and run, one after the other.
    """
    lattices = [PermutohedralLattice(f) for f in features]

    def multiply(values: Tensor) -> Tensor:
        if len(lattices) == 1:
            return lattices[0](values.flatten(0, 1)).view_as(values)
        return torch.stack([f(v) for f, v in zip(lattices, values, strict=True)])

    return multiply


class PermutohedralLattice:
    r"""Approximate the product with :math:`K_{ij} = \exp(-|f_i - f_j|^2 / 2)`.

    Each pixel lies in a simplex of the lattice. Its value is spread over the d + 1 corners with
    the barycentric weights, blurred with (1/2, 1, 1/2) along each of the d + 1 directions (what
    would leave the set of touched corners is lost), and collected with the same weights.

    Constants and order are those of Krähenbühl's code, which pydensecrf wraps: scaling
    :math:`\sqrt{2/3}\,(d + 1)`, result times :math:`1 / (1 + 2^{-d})`. Gradients with respect to
    the values are exact: the transposed product blurs in the reverse order.

    To build it takes O(N d^2) and two sorts, of N numbers and of the corners of the simplices.
    It keeps 16 (d + 1) bytes per pixel (in float32) and 8 (d + 1) per corner.
    """

    def __init__(self, features: Tensor) -> None:
        """Put N pixels on the lattice: ``features (N, d)`` in units of the standard deviation."""
        pixels, dims = features.shape
        rounded, rank, rest = locate(features.detach().t())
        codes = Codes(rounded)
        simplex, order = codes.simplices(rounded, rank).sort()
        both = {"return_inverse": True, "return_counts": True}
        _, of_sorted, counts = torch.unique_consecutive(simplex, **both)
        starts = counts.cumsum(0) - counts
        first = order.index_select(0, starts)
        corners = codes.corners(rounded.index_select(1, first), rank.index_select(1, first))
        corners, entry = corners.flatten().sort()
        vertices, of_entry, spread = torch.unique_consecutive(corners, **both)
        self._neighbours = codes.neighbours(vertices)

        simplices, weights = len(counts), barycentric(rank, rest)
        vertex = torch.empty_like(entry).scatter_(0, entry, of_entry).view(dims + 1, simplices)
        of_pixel = torch.empty_like(order).scatter_(0, order, of_sorted)
        self._collect = vertex.int().t().contiguous().index_select(0, of_pixel)
        self._collect_weights = weights.t().contiguous() * (1 / (1 + 2.0**-dims))

        # The transposed matrix, row by row. Each corner of each simplex stands for a run of
        # pixels, so that only the corners needed sorting, not d + 1 numbers of each pixel.
        member, plane = entry % simplices, entry.div(simplices, rounding_mode="floor") * pixels
        lengths = counts.index_select(0, member)
        ends = lengths.cumsum(0)
        shift = starts.index_select(0, member) - ends + lengths
        shift = shift.int().repeat_interleave(lengths)
        run = torch.arange(len(shift), dtype=torch.int32, device=shift.device).add_(shift)
        self._spread = order.int().index_select(0, run)
        plane = plane.int().repeat_interleave(lengths).add_(self._spread)
        self._spread_weights = weights.flatten().index_select(0, plane)
        # The last row, of no entry, is the neighbour of those that have none.
        rows = F.pad(spread.cumsum(0), (1, 1), value=len(entry))
        rows[0] = 0
        self._offsets = F.pad(ends, (1, 0)).index_select(0, rows).int()

    def __call__(self, values: Tensor) -> Tensor:
        """Return the product with ``values (V, N)``."""
        return _filter(values, self, False)

    def filter(self, values: Tensor, *, transposed: bool) -> Tensor:
        """Return the product, or that with the transposed matrix, without recording it."""
        rows = torch.empty_like(values.t(), memory_format=torch.contiguous_format)
        rows.t().copy_(values)
        lattice = F.embedding_bag(
            self._spread,
            rows,
            self._offsets,
            mode="sum",
            per_sample_weights=self._spread_weights,
            include_last_offset=True,
        )
        steps = self._neighbours.flip(0) if transposed else self._neighbours
        for pair in steps:
            lattice = torch.add(lattice, F.embedding_bag(pair, lattice, mode="sum"), alpha=0.5)
        rows = F.embedding_bag(
            self._collect, lattice, mode="sum", per_sample_weights=self._collect_weights
        )
        return rows.t()


class _Filter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, lattice: PermutohedralLattice, transposed: bool
    ) -> Tensor:
        ctx.lattice, ctx.transposed = lattice, transposed
        return lattice.filter(values, transposed=transposed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _filter(grad, ctx.lattice, not ctx.transposed), None, None


def _filter(values: Tensor, lattice: PermutohedralLattice, transposed: bool) -> Tensor:
    out: Tensor = _Filter.apply(values, lattice, transposed)
    return out
