"""Argument checks of class rebalancing."""

from collections.abc import Sequence

from torch import Tensor

from wsss_blocks._validate import (
    check_box,
    check_choice,
    check_finite,
    check_floating,
    check_fraction,
    check_images,
    check_int,
    check_integer,
    check_labels,
    check_mask_values,
    check_same_device,
    check_sequence,
    check_shape,
    check_size,
    check_tensor,
    check_valid,
)
from wsss_blocks.cam.box import check_inside
from wsss_blocks.refine._transport import check_options

__all__ = ["check_inputs", "check_settings"]

_LEAST_REG = 0.02  # the kernel exp((S - 1) / reg) of scores in [0, 1] is a float32 above this


def check_settings(
    threshold: float,
    size: tuple[int, int] | None,
    class_mass: str,
    reg: float,
    num_iters: int,
    ignore_index: int,
) -> None:
    """Raise unless the options of the module are legal."""
    check_fraction("threshold", threshold)
    check_size("size", size, optional=True)
    check_choice("class_mass", class_mass, ("uniform", "area"))
    check_options(reg, num_iters)
    if reg < _LEAST_REG:
        raise ValueError(f"reg must be at least {_LEAST_REG}, got {reg}.")
    check_int("ignore_index", ignore_index)


def check_inputs(
    images: Tensor,
    cam: Tensor | None,
    mask: Tensor,
    labels: Tensor,
    uss_features: Tensor | None,
    wss_features: Sequence[Tensor],
    box: Tensor | None,
    valid: Tensor | None,
    ignore_index: int,
) -> None:
    """Raise unless the arguments of a call fit together; features may still hold any values."""
    check_images("images", images)
    batch, _, height, width = images.shape
    check_tensor("labels", labels)
    check_shape("labels", labels, "B K", B=batch)
    classes = labels.shape[1]
    check_labels(labels, batch=batch, num_classes=classes, device=images.device)
    check_shape("mask", mask, "B H W", B=batch, H=height, W=width)
    check_integer("mask", mask)
    check_same_device("mask", mask, "images", images)
    if 0 <= ignore_index <= classes:
        raise ValueError(
            f"ignore_index must not be one of the classes 0..{classes}, got {ignore_index}."
        )
    check_mask_values("mask", mask, num_classes=classes + 1, ignore_index=ignore_index)
    check_box(box, batch=batch, device=images.device)
    if box is not None:
        check_inside(box, image_size=(height, width))
    if cam is not None:
        check_shape("cam", cam, "B K h w", B=batch, K=classes)
        _check_kind("cam", cam, images)
        check_finite("cam", cam)
    check_sequence("wss_features", wss_features)
    for features in wss_features:
        check_shape("wss_features", features, "B D h w", B=batch)
        _check_kind("wss_features", features, images)
    if uss_features is not None:
        check_shape("uss_features", uss_features, "B D h w", B=batch)
        check_valid(valid, batch=batch, size=(uss_features.shape[2], uss_features.shape[3]))
        if valid is not None:
            check_same_device("valid", valid, "images", images)
        _check_kind("uss_features", uss_features, images)
    elif valid is not None:
        raise ValueError("valid must come with uss_features, on whose grid it is, got no features.")


def _check_kind(name: str, x: Tensor, images: Tensor) -> None:
    check_floating(name, x)
    check_same_device(name, x, "images", images)
