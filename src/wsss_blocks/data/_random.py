"""Draw Python numbers from a torch generator."""

import math

import torch
from torch import Generator

from wsss_blocks._validate import check_fraction, check_int, check_number, check_sequence

__all__ = ["check_pair", "check_probability", "check_range", "check_sides", "uniform", "whole"]


def uniform(low: float, high: float, generator: Generator) -> float:
    """Draw a number from ``[low, high)``."""
    return low + (high - low) * torch.rand((), dtype=torch.float64, generator=generator).item()


def whole(low: int, high: int, generator: Generator) -> int:
    """Draw a whole number from ``low, ..., high``, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator).item())


def check_probability(p: float) -> None:
    """Raise unless ``p`` lies in ``[0, 1]``."""
    check_fraction("p", p)


def check_range(low: float, high: float, *, name: str = "low and high") -> None:
    """Raise unless ``0 < low <= high``, both finite."""
    check_number(name, low)
    check_number(name, high)
    if not 0 < low <= high < math.inf:
        raise ValueError(f"{name} must be 0 < low <= high, got {low} and {high}.")


def check_sides(size: tuple[int, int]) -> tuple[int, int]:
    """Return a size that is two whole numbers; raise for others."""
    check_sequence("size", size)
    if len(size) != 2:
        raise ValueError(f"size must be (height, width), got {size!r}.")
    for side in size:
        check_int("size", side)
    return size


def check_pair(name: str, pair: tuple[float, float]) -> None:
    """Raise unless ``pair`` is a range ``(low, high)`` of positive numbers."""
    check_sequence(name, pair)
    if len(pair) != 2:
        raise ValueError(f"{name} must be (low, high), got {pair!r}.")
    check_range(*pair, name=name)
