"""Argument checks: name the argument, say what was expected and what came.

Shapes, dtypes and devices cost nothing and are always checked. Values (finite, range, mass) cost
a pass over the data and, on CUDA, a host sync: see :func:`values_are_checked`.
"""

import os
from collections.abc import Collection

import torch
from torch import Tensor

__all__ = [
    "check_box",
    "check_choice",
    "check_finite",
    "check_floating",
    "check_integer",
    "check_labels",
    "check_mask_values",
    "check_non_negative",
    "check_positive",
    "check_same_device",
    "check_shape",
    "check_valid",
    "values_are_checked",
]


def values_are_checked(x: Tensor) -> bool:
    """Tell whether tensor values may be looked at: eager CPU, or CUDA on explicit request."""
    if torch.compiler.is_compiling():
        return False
    return x.device.type == "cpu" or os.environ.get("WSSS_BLOCKS_VALIDATE") == "1"


def _shown(shape: Collection[object]) -> str:
    return "(" + ", ".join(str(s) for s in shape) + ("," if len(shape) == 1 else "") + ")"


def check_shape(name: str, x: Tensor, axes: str, **sizes: int) -> None:
    """Raise unless ``x`` is a tensor with the axes ``"B K H W"``; ``sizes`` fixes some of them.

    An axis may also be written as a number (``"B 4"``). No axis but ``B`` may be empty.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}.")
    letters = axes.split()
    wanted = [sizes.get(a, int(a) if a.isdigit() else None) for a in letters]
    fits = x.ndim == len(letters) and all(
        (n > 0 or a == "B") if w is None else n == w
        for a, w, n in zip(letters, wanted, x.shape, strict=True)
    )
    if not fits:
        known = ", ".join(f"{a}={sizes[a]}" for a in letters if a in sizes)
        suffix = f" with {known}" if known else ""
        raise ValueError(
            f"{name} must have shape {_shown(letters)}{suffix}, got {_shown(tuple(x.shape))}."
        )


def check_floating(name: str, x: Tensor) -> None:
    """Raise unless ``x`` holds floating-point numbers."""
    if not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {x.dtype}.")


def check_integer(name: str, x: Tensor) -> None:
    """Raise unless ``x`` holds integers (bool is not one)."""
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer tensor, got {x.dtype}.")


def check_same_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless both tensors live on one device."""
    if x.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name} ({other.device}), got {x.device}."
        )


def check_finite(name: str, x: Tensor) -> None:
    """Raise on NaN or infinity where values are checked."""
    if values_are_checked(x) and not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite values.")


def check_non_negative(name: str, x: Tensor) -> None:
    """Raise on negative values (or NaN) where values are checked."""
    if values_are_checked(x) and x.numel() and not bool((x >= 0).all()):
        raise ValueError(f"{name} must be >= 0, got a minimum of {float(x.min()):.4g}.")


def check_positive(name: str, value: float) -> None:
    """Raise unless a Python number is positive and finite."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}.")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices:
        listed = ", ".join(repr(c) for c in choices)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}.")


def check_labels(labels: Tensor, *, batch: int, num_classes: int, device: torch.device) -> None:
    """Raise unless ``labels`` is multi-hot ``(B, K)`` (numbers in ``[0, 1]``, no background)."""
    if isinstance(labels, Tensor) and labels.ndim == 2 and labels.shape[1] == num_classes + 1:
        raise ValueError(
            f"labels must have shape (B, K) with B={batch}, K={num_classes}, "
            f"got {_shown(tuple(labels.shape))}: is there a background column too many?"
        )
    check_shape("labels", labels, "B K", B=batch, K=num_classes)
    if labels.device != device:
        raise ValueError(f"labels must be on {device}, got {labels.device}.")
    if labels.is_complex():
        raise TypeError(f"labels must be a multi-hot tensor of numbers, got {labels.dtype}.")
    if (
        values_are_checked(labels)
        and labels.numel()
        and not bool(((labels >= 0) & (labels <= 1)).all())
    ):
        raise ValueError(
            "labels must be multi-hot with values in [0, 1], "
            f"got values from {float(labels.min()):.4g} to {float(labels.max()):.4g}."
        )


def check_mask_values(name: str, mask: Tensor, *, num_classes: int, ignore_index: int) -> None:
    """Raise where a mask holds an id that is neither in ``[0, num_classes)`` nor ignored."""
    if not values_are_checked(mask) or not mask.numel():
        return
    bad = (mask != ignore_index) & ((mask < 0) | (mask >= num_classes))
    if bool(bad.any()):
        raise ValueError(
            f"{name} must hold ids in [0, {num_classes}) or ignore_index={ignore_index}, "
            f"got {int(mask[bad][0])}."
        )


def check_valid(valid: Tensor | None, *, batch: int, size: tuple[int, int]) -> None:
    """Raise unless ``valid`` is None or a bool mask ``(B, h, w)`` of the maps' grid."""
    if valid is None:
        return
    check_shape("valid", valid, "B h w", B=batch, h=size[0], w=size[1])
    if valid.dtype != torch.bool:
        raise TypeError(f"valid must be a bool tensor, got {valid.dtype}.")


def check_box(box: Tensor | None, *, batch: int) -> None:
    """Raise unless ``box`` is None or integer ``(B, 4)`` rows of top, left, bottom, right."""
    if box is None:
        return
    check_shape("box", box, "B 4", B=batch)
    check_integer("box", box)
