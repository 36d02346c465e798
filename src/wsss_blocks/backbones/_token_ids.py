"""Check what every text encoder takes: token ids and the mask of real tokens."""

import torch
from torch import Tensor

from wsss_blocks._validate import (
    check_integer,
    check_same_device,
    check_shape,
    values_are_checked,
)

__all__ = ["check_token_ids"]


def check_token_ids(ids: Tensor, mask: Tensor, *, size: int, most: int, weight: Tensor) -> None:
    """Raise unless ``ids`` and ``mask`` are ``(B, T)`` with T <= ``most`` and ids < ``size``."""
    check_shape("ids", ids, "B T")
    check_integer("ids", ids)
    check_shape("mask", mask, "B T", B=ids.shape[0], T=ids.shape[1])
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor, got {mask.dtype}.")
    check_same_device("ids", ids, "the weights", weight)
    check_same_device("mask", mask, "ids", ids)
    if values_are_checked(ids) and ids.numel() and not 0 <= ids.min() <= ids.max() < size:
        raise ValueError(f"ids must lie in [0, {size}), got {int(ids.min())} to {int(ids.max())}.")
    if ids.shape[1] > most:
        raise ValueError(f"ids must have at most T={most} tokens, got {ids.shape[1]}.")
