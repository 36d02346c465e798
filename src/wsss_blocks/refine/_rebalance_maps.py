"""The steps of class rebalancing on checked arguments: seeds, slots, weights, mask."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._numerics import at_least_float32, first_argmax
from wsss_blocks.cam.box import box_to_valid
from wsss_blocks.pooling import patch_class_weights
from wsss_blocks.refine._present import put_back, take_present
from wsss_blocks.refine.contract import Refiner, add_background
from wsss_blocks.refine.transport import transport_refine

__all__ = [
    "RebalancedMask",
    "Slots",
    "decide",
    "on_grid",
    "seed_classes",
    "spread_slots",
    "take_slots",
    "valid_cells",
    "whole_cells",
]

_WHOLE = 1 - 1e-4  # a resized cell none of whose taps is invalid, but for rounding


class RebalancedMask(NamedTuple):
    """Masks ``(B, H, W)``, the initial ones with seeds, and heat-maps ``(B, K+1, h, w)`` or None.

    ``mask`` is the result; ``initial`` is what the features were pooled with; ``heatmaps`` are the
    maps before the last refiner (background at 0, absent classes 0), None without features.
    """

    mask: Tensor
    initial: Tensor
    heatmaps: Tensor | None


class Slots(NamedTuple):
    """The classes that an image has pixels of, in places 0, 1, ... of a shorter axis."""

    ids: Tensor  # (B, S) class numbers, those that are there first, each part ascending
    present: Tensor  # (B, S) bool
    weights: Tensor  # (B, S, h, w), 0 where not present


def valid_cells(box: Tensor | None, like: Tensor, size: tuple[int, int]) -> Tensor:
    """Mark the cells ``(B, h, w)`` of a grid over the images ``like`` that lie in the box."""
    if box is None:
        return torch.ones(like.shape[0], *size, dtype=torch.bool, device=like.device)
    return box_to_valid(box, image_size=(like.shape[-2], like.shape[-1]), size=size)


def on_grid(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring ``(B, D, h, w)`` to the common grid, in at least float32."""
    features = at_least_float32(features)
    if features.shape[-2:] == size:
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


def whole_cells(valid: Tensor, size: tuple[int, int]) -> Tensor:
    """Mark the cells of another grid that a bilinear resize makes of valid cells only."""
    return on_grid(valid.unsqueeze(1).float(), size).squeeze(1) > _WHOLE


def seed_classes(
    cam: Tensor,
    images: Tensor,
    labels: Tensor,
    refiner: Refiner,
    box: Tensor | None,
    *,
    reg: float,
    num_iters: int,
) -> Tensor:
    """Decide each pixel of the images: a class of the transported CAM, or 0 where none wins."""
    valid = valid_cells(box, images, (cam.shape[2], cam.shape[3]))
    scores = at_least_float32(cam)
    moved = transport_refine(scores, labels, reg=reg, num_iters=num_iters, valid=valid)
    maps = add_background(moved, mode="power", value=1.0) * valid.unsqueeze(1)
    kept = take_present(maps.unsqueeze(1), labels, at_least=2)
    present = kept.mask[:, 1:].to(labels.dtype)
    winner = first_argmax(call_refiner(refiner, images, kept.maps[:, 0], present, box), 1).long()
    if kept.channels is not None:
        winner = kept.channels.gather(1, winner.flatten(1)).view_as(winner)
    return winner


def take_slots(
    mask: Tensor,
    labels: Tensor,
    valid: Tensor,
    *,
    ignore_index: int,
) -> Slots:
    """Weigh the cells by the classes of a mask that the labels allow, background included.

    How many slots that takes depends on the labels, so it is found out on an eager CPU only: a GPU
    would have to wait for the number, and keeps all classes.
    """
    allowed = F.pad(labels > 0, (1, 0), value=True)
    classes, slots = allowed.shape[1], allowed.shape[1]
    if mask.device.type == "cpu" and not torch.compiler.is_compiling() and len(mask):
        slots = int(allowed.sum(1).max())
    ids = allowed.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    place = ids.argsort(dim=1).masked_fill(~allowed, slots)
    place = F.pad(place, (0, 1), value=slots)  # of ignored pixels
    found = mask.long().where(mask != ignore_index, classes).flatten(1)
    slot_mask = place.gather(1, found).view_as(mask)
    weights = patch_class_weights(
        slot_mask,
        size=(valid.shape[1], valid.shape[2]),
        num_classes=slots,
        valid=valid,
        ignore_index=slots,
    )
    present = weights.sum((2, 3)) > 0
    # Refiners take channel 0 for always present, so one of the classes that are goes there.
    order = present.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    weights = weights.gather(1, order[:, :, None, None].expand_as(weights))
    return Slots(ids.gather(1, order), present.gather(1, order), weights)


def spread_slots(maps: Tensor, slots: Slots, classes: int) -> Tensor:
    """Give the maps of slots ``(B, S, h, w)`` their place among all classes."""
    blank = maps.new_zeros(1, 1, 1, 1).expand(maps.shape[0], classes, *maps.shape[2:])
    return put_back(maps.unsqueeze(1), slots.ids, like=blank)


def decide(
    maps: Tensor,
    slots: Slots,
    images: Tensor,
    refiner: Refiner,
    box: Tensor | None,
    *,
    ignore_index: int,
) -> Tensor:
    """Refine the maps of the slots and take the best present class of each pixel in the box."""
    refined = call_refiner(refiner, images, maps, slots.present[:, 1:].to(maps.dtype), box)
    # Slots that are not there come back as 0 and last: a tie with them goes to one that is.
    winner = first_argmax(refined, 1).long()
    mask = slots.ids.gather(1, winner.flatten(1)).view_as(winner)
    inside = valid_cells(box, images, (images.shape[2], images.shape[3]))
    return mask.masked_fill(~(inside & slots.present.any(1)[:, None, None]), ignore_index)


def call_refiner(
    refiner: Refiner, images: Tensor, maps: Tensor, labels: Tensor, box: Tensor | None
) -> Tensor:
    """Return what the refiner makes of the maps, if that has the shape it must have."""
    refined = refiner(images, maps, labels=labels, box=box)
    expected = (*maps.shape[:2], *images.shape[2:])
    if refined.shape != expected:
        raise ValueError(
            f"refiner must return maps of shape {tuple(expected)}, got {tuple(refined.shape)}."
        )
    return refined
