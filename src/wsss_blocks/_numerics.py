"""Precision rules shared by the blocks: reduce in at least float32, keep float64."""

import torch
from torch import Tensor

__all__ = ["at_least_float32", "first_argmax", "l2_normalize"]


def at_least_float32(x: Tensor) -> Tensor:
    """Upcast half precision (and integers) to float32; leave float32 and float64 alone."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def l2_normalize(x: Tensor, *, dim: int = -1, eps: float = 1e-6) -> Tensor:
    """Divide by the Euclidean norm in at least float32; a zero vector stays zero.

    The norm is clamped from below under the square root, so the gradient at zero is finite (slope
    1 / eps at most).
    """
    x = at_least_float32(x)
    return x * x.square().sum(dim, keepdim=True).clamp_min(eps**2).rsqrt()


def first_argmax(x: Tensor, dim: int) -> Tensor:
    """Return the lowest index of the maximum along ``dim``, as int32.

    ``Tensor.argmax`` does not promise the first of equal scores on every device, and on a CPU it
    is several times slower along an axis that is not the last.
    """
    size = x.shape[dim]
    shape = [1] * x.ndim
    shape[dim] = size
    ids = torch.arange(size, dtype=torch.int32, device=x.device).view(shape)
    return torch.where(x == x.amax(dim, keepdim=True), ids, size).amin(dim)
