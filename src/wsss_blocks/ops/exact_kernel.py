"""Gaussian kernels without approximation: every pair of pixels, or separable on a grid."""

from typing import Any

import torch
from torch import Tensor

from wsss_blocks.ops.mean_field import Kernel

__all__ = ["exact_kernel", "gaussian_weights", "grid_kernel"]

_PAIRS_AT_ONCE = 2**22


def exact_kernel(features: Tensor) -> Kernel:
    r"""Return the product with :math:`K_{ij} = \exp(-|f_i - f_j|^2 / 2)`, all pairs, in tiles.

    O(N^2) time; O(N) memory, and 32 MiB for a tile. Gradients go to the values, not the features.

    Args:
        features: Pixels in units of the standard deviation, ``(B, N, d)`` or ``(1, N, d)``.
    """

    def multiply(values: Tensor) -> Tensor:
        shared = values if len(features) == len(values) else values.reshape(1, -1, values.shape[-1])
        out: Tensor = _Product.apply(shared, features)
        return out.view_as(values)

    return multiply


def grid_kernel(height: int, width: int, deviation: float, *, like: Tensor) -> Kernel:
    """Return the product with the kernel of pixel positions: a Gaussian of each axis in turn.

    O(N (H + W)) time, in the dtype and on the device of ``like``.
    """
    rows, columns = (_gaussian(n, deviation, like) for n in (height, width))

    def multiply(values: Tensor) -> Tensor:
        grid = values.reshape(*values.shape[:2], height, width)
        return (rows @ (grid @ columns)).flatten(2)

    return multiply


def gaussian_weights(a: Tensor, b: Tensor) -> Tensor:
    r"""Return :math:`\exp(-|a_i - b_j|^2 / 2)` of points ``(B, N, d)`` and ``(B, M, d)``."""
    # Squares of differences: |a|^2 + |b|^2 - 2 ab would cancel in float32.
    distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    # Below -80 nothing is left to add, and exp is many times slower on denormal results.
    return distance.square_().mul_(-0.5).clamp_(min=-80).exp_()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, features: Tensor) -> Tensor:
        ctx.save_for_backward(features)
        batch, pixels = len(features), features.shape[1]
        tile = max(1, _PAIRS_AT_ONCE // max(1, batch * pixels))
        parts = []
        for start in range(0, pixels, tile):
            some = features[:, start : start + tile]
            parts.append(values @ gaussian_weights(some, features).transpose(1, 2))
        return torch.cat(parts, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (features,) = ctx.saved_tensors
        return _Product.apply(grad, features), None


def _gaussian(count: int, deviation: float, like: Tensor) -> Tensor:
    at = torch.arange(count, dtype=like.dtype, device=like.device) / deviation
    return (at[:, None] - at).square().mul(-0.5).exp()
