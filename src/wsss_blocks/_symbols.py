"""Sizes that torch.export keeps open."""

import torch

__all__ = ["are_symbols"]


def are_symbols(*sizes: int) -> bool:
    """Tell whether a size is a symbol: a graph is exported for any image, so do not branch on it.

    To compare a symbol would fix it, or tie the graph to the sizes for which the answer holds.
    """
    return any(isinstance(size, torch.SymInt) for size in sizes)
