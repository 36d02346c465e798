"""Options of pseudo-labels: what may be passed, and the pair (low, high) of a threshold."""

import torch
from torch import Tensor

from wsss_blocks._validate import (
    check_choice,
    check_finite,
    check_floating,
    check_int,
    check_non_negative,
    check_number,
    check_positive,
    check_same_device,
    values_are_checked,
)

__all__ = ["Threshold", "check_options", "threshold_bounds"]

Threshold = float | tuple[float, float] | Tensor | None


def check_options(
    threshold: Threshold,
    background_power: float | None,
    normalize: str | None,
    ignore_index: int,
    dtype: torch.dtype,
    *,
    batch: int | None = None,
) -> None:
    """Raise unless the options are legal and fit each other."""
    _check_threshold(threshold, background_power, batch)
    if normalize is not None:
        check_choice("normalize", normalize, ("minmax",))
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {dtype!r}.")
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise TypeError(f"dtype must be an integer dtype, got {dtype}.")
    check_int("ignore_index", ignore_index)
    if torch.iinfo(dtype).max < ignore_index:
        raise ValueError(f"dtype must hold ignore_index={ignore_index}, got {dtype}.")


def threshold_bounds(threshold: Threshold, cam: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return (low, high), each ``(B,)`` in the precision of the scores; high None: the same."""
    if threshold is None:
        return None, None
    dtype = torch.promote_types(cam.dtype, torch.float32)
    if isinstance(threshold, Tensor):
        check_same_device("threshold", threshold, "cam", cam)
        columns = threshold.detach().to(dtype).view(len(cam), -1)
        return columns[:, 0], columns[:, 1] if columns.shape[1] == 2 else None
    low, high = threshold if isinstance(threshold, tuple | list) else (threshold, threshold)
    low_row, high_row = (cam.new_full((len(cam),), t, dtype=dtype) for t in (low, high))
    return low_row, high_row if high != low else None


def _check_threshold(
    threshold: Threshold, background_power: float | None, batch: int | None
) -> None:
    if background_power is not None:
        check_positive("background_power", background_power)
        if isinstance(threshold, Tensor) or threshold != 0.5:
            raise ValueError(
                f"threshold must be left at 0.5 with background_power, got {threshold}."
            )
    if isinstance(threshold, Tensor):
        check_floating("threshold", threshold)
        if tuple(threshold.shape) not in ((batch,), (batch, 2)):
            raise ValueError(
                f"threshold must have shape (B,) or (B, 2) with B={batch}, "
                f"got {tuple(threshold.shape)}."
            )
        check_finite("threshold", threshold)
        check_non_negative("threshold", threshold)
        if threshold.ndim == 2 and values_are_checked(threshold):
            bad = threshold[:, 0] > threshold[:, 1]
            if bool(bad.any()):
                raise ValueError(
                    f"threshold must hold low <= high, got {threshold[bad][0].tolist()}."
                )
    elif threshold is not None:
        pair = tuple(threshold) if isinstance(threshold, tuple | list) else (threshold, threshold)
        if len(pair) != 2:
            raise ValueError(f"threshold must be one number or (low, high), got {threshold!r}.")
        for value in pair:
            check_number("threshold", value)
        low, high = pair
        if not 0 <= low <= high:
            raise ValueError(f"threshold must be >= 0 with low <= high, got {threshold}.")
