"""Argument checks: name the argument, say what was expected and what came.

Shapes, dtypes and devices cost nothing and are always checked. Values (finite, range, mass) cost
a pass over the data and, on CUDA, a host sync: see :func:`values_are_checked`.
"""

import os
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "check_box",
    "check_choice",
    "check_finite",
    "check_floating",
    "check_fraction",
    "check_images",
    "check_int",
    "check_integer",
    "check_labels",
    "check_like_weight",
    "check_mask_values",
    "check_non_negative",
    "check_number",
    "check_positive",
    "check_same_device",
    "check_sequence",
    "check_shape",
    "check_size",
    "check_tensor",
    "check_valid",
    "values_are_checked",
]


def values_are_checked(x: Tensor) -> bool:
    """Tell whether tensor values may be looked at: eager CPU, or CUDA on explicit request."""
    if torch.compiler.is_compiling():
        return False
    if x.device.type in ("cpu", "meta"):  # a meta tensor has no values
        return x.device.type == "cpu"
    return os.environ.get("WSSS_BLOCKS_VALIDATE") == "1"


def _shown(shape: Collection[object]) -> str:
    return "(" + ", ".join(str(s) for s in shape) + ("," if len(shape) == 1 else "") + ")"


def check_tensor(name: str, x: object) -> None:
    """Raise unless ``x`` is a tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}.")


def check_shape(name: str, x: Tensor, axes: str, **sizes: int) -> None:
    """Raise unless ``x`` is a tensor with the axes ``"B K H W"``; ``sizes`` fixes some of them.

    An axis may also be written as a number (``"B 4"``). No axis but ``B`` may be empty.
    """
    check_tensor(name, x)
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
    check_tensor(name, x)
    if not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {x.dtype}.")


def check_integer(name: str, x: Tensor) -> None:
    """Raise unless ``x`` holds integers (bool is not one)."""
    check_tensor(name, x)
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer tensor, got {x.dtype}.")


def check_same_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless both tensors live on one device."""
    if x.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name} ({other.device}), got {x.device}."
        )


def check_like_weight(name: str, x: Tensor, weight: Tensor) -> None:
    """Raise unless ``x`` has the device and, where autocast does not cast, the dtype of weights."""
    check_same_device(name, x, "the weights", weight)
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"{name} must have the dtype of the weights ({weight.dtype}) outside autocast, "
            f"got {x.dtype}."
        )


def check_finite(name: str, x: Tensor, *, where: Tensor | None = None) -> None:
    """Raise on NaN or infinity where values are checked; outside ``where`` anything may stand."""
    if not values_are_checked(x) or not x.numel():
        return
    low, high = x.detach().aminmax()  # one pass without a copy; NaN comes through
    if -float("inf") < float(low) <= float(high) < float("inf"):
        return
    if where is not None:
        x = x.detach().masked_fill(~where, 0)
        low, high = x.aminmax()
    if not -float("inf") < float(low) <= float(high) < float("inf"):
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite values.")


def check_images(name: str, images: Tensor) -> None:
    """Raise unless ``images`` are floating-point ``(B, 3, H, W)`` RGB in [0, 1]."""
    check_shape(name, images, "B 3 H W")
    check_floating(name, images)
    if not values_are_checked(images) or not images.numel():
        return
    low, high = (float(v) for v in images.detach().aminmax())
    # Resampling overshoots a little; 0..255 or already normalised images by much more.
    if not -0.5 <= low <= high <= 1.5:
        check_finite(name, images)
        raise ValueError(
            f"{name} must be RGB in [0, 1], not normalised, got values from {low:.4g} "
            f"to {high:.4g}."
        )


def check_non_negative(name: str, x: Tensor) -> None:
    """Raise on negative values (or NaN) where values are checked."""
    if values_are_checked(x) and x.numel() and not bool((x >= 0).all()):
        raise ValueError(f"{name} must be >= 0, got a minimum of {float(x.min()):.4g}.")


def check_number(name: str, value: float) -> None:
    """Raise unless ``value`` is a Python or numpy number, not text or a sequence."""
    # The symbolic kinds are what a number can be while a graph is captured.
    if not isinstance(value, int | float | torch.SymInt | torch.SymFloat | np.number):
        raise TypeError(f"{name} must be a number, got {value!r}.")


def check_int(name: str, value: int, *, least: int | None = None) -> None:
    """Raise unless ``value`` is a whole number, at least ``least``."""
    if not isinstance(value, int | torch.SymInt | np.integer):
        raise TypeError(f"{name} must be an int, got {value!r}.")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def check_fraction(name: str, value: float) -> None:
    """Raise unless a number lies in [0, 1]."""
    check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}.")


def check_sequence(name: str, values: object) -> None:
    """Raise unless ``values`` can be counted and walked through and is not one string."""
    if not isinstance(values, tuple | list) and (
        isinstance(values, str | bytes)
        or not hasattr(values, "__len__")
        or not hasattr(values, "__iter__")
        or getattr(values, "ndim", 1) == 0
    ):
        raise TypeError(f"{name} must be a sequence, got {values!r}.")


def check_size(name: str, size: tuple[int, int] | None, *, optional: bool = False) -> None:
    """Raise unless ``size`` is two positive whole numbers (or, if ``optional``, None)."""
    if optional and size is None:
        return
    if not (
        isinstance(size, tuple | list)
        and len(size) == 2
        and all(isinstance(side, int | torch.SymInt | np.integer) and side > 0 for side in size)
    ):
        wanted = "None or two" if optional else "two"
        raise ValueError(f"{name} must be {wanted} positive sides (height, width), got {size!r}.")


def check_positive(name: str, value: float) -> None:
    """Raise unless a Python number is positive and finite."""
    check_number(name, value)
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}.")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices:
        listed = ", ".join(repr(c) for c in choices)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}.")


def check_labels(
    labels: Tensor, *, batch: int, num_classes: int, device: torch.device, name: str = "labels"
) -> None:
    """Raise unless ``labels`` is multi-hot ``(B, K)`` (numbers in ``[0, 1]``, no background)."""
    if isinstance(labels, Tensor) and labels.ndim == 2 and labels.shape[1] == num_classes + 1:
        raise ValueError(
            f"{name} must have shape (B, K) with B={batch}, K={num_classes}, "
            f"got {_shown(tuple(labels.shape))}: is there a background column too many?"
        )
    check_shape(name, labels, "B K", B=batch, K=num_classes)
    if labels.device != device:
        raise ValueError(f"{name} must be on {device}, got {labels.device}.")
    if labels.is_complex():
        raise TypeError(f"{name} must be a multi-hot tensor of numbers, got {labels.dtype}.")
    if (
        values_are_checked(labels)
        and labels.numel()
        and not bool(((labels >= 0) & (labels <= 1)).all())
    ):
        raise ValueError(
            f"{name} must be multi-hot with values in [0, 1], "
            f"got values from {float(labels.min()):.4g} to {float(labels.max()):.4g}."
        )


def check_mask_values(name: str, mask: Tensor, *, num_classes: int, ignore_index: int) -> None:
    """Raise where a mask holds an id that is neither in ``[0, num_classes)`` nor ignored."""
    check_int("ignore_index", ignore_index)
    if not values_are_checked(mask) or not mask.numel():
        return
    low, high = (int(v) for v in mask.aminmax())
    if low >= 0 and high < num_classes:
        return
    # Bytes take an eighth of the time; a scalar outside their range would be cut to it.
    bytes_do = min(low, ignore_index) >= 0 and max(high, ignore_index) < 256
    mask = mask.to(torch.uint8 if bytes_do else torch.int64)
    rest = mask.where(mask != ignore_index, 0)
    low, high = (int(v) for v in rest.aminmax())
    if low < 0 or high >= num_classes:
        bad = rest[(rest < 0) | (rest >= num_classes)]
        raise ValueError(
            f"{name} must hold ids in [0, {num_classes}) or ignore_index={ignore_index}, "
            f"got {int(bad[0])}."
        )


def check_valid(valid: Tensor | None, *, batch: int, size: tuple[int, int]) -> None:
    """Raise unless ``valid`` is None or a bool mask ``(B, h, w)`` of the maps' grid."""
    if valid is None:
        return
    check_shape("valid", valid, "B h w", B=batch, h=size[0], w=size[1])
    if valid.dtype != torch.bool:
        raise TypeError(f"valid must be a bool tensor, got {valid.dtype}.")


def check_box(box: Tensor | None, *, batch: int, device: torch.device | None = None) -> None:
    """Raise unless ``box`` is None or integer ``(B, 4)`` rows of top, left, bottom, right."""
    if box is None:
        return
    check_shape("box", box, "B 4", B=batch)
    check_integer("box", box)
    if device is not None and box.device != device:
        raise ValueError(f"box must be on {device}, got {box.device}.")
