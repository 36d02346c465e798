"""Mean field of a dense CRF on image grids: the kernels of each method, and boxes."""

from functools import lru_cache

import torch
from torch import Tensor

from wsss_blocks.cam.box import box_to_valid
from wsss_blocks.ops.cell_kernel import cell_kernel
from wsss_blocks.ops.exact_kernel import exact_kernel, grid_kernel
from wsss_blocks.ops.mean_field import Kernel, mean_field
from wsss_blocks.ops.permutohedral import lattice_kernel

__all__ = ["infer"]


def infer(
    colours: Tensor,
    scores: Tensor,
    box: Tensor | None,
    iterations: int,
    gaussian: tuple[float, float],
    bilateral: tuple[float, float, float],
    method: str,
) -> Tensor:
    """Return probabilities for ``scores (B, G, C, H, W)``, minus infinity for absent classes.

    ``colours (B, 3, H, W)`` are in 0..255.
    """
    if method == "lattice":
        run = _by_lattice
        if torch.compiler.is_compiling():  # decorating it would import the compiler at once
            run = torch.compiler.disable(_by_lattice)  # type: ignore[no-untyped-call]
        return run(colours, scores, box, iterations, gaussian, bilateral)
    size = (scores.shape[-2], scores.shape[-1])
    valid = None if box is None else box_to_valid(box, image_size=size, size=size).flatten(1)
    kernels = _kernels(colours, gaussian, bilateral, method, valid)
    return mean_field(-scores.flatten(3), kernels, iterations, valid=valid).view_as(scores)


def _by_lattice(
    colours: Tensor,
    scores: Tensor,
    box: Tensor | None,
    iterations: int,
    gaussian: tuple[float, float],
    bilateral: tuple[float, float, float],
) -> Tensor:
    # Pixels outside a box would add points to the lattice: they are cut off, not masked.
    boxes = [[0, 0, *scores.shape[-2:]]] * len(scores) if box is None else box.tolist()
    refined = torch.empty_like(scores) if box is None else scores.softmax(2).clone()
    for b, (top, left, bottom, right) in enumerate(boxes):
        rows, columns = slice(top, bottom), slice(left, right)
        inside = scores[b : b + 1, :, :, rows, columns]
        if inside.numel():
            kernels = _kernels(colours[b : b + 1, :, rows, columns], gaussian, bilateral, "lattice")
            result = mean_field(-inside.flatten(3), kernels, iterations)
            refined[b : b + 1, :, :, rows, columns] = result.view_as(inside)
    return refined


def _kernels(
    colours: Tensor,
    gaussian: tuple[float, float],
    bilateral: tuple[float, float, float],
    method: str,
    valid: Tensor | None = None,
) -> list[tuple[Kernel, float]]:
    height, width = colours.shape[-2:]
    kernels: list[tuple[Kernel, float]] = []
    if gaussian[1]:
        kernel = (
            _position_lattice(height, width, gaussian[0], colours.dtype, colours.device)
            if method == "lattice"
            else grid_kernel(height, width, gaussian[0], like=colours)
        )
        kernels.append((kernel, gaussian[1]))
    if bilateral[2]:
        at = _positions(height, width, colours) / bilateral[0]
        at = at.expand(len(colours), 2, -1)
        points = torch.cat([at, colours.flatten(2) / bilateral[1]], 1).transpose(1, 2)
        if method == "lattice":
            kernel = _lattice("bilateral", bilateral, points)
        elif method == "cells":
            kernel = cell_kernel(points, valid=valid)
        else:
            kernel = exact_kernel(points)
        kernels.append((kernel, bilateral[2]))
    return kernels


def _positions(height: int, width: int, like: Tensor) -> Tensor:
    rows, columns = (torch.arange(n, device=like.device) for n in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()]).to(like.dtype)


@lru_cache(maxsize=4)
def _position_lattice(
    height: int, width: int, deviation: float, dtype: torch.dtype, device: torch.device
) -> Kernel:
    like = torch.empty(0, dtype=dtype, device=device)
    points = _positions(height, width, like) / deviation
    return _lattice("gaussian", (deviation,), points.t().unsqueeze(0))


def _lattice(name: str, value: tuple[float, ...], points: Tensor) -> Kernel:
    try:
        return lattice_kernel(points)
    except ValueError as error:
        wider = "must have wider deviations to fit an image of this size on a lattice"
        raise ValueError(f"{name} {wider} (method 'exact' needs none), got {value}.") from error
