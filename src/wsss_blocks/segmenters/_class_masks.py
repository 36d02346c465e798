"""One binary mask per class of an image, and the likeliest of those that overlap."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._numerics import at_least_float32, first_argmax, l2_normalize
from wsss_blocks.refine import Refiner, morphological_closing

__all__ = ["RankedClasses", "class_maps", "cover", "cut", "rank_classes"]

_FLAT = 1e-6  # a map of cosines that varies by less is all rounding


class RankedClasses(NamedTuple):
    """The classes of each image, the likeliest first."""

    order: Tensor  # (B, M) columns of the scores
    taken: Tensor  # (B, M) bool: the image has fewer than M


def rank_classes(scores: Tensor, taken: Tensor, *, most: int) -> RankedClasses:
    """Sort the classes of ``scores (B, K)`` that are ``taken``; M is at most ``most``."""
    most = min(most, scores.shape[1])
    if scores.device.type == "cpu" and not torch.compiler.is_compiling():
        # Maps of classes that no image has cost time; a GPU would wait for their number.
        most = int(taken.sum(1).amax()) if len(taken) else 0
    ranked = scores.masked_fill(~taken, -torch.inf)
    order = ranked.argsort(dim=1, descending=True, stable=True)[:, :most]
    return RankedClasses(order, taken.gather(1, order))


def class_maps(
    patches: Tensor, texts: Tensor, size: tuple[int, int], *, mode: str, cosine: bool
) -> Tensor:
    """Return the products of patches ``(B, D, h, w)`` and texts ``(B, M, D)``, each in [0, 1]."""
    texts = at_least_float32(texts)
    patches = l2_normalize(patches, dim=1) if cosine else patches
    maps = torch.einsum("bdhw,bmd->bmhw", patches.to(texts.dtype), texts)
    if mode == "nearest":
        maps = F.interpolate(maps, size=size, mode="nearest-exact")
    else:
        maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / (high - low).clamp_min(_FLAT)


def cut(
    images: Tensor, maps: Tensor, *, refiner: Refiner | None, threshold: float, closing: int
) -> Tensor:
    """Make masks ``(B, M, H, W)`` of maps: one binary problem each, then a closing."""
    if refiner is None:
        inside = maps > threshold
    else:
        pairs = refiner(images, torch.stack([1 - maps, maps], 2).to(images.dtype))
        inside = pairs[:, :, 1] > pairs[:, :, 0]
    return morphological_closing(inside.to(maps.dtype), size=closing) > 0


def cover(masks: Tensor, ranked: RankedClasses) -> Tensor:
    """Return ids ``(B, H, W)``, column + 1: the first mask that covers a pixel is the likeliest."""
    shown = masks & ranked.taken[:, :, None, None]
    best = first_argmax(shown.to(torch.uint8), 1).long()
    ids = ranked.order.gather(1, best.flatten(1)).view_as(best) + 1
    return ids.where(shown.any(1), 0)
