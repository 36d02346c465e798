"""Points of the permutohedral lattice: where a feature lies, and numbers to name the points by."""

from itertools import accumulate
from math import prod
from operator import mul

import torch
from torch import Tensor

__all__ = ["Codes", "barycentric", "locate"]


def locate(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, per coordinate, the point of colour 0, the rank of the remainder and the remainder.

    Points and remainders are in units of d + 1; rank 0 is the largest remainder.
    """
    dims = len(features)
    width = dims + 1
    elevated = features.new_empty(width, features.shape[1])
    total = torch.zeros_like(features[0])
    for i in range(dims, 0, -1):
        scaled = features[i - 1] * ((2 / 3) ** 0.5 * width / (i * (i + 1)) ** 0.5)
        elevated[i] = total - i * scaled
        total = total + scaled
    elevated[0] = total
    rounded = (elevated * (1 / width)).round_()
    excess = rounded.sum(0).to(torch.int8)
    rest = elevated - rounded * width
    rank = torch.zeros_like(rest, dtype=torch.int8)
    for i in range(dims):
        below = rest[i] < rest[i + 1 :]
        rank[i] += below.sum(0, dtype=torch.int8)
        rank[i + 1 :] += ~below
    # Rounding each coordinate may leave the plane of sum 0; the ranks say which to move back.
    rank += excess
    move = (rank < 0).to(torch.int8) - (rank > dims).to(torch.int8)
    rank += move * width
    rounded += move
    return rounded, rank, elevated.sub_(rounded * width).mul_(1 / width)


def barycentric(rank: Tensor, rest: Tensor) -> Tensor:
    """Return the weight of the corner of each colour, ``(d + 1, N)``."""
    ordered = torch.empty_like(rest).scatter_(0, rank.long(), rest).flip(0)
    return torch.cat([(ordered[:1] - ordered[-1:]).add_(1), ordered[1:] - ordered[:-1]])


class Codes:
    """Number lattice points so that steps are additions.

    The d + 1 coordinates of a point are congruent to its colour r modulo d + 1 and sum to 0: the
    first d quotients in a mixed radix, then r, name it.
    """

    def __init__(self, rounded: Tensor) -> None:
        self.width = len(rounded)
        low, high = rounded[:-1].aminmax(dim=1)
        sizes = (high - low + 6).tolist()  # corners and their neighbours stay inside
        # A remainder far from 0 has few digits left; the comparison is false for NaN too.
        far = rounded.abs().max() * self.width
        if not (far < 2**17 and prod(sizes) * self.width**self.width < 2**62):
            raise ValueError("features must span fewer standard deviations to fit on a lattice.")
        self._low = low - 3
        steps = list(accumulate(map(int, sizes[:-1]), mul, initial=1))
        self._steps = torch.tensor([*steps, 0], device=rounded.device)

    def simplices(self, rounded: Tensor, rank: Tensor) -> Tensor:
        """Return one number per simplex: its point of colour 0 and its order of ranks."""
        code = self._origin(rounded)
        for r in rank[:-1]:
            code = code.mul_(self.width).add_(r)
        return code

    def corners(self, rounded: Tensor, rank: Tensor) -> Tensor:
        """Return the numbers of the corners of each colour, ``(d + 1, simplices)``."""
        steps = self._steps[:, None].expand(rank.shape)
        by_rank = torch.empty_like(rank, dtype=torch.int64).scatter_(0, rank.long(), steps)
        # The corner of colour r has stepped back along the r coordinates of the largest ranks.
        back = by_rank[1:].flip(0).cumsum(0)
        corner = self._origin(rounded) - torch.cat([torch.zeros_like(back[:1]), back])
        return corner * self.width + torch.arange(self.width, device=rank.device)[:, None]

    def neighbours(self, vertices: Tensor) -> Tensor:
        """Return the rows of both neighbours in each direction, ``(d + 1, M + 1, 2)``."""
        count, width = len(vertices), self.width
        colour = vertices % width
        down = torch.where(colour == 0, width - 1 - width * self._steps.sum(), -1)
        wanted = vertices + down + width * self._steps[:, None]
        found = torch.searchsorted(vertices, wanted).clamp_(max=count - 1)
        found = torch.where(vertices.take(found) == wanted, found, count)
        missing = found.new_full((width, 1), count)
        found = torch.cat([found, missing], 1)
        own = torch.arange(count + 1, device=found.device).expand_as(found)
        inverse = torch.full_like(found, count).scatter_(1, found, own)
        inverse[:, count] = count
        return torch.stack([found, inverse], 2).int()

    def _origin(self, rounded: Tensor) -> Tensor:
        quotients = (rounded[:-1] - self._low[:, None]).long()
        return (quotients * self._steps[:-1, None]).sum(0)
