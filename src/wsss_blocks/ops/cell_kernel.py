"""Gaussian kernel between pixels and the means of the cells that the pixels fall into."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks.ops._dispatch import Backend, choose_backend
from wsss_blocks.ops.exact_kernel import gaussian_weights
from wsss_blocks.ops.mean_field import Kernel

__all__ = ["cell_kernel", "cell_messages"]

_PAIRS_AT_ONCE = 2**22


def cell_kernel(
    features: Tensor,
    *,
    cell: float = 1.0,
    valid: Tensor | None = None,
    backend: Backend = "auto",
) -> Kernel:
    r"""Approximate the product with :math:`K_{ij} = \exp(-|f_i - f_j|^2 / 2)` by cells.

    Space is cut into cubes. With :math:`m_c` the mean of the pixels in cube :math:`c`,

    .. math::

        (\tilde K v)_i = \sum_c e^{-|f_i - m_c|^2 / 2} \sum_{j \in c} v_j

    which is the exact product as ``cell`` goes to 0. Gradients with respect to the values are
    those of this sum; the features get none.

    M occupied cubes: O(N M) time, O(N) memory. Their number is read by the program that runs: with
    triton nothing waits for a GPU, and no tensor has a shape that depends on the data; the torch
    form reads it on the host, and so waits at each product on a GPU. Float64 takes the torch form.

    Args:
        features: Pixels in units of the standard deviation, ``(B, N, d)`` or ``(1, N, d)``.
        cell: Side of the cubes in standard deviations, the knob between speed and accuracy.
        valid: Pixels that means are taken over ``(B, N)``, bool; the values of others have to be 0.
        backend: "auto" (triton on a GPU), "torch" or "triton".
    """
    features = features.detach()
    batch, pixels, dims = features.shape
    run = choose_backend(backend, features)
    of_pixel, count = _cells(features / cell)
    # Rows of all images one after the other; each image has room for as many cells as pixels.
    row = (of_pixel + pixels * torch.arange(batch, device=features.device)[:, None]).flatten()
    weight = features.new_ones(batch * pixels) if valid is None else valid.flatten()
    exact = torch.cat([features.flatten(0, 1), weight.view(-1, 1).to(features.dtype)], 1).double()
    exact[:, :dims] *= exact[:, dims:]
    sums = exact.new_zeros(exact.shape).index_add(0, row, exact)
    means = (sums[:, :dims] / sums[:, dims:].clamp_min(1)).to(features.dtype)
    means = means.view(batch, pixels, dims).mT.contiguous()
    points, everyone = features.mT.contiguous(), torch.full_like(count, pixels)

    def multiply(values: Tensor) -> Tensor:
        shared = values if batch == len(values) else values.reshape(1, -1, pixels)
        channels = shared.shape[1]
        rows = shared.mT.reshape(-1, channels)
        rows = rows.new_zeros(rows.shape).index_add(0, row, rows)
        summed = rows.view(batch, pixels, channels).mT
        out: Tensor = cell_messages(points, means, summed, everyone, count, run)
        return out.view_as(values)

    return multiply


def _cells(scaled: Tensor) -> tuple[Tensor, Tensor]:
    """Number the unit cubes of points ``(B, N, d)``: that of each point, and how many per image."""
    corner = scaled.floor()
    order = torch.arange(scaled.shape[1], device=scaled.device).expand(scaled.shape[:2])
    # Stable sorts, one axis after the other: corners may be too far apart for a key of 64 bits.
    for axis in corner.unbind(2):
        order = order.gather(1, axis.gather(1, order).argsort(dim=1, stable=True))
    ordered = corner.take_along_dim(order.unsqueeze(2), 1)
    number = F.pad((ordered[:, 1:] != ordered[:, :-1]).any(2).cumsum(1), (1, 0))
    return torch.empty_like(number).scatter(1, order, number), (number[:, -1] + 1).int()


@torch.library.custom_op("wsss_blocks::cell_messages", mutates_args=())
def cell_messages(
    to: Tensor,
    source: Tensor,
    values: Tensor,
    num_to: Tensor,
    num_source: Tensor,
    backend: str,
) -> Tensor:
    r"""Sum :math:`v_j \exp(-|t_i - s_j|^2 / 2)` over the sources j.

    Args:
        to: Points ``(B, d, T)``.
        source: Points ``(B, d, S)``.
        values: Of the sources, ``(B, V, S)``.
        num_to: How many of the points exist, ``(B,)`` int32; the sums of the others are 0.
        num_source: How many of the sources exist, ``(B,)`` int32.
        backend: "torch" or "triton" (float32 only: other dtypes take the torch form).

    Returns:
        Sums ``(B, V, T)``.
    """
    if backend == "triton" and values.dtype == torch.float32:
        from wsss_blocks.ops import triton_cells

        return triton_cells.cell_messages(to, source, values, num_to, num_source)
    return _in_tiles(to, source, values, num_to, num_source)


@cell_messages.register_fake
def _(
    to: Tensor,
    source: Tensor,
    values: Tensor,
    num_to: Tensor,
    num_source: Tensor,
    backend: str,
) -> Tensor:
    return values.new_empty((*values.shape[:2], to.shape[2]))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    to, source, _, num_to, num_source, ctx.backend = inputs
    ctx.save_for_backward(to, source, num_to, num_source)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    to, source, num_to, num_source = ctx.saved_tensors
    # The transposed product: points and sources change places.
    back = cell_messages(source, to, grad, num_source, num_to, ctx.backend)
    return None, None, back, None, None, None


cell_messages.register_autograd(_backward, setup_context=_remember)


def _in_tiles(
    to: Tensor, source: Tensor, values: Tensor, num_to: Tensor, num_source: Tensor
) -> Tensor:
    out = values.new_zeros((*values.shape[:2], to.shape[2]))
    if not len(values):
        return out
    targets, sources = int(num_to.max()), int(num_source.max())
    beyond = torch.arange(sources, device=source.device) >= num_source[:, None]
    values = values[:, :, :sources].masked_fill(beyond[:, None], 0)
    source = source[:, :, :sources].mT.contiguous()
    tile = max(1, _PAIRS_AT_ONCE // max(1, len(values) * sources))
    for start in range(0, targets, tile):
        part = slice(start, min(start + tile, targets))
        weights = gaussian_weights(to[:, :, part].mT.contiguous(), source)
        torch.bmm(values, weights.mT, out=out[:, :, part])
    beyond = torch.arange(targets, device=to.device) >= num_to[:, None]
    out[:, :, :targets].masked_fill_(beyond[:, None], 0)
    return out
