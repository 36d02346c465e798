"""Draw Python numbers from a torch generator."""

import torch
from torch import Generator

__all__ = ["check_probability", "check_range", "uniform", "whole"]


def uniform(low: float, high: float, generator: Generator) -> float:
    """Draw a number from ``[low, high)``."""
    return low + (high - low) * torch.rand((), dtype=torch.float64, generator=generator).item()


def whole(low: int, high: int, generator: Generator) -> int:
    """Draw a whole number from ``low, ..., high``, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator).item())


def check_probability(p: float) -> None:
    """Raise unless ``p`` lies in ``[0, 1]``."""
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1], got {p}.")


def check_range(low: float, high: float) -> None:
    """Raise unless ``0 < low <= high``."""
    if not 0 < low <= high:
        raise ValueError(f"low and high must be 0 < low <= high, got {low} and {high}.")
