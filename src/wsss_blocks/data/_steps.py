"""The three geometric steps: image, masks, box and geometry of a sample change together."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from wsss_blocks.data.sample import Sample

__all__ = ["crop", "flip", "rescale", "resize"]

Size = tuple[int, int]
IGNORED = 255


def flip(sample: Sample) -> Sample:
    """Mirror left and right."""
    width = sample["image"].shape[-1]
    top, left, bottom, right = sample["box"].unbind()
    new = _each_plane(sample, lambda plane, _: plane.flip(-1))
    new["box"] = torch.stack([top, width - right, bottom, width - left])
    new["geometry"] = sample["geometry"].flip()
    return new


def rescale(sample: Sample, factor: float) -> Sample:
    """Resize by a factor, to whole pixels."""
    height, width = sample["image"].shape[-2:]
    return resize(sample, (max(round(height * factor), 1), max(round(width * factor), 1)))


def resize(sample: Sample, size: Size) -> Sample:
    """Resize to ``size`` (height, width), the image with antialiasing."""
    height, width = sample["image"].shape[-2:]
    if (height, width) == size:
        return sample

    def change(plane: Tensor, is_mask: bool) -> Tensor:
        mode = InterpolationMode.NEAREST_EXACT if is_mask else InterpolationMode.BILINEAR
        return cast(Tensor, TF.resize(plane, list(size), interpolation=mode, antialias=True))

    new = _each_plane(sample, change)
    top, left, bottom, right = sample["box"].tolist()
    # Only pixels that are wholly image: the box is rounded inwards.
    top, left = -(-top * size[0] // height), -(-left * size[1] // width)
    bottom, right = bottom * size[0] // height, right * size[1] // width
    new["box"] = torch.tensor([top, left, max(bottom, top), max(right, left)])
    new["geometry"] = sample["geometry"].resize(size)
    return new


def crop(sample: Sample, top: int, left: int, size: Size, *, fill: float = 0.0) -> Sample:
    """Cut the window with corner ``(top, left)``; what lies outside the image is padding."""
    height, width = sample["image"].shape[-2:]
    padding = [-left, -top, left + size[1] - width, top + size[0] - height]
    if not any(padding):
        return sample

    def change(plane: Tensor, is_mask: bool) -> Tensor:
        value = float(IGNORED) if is_mask else fill
        return torch.nn.functional.pad(
            plane, [padding[0], padding[2], padding[1], padding[3]], value=value
        )

    new = _each_plane(sample, change)
    corner = torch.tensor([top, left, top, left])
    limit = torch.tensor([size[0], size[1], size[0], size[1]])
    new["box"] = torch.minimum((sample["box"] - corner).clamp_min(0), limit)
    new["geometry"] = sample["geometry"].crop(top, left, size)
    return new


def _each_plane(sample: Sample, change: Callable[[Tensor, bool], Tensor]) -> Sample:
    """Copy the sample with ``change(plane, is_mask)`` applied to ``(C, H, W)`` planes."""
    new = sample.copy()
    new["image"] = change(sample["image"], False)
    if "mask" in sample:
        new["mask"] = change(sample["mask"][None], True)[0]
    if "pseudo_mask" in sample:
        new["pseudo_mask"] = change(sample["pseudo_mask"][None], True)[0]
    return new
