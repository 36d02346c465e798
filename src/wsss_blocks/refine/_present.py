"""Present channels of maps: check, gather, softmax, scatter back. Shared by the refiners."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_box,
    check_finite,
    check_floating,
    check_images,
    check_labels,
    check_non_negative,
    check_same_device,
    check_shape,
)

__all__ = [
    "PresentMaps",
    "as_sets",
    "check_images_and_maps",
    "check_refiner_inputs",
    "present_softmax",
    "put_back",
    "resize_sets",
    "take_present",
]


class PresentMaps(NamedTuple):
    """Maps reduced to the channels that some image needs."""

    maps: Tensor  # (B, G, P, h, w), absent channels zeroed
    mask: Tensor  # (B, P) bool, True where the channel is present in that image
    channels: Tensor | None  # (B, P) their numbers, ascending where present; None = all, in order


def check_images_and_maps(images: Tensor, maps: Tensor, *, name: str = "maps") -> None:
    """Raise unless images are ``(B, 3, H, W)`` and maps fit them in batch, type and device."""
    check_shape("images", images, "B 3 H W")
    check_floating("images", images)
    if isinstance(maps, Tensor) and maps.ndim == 5:
        check_shape(name, maps, "B G C h w", B=images.shape[0])
    else:
        check_shape(name, maps, "B C h w", B=images.shape[0])
    check_floating(name, maps)
    check_same_device(name, maps, "images", images)


def check_refiner_inputs(
    images: Tensor,
    maps: Tensor,
    labels: Tensor | None,
    box: Tensor | None,
    *,
    name: str = "maps",
) -> None:
    """Raise unless shapes, types and labels follow the Refiner contract."""
    check_images("images", images)
    check_images_and_maps(images, maps, name=name)
    if labels is not None:
        channels = maps.shape[-3]
        batch, device = images.shape[0], images.device
        check_labels(labels, batch=batch, num_classes=channels - 1, device=device)
    check_box(box, batch=images.shape[0], device=images.device)


def as_sets(maps: Tensor) -> Tensor:
    """View ``(B, C, h, w)`` as one set ``(B, 1, C, h, w)``."""
    return maps if maps.ndim == 5 else maps.unsqueeze(1)


def resize_sets(maps: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Resize ``(B, G, C, h, w)`` bilinearly, in at least float32."""
    if maps.shape[-2:] == size:
        return maps
    planes = at_least_float32(maps).flatten(1, 2)
    planes = F.interpolate(planes, size=size, mode="bilinear", align_corners=align_corners)
    return planes.view(*maps.shape[:3], *size)


def take_present(
    maps: Tensor, labels: Tensor | None, *, at_least: int = 1, name: str = "maps"
) -> PresentMaps:
    """Keep background and the present classes of ``maps (B, G, C, h, w)``, scores >= 0.

    How many channels that is depends on the data, so only eager CPU tensors are made smaller: a
    GPU would have to wait for the number, and keeps all channels.
    """
    batch, groups, channels, height, width = maps.shape
    if labels is None:
        _check_scores(name, maps)
        every = torch.ones(batch, channels, dtype=torch.bool, device=maps.device)
        return PresentMaps(maps, every, None)
    mask = F.pad(labels > 0, (1, 0), value=True)
    index = None
    if maps.device.type == "cpu" and batch and not torch.compiler.is_compiling():
        kept = max(int(mask.sum(1).max()), at_least)
        if kept < channels:
            order = mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)
            index = order[:, :kept]
            mask = mask.gather(1, index)
            where = index[:, None, :, None, None].expand(-1, groups, -1, height, width)
            maps = maps.gather(2, where)
    maps = maps.masked_fill(~mask[:, None, :, None, None], 0)
    _check_scores(name, maps)  # here, where few channels are left: it costs passes over the data
    return PresentMaps(maps, mask, index)


def present_softmax(maps: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the present channels of ``(B, G, P, h, w)``; the others come back as 0."""
    absent = ~mask[:, None, :, None, None]
    return at_least_float32(maps).masked_fill(absent, -torch.inf).softmax(2)


def put_back(refined: Tensor, index: Tensor | None, *, like: Tensor) -> Tensor:
    """Scatter ``(B, G, P, H, W)`` to all channels, in the layout and dtype of ``like``."""
    refined = refined.to(like.dtype)
    if index is not None:
        batch, groups, _, height, width = refined.shape
        blank = refined.new_zeros(batch, groups, like.shape[-3], height, width)
        where = index[:, None, :, None, None].expand_as(refined)
        refined = blank.scatter_(2, where, refined)
    return refined if like.ndim == 5 else refined.squeeze(1)


def _check_scores(name: str, maps: Tensor) -> None:
    check_finite(name, maps)
    check_non_negative(name, maps)
