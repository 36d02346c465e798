"""What the poolings of maps share: checks, the flattened view, the mean of the largest."""

import torch
from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_same_device,
    check_shape,
    check_valid,
)

__all__ = ["check_maps", "flatten", "mean_of_largest"]


def check_maps(name: str, maps: Tensor, valid: Tensor | None, *, axes: str = "B K h w") -> None:
    """Raise unless ``maps`` are floating-point maps, finite where ``valid``, of the same grid."""
    check_shape(name, maps, axes)
    check_floating(name, maps)
    check_valid(valid, batch=maps.shape[0], size=(maps.shape[2], maps.shape[3]))
    if valid is not None:
        check_same_device("valid", valid, name, maps)
    check_finite(name, maps, where=None if valid is None else valid.unsqueeze(1))


def flatten(maps: Tensor, valid: Tensor | None, *, fill: float) -> tuple[Tensor, Tensor]:
    """Return ``(B, K, N)`` values, ``fill`` where invalid, and ``(B,)`` counts of valid ones."""
    values = maps.flatten(2)
    if valid is None:
        number = torch.full((maps.shape[0],), values.shape[2], device=maps.device)
        return values, number
    keep = valid.flatten(1)
    return values.masked_fill(~keep.unsqueeze(1), fill), keep.sum(1)


def mean_of_largest(values: Tensor, number: Tensor, *, most: int, dim: int = 2) -> Tensor:
    """Average the ``number`` (B,) largest of ``values`` along ``dim``, 0 where that is none.

    ``values`` have three axes, invalid ones are -inf; ``most`` bounds ``number``, so that the
    shapes are static.
    """
    top = at_least_float32(values.topk(most, dim=dim).values)
    ranks = torch.arange(most, device=values.device)
    ranks = ranks.unsqueeze(1) if dim == 1 else ranks
    top = top.masked_fill(ranks >= number.view(-1, 1, 1), 0)
    return (top.sum(dim) / number.clamp_min(1).unsqueeze(1)).to(values.dtype)
