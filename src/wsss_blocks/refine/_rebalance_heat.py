"""Heat-maps of the classes of a mask, balanced between features and between classes."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from wsss_blocks._validate import check_finite
from wsss_blocks.pooling.class_average import weighted_means
from wsss_blocks.refine._rebalance_maps import Slots, on_grid
from wsss_blocks.refine._rebalance_transport import group_factor
from wsss_blocks.refine.class_groups import class_groups
from wsss_blocks.refine.class_heatmaps import cosine_maps, to_unit_range

__all__ = ["ClassMass", "balanced_heatmaps"]

ClassMass = Literal["uniform", "area"]


def balanced_heatmaps(
    uss_features: Tensor | None,
    wss_features: Sequence[Tensor],
    slots: Slots,
    inside: Tensor,
    threshold: float,
    class_mass: ClassMass,
    reg: float,
    num_iters: int,
) -> Tensor:
    """Compute the maps ``(B, S, h, w)`` before the last refiner, 0 where not ``inside``."""
    area = slots.weights.sum((2, 3))
    mass = area if class_mass == "area" else torch.ones_like(area)
    options: dict[str, Any] = {"mass": mass, "reg": reg, "num_iters": num_iters}
    centroids, maps = None, None
    if uss_features is not None:
        centroids, maps = _pooled_maps("uss_features", uss_features, slots, inside)
    if wss_features:
        found = [_pooled_maps("wss_features", f, slots, inside)[1] for f in wss_features]
        guide = to_unit_range(torch.stack(found).mean(0), inside)
        if centroids is None or maps is None:
            maps = guide
        else:
            groups = class_groups(centroids, slots.present, threshold=threshold)
            maps = maps * group_factor(guide, groups, inside, **options)
    assert maps is not None  # there are features of one kind at least
    several = slots.present & (slots.present.sum(1, keepdim=True) > 1)
    maps = maps * group_factor(maps, several.unsqueeze(1), inside, **options)
    return to_unit_range(maps, inside)


def _pooled_maps(
    name: str, features: Tensor, slots: Slots, inside: Tensor
) -> tuple[Tensor, Tensor]:
    """Centroids of the slots and their normalised heat-maps, on the grid of the weights."""
    size = (inside.shape[1], inside.shape[2])
    if features.shape[2:] != size:
        check_finite(name, features)  # a resize may pass over cells
    features = on_grid(features, size)
    centroids = weighted_means(features, slots.weights).centroids
    maps = to_unit_range(cosine_maps(features, centroids, name=name), inside)
    # The map of a class that is not there is 0 already: so is its centroid.
    return centroids, maps
