"""Counts behind the class weights of grid cells: pixels, exact overlaps, or centres."""

from typing import Literal

import torch
from torch import Tensor

from wsss_blocks._numerics import first_argmax
from wsss_blocks.ops.counting import count, largest_byte

__all__ = ["Assign", "class_fractions"]

Assign = Literal["area", "majority", "nearest"]


def class_fractions(
    mask: Tensor,
    size: tuple[int, int],
    num_classes: int,
    assign: Assign,
    ignore_index: int,
    dtype: torch.dtype,
) -> Tensor:
    """Compute the weights of checked arguments in ``dtype``."""
    # On a CPU most of the time is passes over the pixels: bytes take an eighth of it.
    mask = (
        mask.to(torch.uint8)
        if num_classes < 256 and largest_byte(mask) is not None
        else mask.long()
    )
    ids = mask if mask.dtype == torch.uint8 else mask.where(mask >= 0, num_classes)
    ids = ids.clamp_max(num_classes)  # of pixels that count for nothing
    if 0 <= ignore_index < num_classes:
        ids = ids.masked_fill(mask == ignore_index, num_classes)
    if assign == "nearest":
        rows = _centres(mask.shape[1], size[0], mask.device).unsqueeze(1)
        columns = _centres(mask.shape[2], size[1], mask.device)
        classes = torch.arange(num_classes, device=mask.device).view(-1, 1, 1)
        return (ids[:, None, rows, columns] == classes).to(dtype)
    if mask.shape[1] % size[0] == 0 and mask.shape[2] % size[1] == 0:
        areas = _votes(ids, size=size, num_classes=num_classes)
    else:
        keep = ids < num_classes
        areas = _areas(ids.where(keep, 0).long(), keep, size=size, num_classes=num_classes)
    if assign == "area":
        return areas.to(dtype) / (mask.shape[1] * mask.shape[2])
    classes = torch.arange(num_classes, dtype=torch.int32, device=mask.device).view(-1, 1, 1)
    return ((first_argmax(areas, 1).unsqueeze(1) == classes) & (areas > 0)).to(dtype)


def _votes(ids: Tensor, *, size: tuple[int, int], num_classes: int) -> Tensor:
    """Give what :func:`_areas` gives where each cell has whole pixels, by counting them."""
    (batch, height, width), (h, w), slots = ids.shape, size, num_classes + 1
    row = torch.arange(height, device=ids.device) // (height // h) * (w * slots)
    column = torch.arange(width, device=ids.device) // (width // w) * slots
    image = torch.arange(batch, device=ids.device) * (h * w * slots)
    index = ids.to(torch.int64, copy=True).add_(row[:, None] + column).add_(image[:, None, None])
    votes = count(index.flatten(), batch * h * w * slots).view(batch, h, w, slots)
    return votes[..., :num_classes].permute(0, 3, 1, 2).float() * (h * w)


def _areas(ids: Tensor, keep: Tensor, *, size: tuple[int, int], num_classes: int) -> Tensor:
    """Cover of each cell by each class (B, C, h, w), in units of 1 / (H W) of the cell.

    On an axis of W w units a pixel spans w and a cell W, so overlaps are integers, exact in float32
    up to 16.7 million pixels. A scatter adds up the columns: the product of the one-hot mask with
    the column overlaps, without the (B, C, H, W) one-hot mask. The rows are a matrix product.
    """
    batch, height, width = ids.shape
    h, w = size
    # Cells that a pixel can touch; exactly one where the pixels divide evenly among the cells.
    taps = 1 if width % w == 0 else (w - 1) // width + 2
    pixel = torch.arange(width, device=ids.device)
    cell = (pixel * w // width).unsqueeze(1) + torch.arange(taps, device=ids.device)
    overlap = _overlap(pixel.unsqueeze(1), cell, pixels=width, cells=w)
    row = torch.arange(height, device=ids.device)
    start = (ids * height + row.unsqueeze(1)) * w
    index = start.unsqueeze(3) + cell.clamp_max(w - 1)
    source = overlap.float() * keep.unsqueeze(3)
    covered = source.new_zeros(batch, num_classes * height * w)
    covered.scatter_add_(1, index.flatten(1), source.flatten(1))
    band = torch.arange(h, device=ids.device)
    rows = _overlap(row, band.unsqueeze(1), pixels=height, cells=h).float()
    with torch.autocast(ids.device.type, enabled=False):
        return rows @ covered.view(batch, num_classes, height, w)


def _overlap(pixel: Tensor, cell: Tensor, *, pixels: int, cells: int) -> Tensor:
    """Common length of pixels and cells of an axis of ``pixels * cells`` units."""
    end = torch.minimum((pixel + 1) * cells, (cell + 1) * pixels)
    return (end - torch.maximum(pixel * cells, cell * pixels)).clamp_min(0)


def _centres(pixels: int, cells: int, device: torch.device) -> Tensor:
    """Index of the pixel that holds the centre of each cell."""
    return (2 * torch.arange(cells, device=device) + 1) * pixels // (2 * cells)
