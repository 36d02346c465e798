"""The only place that talks to torch.distributed: gathers with gradients, means over ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "all_gather_with_grad",
    "gather_objects",
    "mean_over_ranks",
    "rank",
    "sum_over_ranks",
    "world_size",
]


def world_size() -> int:
    """Return the number of processes, 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the index of this process, 0 outside a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _AllGather(torch.autograd.Function):
    # torch.distributed.nn.all_gather and the functional collectives warn of their own removal
    # on torch 2.13 and 2.15; this pair of public calls has the same gradient, silently.
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # A copy, always: all_reduce works in place, and autograd may share this gradient.
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]


def all_gather_with_grad(x: Tensor) -> Tensor:
    """Concatenate the equally shaped ``x`` of all ranks along axis 0, differentiably.

    The backward sums over ranks what each rank's loss sends back, so the gradient of the sum of
    all ranks' losses arrives on the rank that owns the rows.

    Args:
        x: ``(B, ...)``, the same shape on each rank.

    Returns:
        ``(world_size * B, ...)``; ``x`` itself in a single process.
    """
    return x if world_size() == 1 else _AllGather.apply(x)


def gather_objects(x: object) -> list[Any]:
    """Return what each rank calls this with, in the order of the ranks, on every rank.

    Args:
        x: anything that can be pickled; each rank its own.

    Returns:
        One object per rank; ``[x]`` in a single process.
    """
    if world_size() == 1:
        return [x]
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, x)
    return parts


def sum_over_ranks(x: Tensor) -> Tensor:
    """Return the sum of ``x`` over all ranks, without gradient and without touching ``x``."""
    if world_size() == 1:
        return x.detach()
    # Collectives sum raw storage: ranks with different strides would mix up elements.
    total = x.detach().clone(memory_format=torch.contiguous_format)
    if not x.is_cuda and dist.get_backend() == "nccl":  # it sums on GPUs only
        total = total.cuda()
    dist.all_reduce(total)
    return total.to(x.device)


def mean_over_ranks(total: Tensor, count: Tensor, *, gather_distributed: bool) -> Tensor:
    r"""Divide a sum by its count, 0 where the count is 0.

    .. math:: \frac{W \, s_r}{\max(\sum_r c_r, 1)}

    With ``gather_distributed`` the count of all :math:`W` ranks divides, so that the average of
    the ranks' gradients, which DistributedDataParallel takes, is the gradient of the mean over all
    contributing items, however unevenly they are spread.

    Args:
        total: differentiable sum of this rank.
        count: number of items in ``total``, broadcastable to it.
        gather_distributed: count over all ranks.

    Returns:
        Tensor of the shape of ``total``.
    """
    ranks = 1
    if gather_distributed:
        count, ranks = sum_over_ranks(count), world_size()
    return total * ranks / count.clamp_min(1)
