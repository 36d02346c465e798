"""CAM to label in plain torch on any device: present classes only, one plane at a time."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks.ops import bilinear

__all__ = ["Part", "cam_to_label", "strongest"]

_PIXELS_AT_ONCE = 2**18  # a handful of planes of so many pixels stays near the core


class Part(NamedTuple):
    """Some images of a batch: which, their best scores and the classes that have them."""

    images: slice
    best: Tensor  # (n, H, W)
    label: Tensor  # (n, H, W) whole numbers 0, 1..K in the type of the scores
    scratch: tuple[Tensor, Tensor]  # two more planes of that shape and type, to be overwritten


def cam_to_label(
    cam: Tensor,
    labels: Tensor,
    low: Tensor | None,
    high: Tensor | None,
    box: Tensor | None,
    height: int,
    width: int,
    power: float | None,
    relu: bool,
    minmax: bool,
    ignore_index: int,
    dtype: torch.dtype,
) -> Tensor:
    """Compute what the reference computes."""
    # Labels are held in the type of the scores, which has to hold each of them exactly.
    x = at_least_float32(cam) if ignore_index <= 2**24 else cam.double()
    floor = low if power is None else x.new_zeros(len(x))
    out = torch.empty((len(x), height, width), dtype=dtype, device=x.device)
    integers = None
    for images, best, label, (plane, mask) in strongest(
        x, labels, floor, (height, width), relu=relu, minmax=minmax
    ):
        if power is not None:
            torch.sub(1, best, out=plane)
            torch.gt(best, plane.clamp_min_(0).pow_(power), out=mask)
            label.mul_(mask)
        elif high is not None:
            torch.gt(label, 0, out=mask)
            mask.mul_(torch.le(best, high[images, None, None], out=plane))
            label.addcmul_(mask, torch.sub(label, ignore_index, out=plane), value=-1)
        if box is not None:
            label.sub_(ignore_index).mul_(_inside(box[images], label)).add_(ignore_index)
        if integers is None:
            small = torch.int32 if ignore_index < 2**31 else torch.int64
            integers = torch.empty_like(label, dtype=small)
        # By way of int32, and of one buffer of it: several times faster than from float at once.
        out[images] = integers[: len(label)].copy_(label)
    return out


def strongest(
    cam: Tensor,
    labels: Tensor,
    floor: Tensor | None,
    size: tuple[int, int],
    *,
    relu: bool,
    minmax: bool,
) -> Iterator[Part]:
    """Find the strongest present class of each pixel, a few images at a time.

    The present classes of an image stand in slots, in ascending order, and one slot after the
    other is resized. How many slots there are may be looked up on a CPU; on a GPU that would be a
    sync, so there are as many as classes.

    Args:
        cam: scores ``(B, K, h, w)`` in at least float32, or ``(B, K + 1, h, w)`` without a floor.
        labels: multi-hot ``(B, K)``.
        floor: the score that a class has to exceed, per image ``(B,)``; at least 0 if ``relu``.
            None: the score of channel 0.
        size: of the result.
        relu: drop negative scores after resizing.
        minmax: scale each map by its extremes at ``size``.

    Yields:
        Parts of the batch. Their memory is used again for the next part.
    """
    batch, first = len(cam), cam.shape[1] - labels.shape[1]
    present = labels > 0
    order = present.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    ids = torch.where(present.gather(1, order), order + 1, 0)
    if _cheap_to_read(cam):
        at_once = max(1, _PIXELS_AT_ONCE // (size[0] * size[1]))
        counts = present.sum(1).tolist()
    else:
        at_once, counts = max(1, batch), [labels.shape[1]] * batch
    sides = tuple(zip(cam.shape[-2:], size, strict=True))
    rows, columns = (bilinear.axis(source, side, cam) for source, side in sides)
    by_rows, by_columns = (bilinear.axis(source, side, cam, corners=True) for source, side in sides)
    # One allocation, used again by each part: fresh pages cost more than what is done with them.
    memory = cam.new_empty((5, min(at_once, batch), *size))
    for start in range(0, batch, at_once):
        images = slice(start, start + at_once)
        slots = max(counts[images])
        best, label, score, step, mask = memory[:, : len(counts[images])].unbind()
        taken = ids[images, :slots]
        maps = cam[images].take_along_dim((order[images, :slots] + first)[:, :, None, None], 1)
        # An empty slot loses against any background.
        maps = maps.masked_fill((taken == 0)[:, :, None, None], -1e30)
        if minmax:
            shift, factor = bilinear.extent(maps, by_rows, by_columns, relu)
        if floor is not None:
            best.copy_(floor[images, None, None].expand_as(best))
        else:
            channel = cam[images, :1]
            bilinear.resize(channel[:, 0], rows, columns, out=best, step=step)
            if relu:
                best.clamp_min_(0)
            if minmax:
                low, scale = bilinear.extent(channel, by_rows, by_columns, relu)
                best.sub_(low[:, 0]).mul_(scale[:, 0])
        label.zero_()
        # Scores are not rectified: with relu, `best` starts at 0 or above.
        for slot in range(slots):
            bilinear.resize(maps[:, slot], rows, columns, out=score, step=step)
            if minmax:
                score.sub_(shift[:, slot]).mul_(factor[:, slot])
            torch.gt(score, best, out=mask)
            # Identifiers ascend, so where a later class wins it has the larger one.
            torch.maximum(label, mask.mul_(taken[:, slot, None, None]), out=label)
            torch.maximum(best, score, out=best)
        yield Part(images, best, label, (score, mask))


def _cheap_to_read(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _inside(box: Tensor, like: Tensor) -> Tensor:
    """Mark the pixels inside boxes ``(n, 4)`` with 1, the others with 0."""
    top, left, bottom, right = box[:, :, None].unbind(1)
    row, column = (torch.arange(side, device=box.device) for side in like.shape[-2:])
    rows = ((row >= top) & (row < bottom)).to(like.dtype)
    columns = ((column >= left) & (column < right)).to(like.dtype)
    return rows[:, :, None] * columns[:, None, :]
