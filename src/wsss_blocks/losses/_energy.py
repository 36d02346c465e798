"""Checks of the dense energy loss, and its product with the kernel by each method."""

import torch
from torch import Tensor

from wsss_blocks._validate import (
    check_box,
    check_choice,
    check_finite,
    check_floating,
    check_images,
    check_int,
    check_integer,
    check_number,
    check_same_device,
    check_shape,
)
from wsss_blocks.ops.cell_kernel import cell_kernel
from wsss_blocks.ops.exact_kernel import exact_kernel
from wsss_blocks.ops.permutohedral import lattice_kernel

__all__ = ["check_inputs", "check_options", "messages"]

_METHODS = ("auto", "lattice", "exact", "cells")


def check_options(
    weight: float,
    sigma_rgb: float,
    sigma_xy: float,
    scale: float,
    method: str,
    ignore_index: int,
) -> None:
    """Raise on an option out of range."""
    check_number("weight", weight)
    if not 0 <= weight < float("inf"):
        raise ValueError(f"weight must be finite and >= 0, got {weight}.")
    for name, sigma in (("sigma_rgb", sigma_rgb), ("sigma_xy", sigma_xy)):
        check_number(name, sigma)
        if not 1e-6 <= sigma < float("inf"):  # less than that overflows
            raise ValueError(f"{name} must be finite and at least 1e-6, got {sigma}.")
    check_number("scale", scale)
    if not 0 < scale <= 1:
        raise ValueError(f"scale must be in (0, 1], got {scale}.")
    check_choice("method", method, _METHODS)
    check_int("ignore_index", ignore_index)


def check_inputs(logits: Tensor, images: Tensor, mask: Tensor | None, box: Tensor | None) -> None:
    """Raise on tensors that do not fit."""
    check_shape("logits", logits, "B C h w")
    check_floating("logits", logits)
    batch = logits.shape[0]
    check_images("images", images)
    check_shape("images", images, "B 3 H W", B=batch)
    check_same_device("images", images, "logits", logits)
    if mask is not None:
        check_shape("mask", mask, "B H W", B=batch, H=images.shape[2], W=images.shape[3])
        check_integer("mask", mask)
        check_same_device("mask", mask, "logits", logits)
    check_box(box, batch=batch, device=logits.device)
    check_finite("logits", logits)


def messages(
    colours: Tensor, probs: Tensor, valid: Tensor | None, deviation: float, method: str
) -> Tensor:
    """Return the sums over all pixels of ``probs (B, C, h, w)``, weighted by likeness.

    ``colours (B, 3, h, w)`` are in standard deviations; that of positions is given in pixels.
    Where ``valid (B, h, w)`` is False, probabilities are 0.
    """
    rows, columns = (torch.arange(n, device=probs.device) for n in probs.shape[-2:])
    places = torch.stack(torch.meshgrid(columns, rows, indexing="xy")).flatten(1).to(probs.dtype)
    places = (places / deviation).expand(len(probs), 2, -1)
    points = torch.cat([places, colours.flatten(2)], 1).mT
    with torch.autocast(probs.device.type, enabled=False):
        if method == "lattice":
            run = _by_lattice
            if torch.compiler.is_compiling():  # decorating it would import the compiler at once
                run = torch.compiler.disable(_by_lattice)  # type: ignore[no-untyped-call]
            return run(points, probs.flatten(2)).view_as(probs)
        if method == "cells":
            kernel = cell_kernel(points, valid=None if valid is None else valid.flatten(1))
        else:
            kernel = exact_kernel(points)
        return kernel(probs.flatten(2)).view_as(probs)


def _by_lattice(points: Tensor, probs: Tensor) -> Tensor:
    if not len(points):
        return probs
    try:
        return lattice_kernel(points)(probs)
    except ValueError as error:
        raise ValueError(
            "sigma_rgb and sigma_xy must be larger to fit an image of this size on a lattice "
            "(method 'exact' needs none), got a pixel too many deviations from another."
        ) from error
