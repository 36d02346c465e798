"""Random walks by their steps: what a step sums for each form of an affinity, and how many."""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_int,
    check_non_negative,
    check_number,
    check_same_device,
    check_sequence,
    check_shape,
)
from wsss_blocks.refine._stencil import NeighbourSum, check_unit, on_grid
from wsss_blocks.refine.affinity import NeighbourAffinity

__all__ = ["Affinity", "check_affinity", "check_options", "propagate"]

Affinity: TypeAlias = Tensor | NeighbourAffinity
Sum: TypeAlias = Callable[[Tensor], Tensor]  # (B, C, cells), over the sources of each cell

_FEW_CELLS = 400  # up to here one product with a matrix is faster than a sum for each neighbour


def check_options(beta: float, steps: int) -> None:
    """Raise unless the options of a walk are in range."""
    check_number("beta", beta)
    if not 1 <= beta < math.inf:
        raise ValueError(f"beta must be finite and at least 1, got {beta}.")
    check_int("steps", steps, least=0)


def check_affinity(affinity: Affinity, maps: Tensor) -> None:
    """Raise unless an affinity fits maps ``(B, ..., h, w)`` and its values are in range."""
    batch, (height, width) = maps.shape[0], maps.shape[-2:]
    if not isinstance(affinity, NeighbourAffinity):
        n = height * width
        check_shape("affinity", affinity, "B N N", B=batch, N=n)
        check_floating("affinity", affinity)
        check_same_device("affinity", affinity, "maps", maps)
        values = affinity.detach()
        if values.layout != torch.strided:
            values = values.to_sparse().coalesce().values()
        check_finite("affinity", values)
        check_non_negative("affinity", values)
        return
    values, offsets = affinity
    check_sequence("affinity.offsets", offsets)
    if not all(map(_is_forward, offsets)) or not 0 < len(offsets) == len(set(map(tuple, offsets))):
        raise ValueError(
            "affinity.offsets must be different pairs (dy, dx), each to the right or down, "
            f"got {offsets}."
        )
    check_shape("affinity.values", values, "B R h w", B=batch, R=len(offsets), h=height, w=width)
    check_unit("affinity.values", values)
    check_same_device("affinity.values", values, "maps", maps)


def _is_forward(offset: object) -> bool:
    if not isinstance(offset, tuple | list) or len(offset) != 2:
        return False
    dy, dx = offset
    return isinstance(dy, int) and isinstance(dx, int) and (dy, dx) > (0, 0)


def propagate(
    maps: Tensor, affinity: Affinity, valid: Tensor, *, beta: float, steps: int
) -> Tensor:
    """Walk with ``maps (B, C, h, w)`` among the ``valid (B, 1, h, w)`` cells, all of one dtype."""
    flat, inside = maps.flatten(2), valid.flatten(2)
    sources: Sum
    if not isinstance(affinity, NeighbourAffinity):
        form = _matrix_sum if affinity.layout == torch.strided else _sparse_sum
        sources = form(affinity.to(maps.dtype), beta)
        return _walk(sources, sources(inside), flat, inside, steps).view_as(maps)
    offsets = affinity.offsets
    weights = (affinity.values.to(maps.dtype) * on_grid(maps, offsets)) ** beta
    # What is off in the totals adds up over the steps: they are worth a sum in double precision.
    if flat.shape[2] <= _FEW_CELLS:
        matrix = NeighbourAffinity(weights, offsets).to_dense()
        sources = partial(torch.matmul, other=matrix)
        total = inside.double() @ matrix.double()
    else:
        recorded = torch.is_grad_enabled() and (maps.requires_grad or weights.requires_grad)
        near = NeighbourSum(weights, offsets, maps.shape[1], recorded=recorded)
        sources, total = near, near.once(inside.double())
    factors = _series(steps, torch.finfo(maps.dtype).eps)
    return _walk(sources, total.to(maps.dtype), flat, inside, factors).view_as(maps)


def _walk(
    sources: Sum, total: Tensor, maps: Tensor, valid: Tensor, factors: Sequence[float] | int
) -> Tensor:
    """Move maps ``(B, C, cells)`` among the valid cells; ``total`` is what these have as sources.

    ``factors`` is a number of steps, or weighs the Chebyshev polynomials of a step.
    """
    alive = (total > 0) & (valid > 0)
    share = torch.where(alive, total, 1).reciprocal() * alive
    maps = maps * valid

    def step(x: Tensor) -> Tensor:
        return sources(x) * share

    if isinstance(factors, int):
        walked = maps
        for _ in range(factors):
            walked = step(walked)
    else:
        before, now = maps, step(maps)
        walked = factors[0] * before + factors[1] * now
        for factor in factors[2:]:
            before, now = now, 2 * step(now) - before
            if factor:
                walked = walked + factor * now
    return torch.where(alive, walked, maps)  # what is tied to nothing stays as it is


def _series(steps: int, accuracy: float) -> Sequence[float] | int:
    r"""Factors of :math:`t^m = \sum_k c_k T_k(t)`, as few as leave ``accuracy``; else ``steps``.

    :math:`c_k` is the probability that the heads and tails of ``steps`` coins differ by k, so about
    :math:`\sqrt{2 m \log(2 / \text{accuracy})}` of them do, for eigenvalues within [-1, 1].
    """
    factors = [0.0] * (steps + 1)
    heads, kept, chance = steps // 2, 0.0, 1.0
    for i in range(1, steps - heads + 1):  # to steps-over-heads / 2 ** steps
        chance *= 1 - 0.5 / i
    for k in range(steps % 2, steps - 1, 2):
        factors[k] = 2 * chance if k else chance
        kept += factors[k]
        if 1 - kept < accuracy:
            return [factor / kept for factor in factors[: k + 1]]
        chance *= heads / (steps - heads + 1)
        heads -= 1
    return steps


def _matrix_sum(affinity: Tensor, beta: float) -> Sum:
    """Sum over the columns of ``affinity (B, N, N)``, its entries raised to ``beta``."""
    top = affinity.detach().amax(1, keepdim=True)
    # Shares of a column do not change with its scale: with the largest entry 1 no power underflows.
    weights = (affinity / top.clamp_min(torch.finfo(top.dtype).tiny)) ** beta
    return lambda maps: maps @ weights


def _sparse_sum(affinity: Tensor, beta: float) -> Sum:
    """Sum over the columns of sparse ``affinity (B, N, N)``: one block-diagonal matrix for all."""
    batch, n, _ = affinity.shape
    affinity = affinity.to_sparse().coalesce()
    image, source, target = affinity.indices().unbind(0)
    column = image * n + target
    values = affinity.values()
    top = values.new_zeros(batch * n).scatter_reduce(0, column, values.detach(), "amax")
    values = (values / top[column].clamp_min(torch.finfo(top.dtype).tiny)) ** beta
    place = torch.stack([column, image * n + source])
    size = (batch * n, batch * n)
    matrix = torch.sparse_coo_tensor(place, values, size, check_invariants=False).coalesce()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that compressed rows are young
        matrix = matrix.to_sparse_csr()

    def apply(maps: Tensor) -> Tensor:
        channels = maps.shape[1]
        columns = maps.transpose(0, 1).reshape(channels, batch * n).mT
        sums: Tensor = torch.sparse.mm(matrix, columns)
        return sums.mT.reshape(channels, batch, n).transpose(0, 1)

    return apply
