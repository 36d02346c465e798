"""Counting integers of a mask without a wait for a GPU."""

import torch
from torch import Tensor

__all__ = ["count", "largest_byte"]


def count(index: Tensor, cells: int) -> Tensor:
    """Count how often each of ``0..cells-1`` occurs, without a host sync on a GPU."""
    if index.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.bincount(index, minlength=cells)
    return _count_by_scatter(index, cells)


def _count_by_scatter(index: Tensor, cells: int) -> Tensor:
    # torch.bincount reads the smallest and the largest index back to the host. A few interleaved
    # copies of the table keep neighbouring pixels, which mostly agree, off one atomic counter.
    copies = min(32, max(1, 2**20 // cells))
    lane = torch.arange(len(index), device=index.device) % copies
    table = torch.zeros(cells * copies, dtype=torch.int64, device=index.device)
    one = torch.ones((), dtype=torch.int64, device=index.device).expand(len(index))
    table.scatter_add_(0, index.long() * copies + lane, one)
    return table.view(cells, copies).sum(1)


def largest_byte(mask: Tensor) -> int | None:
    """Return the largest id if all are bytes, None if not or if looking would be a sync."""
    if mask.device.type != "cpu" or not mask.numel() or torch.compiler.is_compiling():
        return 255 if mask.dtype == torch.uint8 else None
    low, high = mask.aminmax()
    return int(high) if int(low) >= 0 and int(high) < 256 else None
