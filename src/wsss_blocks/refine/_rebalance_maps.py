"""The steps of class rebalancing on checked arguments: seeds, slots, weights, mask."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks.cam.box import box_to_valid
from wsss_blocks.pooling import patch_class_weights
from wsss_blocks.refine._present import put_back, take_present
from wsss_blocks.refine._rebalance_ids import best_channels, id_type, in_box, look_up, nothing
from wsss_blocks.refine.contract import NoRefiner, Refiner, add_background
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
    """Bring ``(B, D, h, w)`` to the common grid, in at least float32 but for a CPU's half types."""
    eager_cpu = features.device.type == "cpu" and not torch.compiler.is_compiling()
    if features.shape[-2:] == size:
        # There, what follows converts slab by slab: no copy of all the features.
        return features if eager_cpu else at_least_float32(features)
    features = at_least_float32(features)
    if eager_cpu and sum(size) <= 128:
        # The layout that torch resizes to so few cells in: it would copy there and back.
        features = features.contiguous(memory_format=torch.channels_last)
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
    if type(refiner) is NoRefiner:
        return best_channels(maps, labels > 0, images, refiner, box)
    kept = take_present(maps.unsqueeze(1), labels, at_least=2)
    winner = best_channels(kept.maps[:, 0], kept.mask[:, 1:], images, refiner, box)
    if kept.channels is None:
        return winner
    return look_up(kept.channels.to(id_type(maps.shape[1])), winner)


def take_slots(ids: Tensor, labels: Tensor, valid: Tensor) -> Slots:
    """Weigh the cells by the classes of a mask that the labels allow, background included.

    How many slots that takes depends on the labels, so it is found out on an eager CPU only: a GPU
    would have to wait for the number, and keeps all classes.
    """
    allowed = F.pad(labels > 0, (1, 0), value=True)
    classes, slots = allowed.shape[1], allowed.shape[1]
    if ids.device.type == "cpu" and not torch.compiler.is_compiling() and len(ids):
        slots = int(allowed.sum(1).max())
    kept = allowed.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    place = kept.argsort(dim=1).masked_fill(~allowed, slots)
    place = F.pad(place, (0, nothing(classes) + 1 - classes), value=slots)
    weights = patch_class_weights(
        look_up(place.to(id_type(slots + 1)), ids),
        size=(valid.shape[1], valid.shape[2]),
        num_classes=slots,
        valid=valid,
        ignore_index=slots,
    )
    present = weights.sum((2, 3)) > 0
    # Refiners take channel 0 for always present, so one of the classes that are goes there.
    order = present.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    weights = weights.gather(1, order[:, :, None, None].expand_as(weights))
    return Slots(kept.gather(1, order), present.gather(1, order), weights)


def spread_slots(maps: Tensor, slots: Slots, classes: int) -> Tensor:
    """Give the maps of slots ``(B, S, h, w)`` their place among all classes."""
    blank = maps.new_zeros(1, 1, 1, 1).expand(maps.shape[0], classes, *maps.shape[2:])
    return put_back(maps.unsqueeze(1), slots.ids, like=blank)


def decide(
    maps: Tensor, slots: Slots, images: Tensor, refiner: Refiner, box: Tensor | None, classes: int
) -> Tensor:
    """Refine the maps of the slots and take the best present class of each pixel in the box."""
    winner = best_channels(maps, slots.present[:, 1:], images, refiner, box)
    table = slots.ids.masked_fill(~slots.present.any(1, keepdim=True), nothing(classes))
    return in_box(look_up(table.to(id_type(classes)), winner), box, classes)
