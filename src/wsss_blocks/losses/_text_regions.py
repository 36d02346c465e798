"""What the image-text losses share: argument checks, and the anchors of labelled regions."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from wsss_blocks._numerics import l2_normalize
from wsss_blocks._validate import (
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_labels,
    check_mask_values,
    check_number,
    check_positive,
    check_same_device,
    check_shape,
)
from wsss_blocks.pooling import class_average_pool

__all__ = [
    "Anchors",
    "check_embeddings",
    "check_options",
    "check_regions",
    "check_text",
    "known_ids",
    "region_anchors",
]


class Anchors(NamedTuple):
    """Embeddings of regions or of single tokens, and which class each stands for."""

    embedding: Tensor  # (B, A, D), unit rows
    own: Tensor  # (B, A, K), 1 at the foreground class of the anchor
    background: Tensor  # (B, A), 1 for background
    weight: Tensor  # (B, A), mean over the anchors of a class, then over the classes of the image
    present: Tensor  # (B, K), bool: the class has an anchor
    num_background: Tensor  # (B, 1), at least 1


def check_options(temperature: float, background_weight: float, variant: str, pool: str) -> None:
    """Raise unless these are options of the cross-contrastive loss."""
    check_positive("temperature", temperature)
    check_number("background_weight", background_weight)
    if not 0 <= background_weight < float("inf"):
        raise ValueError(f"background_weight must be >= 0 and finite, got {background_weight}.")
    check_choice("variant", variant, ("background", "classes", "denominator", "batch"))
    check_choice("pool", pool, ("region", "token"))


def check_embeddings(name: str, x: Tensor, axes: str, **sizes: int) -> None:
    """Raise unless ``x`` holds finite floating-point numbers and has these axes."""
    check_shape(name, x, axes, **sizes)
    check_floating(name, x)
    check_finite(name, x)


def check_text(name: str, text: Tensor, axes: str, *, other_name: str, other: Tensor) -> None:
    """Raise unless ``text`` is a finite matrix with the ``D`` and the device of ``other``."""
    check_embeddings(name, text, axes, D=other.shape[1])
    check_same_device(name, text, other_name, other)


def check_regions(
    features: Tensor,
    mask: Tensor,
    labels: Tensor,
    class_text: Tensor,
    background_text: Tensor,
    *,
    ignore_index: int,
) -> None:
    """Raise unless features, regions, image labels and text fit together."""
    check_embeddings("features", features, "B D h w")
    batch, _, h, w = features.shape
    check_shape("mask", mask, "B h w", B=batch, h=h, w=w)
    check_integer("mask", mask)
    check_same_device("mask", mask, "features", features)
    for name, text, axes in (
        ("class_text", class_text, "K D"),
        ("background_text", background_text, "M D"),
    ):
        check_text(name, text, axes, other_name="features", other=features)
    num_classes = class_text.shape[0]
    check_labels(labels, batch=batch, num_classes=num_classes, device=features.device)
    check_mask_values("mask", mask, num_classes=num_classes + 1, ignore_index=ignore_index)


def known_ids(mask: Tensor, labels: Tensor, *, ignore_index: int) -> Tensor:
    """Return the mask as int64, with the classes that ``labels`` says are absent ignored."""
    ids = mask.long()
    allowed = F.pad(labels > 0, (1, 0), value=True)  # background is allowed everywhere
    inside = (ids >= 0) & (ids < allowed.shape[1]) & (ids != ignore_index)
    known = allowed.gather(1, (ids * inside).flatten(1)).view_as(ids) & inside
    return torch.where(known, ids, ignore_index)


def region_anchors(
    features: Tensor,
    ids: Tensor,
    *,
    num_classes: int,
    pool: Literal["region", "token"],
    ignore_index: int,
) -> Anchors:
    """Make an anchor of each region's mean unit token, or of each token."""
    tokens = l2_normalize(features, dim=1)
    if pool == "token":
        embedding = tokens.flatten(2).transpose(1, 2)
        ids = ids.flatten(1)[..., None]
        member = (ids == torch.arange(num_classes, device=ids.device)) & (ids != ignore_index)
    else:
        pooled = class_average_pool(
            tokens, ids, num_classes=num_classes, assign="nearest", ignore_index=ignore_index
        )
        embedding, member = l2_normalize(pooled.centroids), (pooled.weights > 0).diag_embed()
    member = member.to(tokens.dtype)  # (B, A, C)
    own, background = member[..., 1:], member[..., 0]
    count = own.sum(1)
    present = count > 0
    share = present / (count * present.sum(1, keepdim=True)).clamp_min(1)
    weight = (own * share[:, None]).sum(-1)
    num_background = background.sum(1, keepdim=True).clamp_min(1)
    return Anchors(embedding, own, background, weight, present, num_background)
