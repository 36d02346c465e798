"""Heat-maps of the classes of a mask, balanced between features and between classes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wsss_blocks.pooling import class_average_pool
from wsss_blocks.refine._rebalance_maps import Slots, on_grid
from wsss_blocks.refine._rebalance_transport import group_factor, maps_factor
from wsss_blocks.refine.class_groups import class_groups
from wsss_blocks.refine.class_heatmaps import cosine_maps, to_unit_range

__all__ = ["balanced_heatmaps"]


def balanced_heatmaps(
    uss_features: Tensor | None,
    wss_features: Sequence[Tensor],
    slots: Slots,
    inside: Tensor,
    threshold: float,
    reg: float,
    num_iters: int,
) -> Tensor:
    """Compute the maps ``(B, S, h, w)`` before the last refiner, 0 where not ``inside``."""
    centroids, maps = None, None
    if uss_features is not None:
        centroids, maps = _pooled_maps(uss_features, slots, inside)
    if wss_features:
        found = [_pooled_maps(features, slots, inside)[1] for features in wss_features]
        guide = to_unit_range(torch.stack(found).mean(0), inside)
        if centroids is None or maps is None:
            maps = guide
        else:
            groups = class_groups(centroids, slots.present, threshold=threshold)
            maps = maps * group_factor(guide, groups, inside, reg=reg, num_iters=num_iters)
    assert maps is not None  # there are features of one kind at least
    maps = maps * maps_factor(maps, slots.present, inside, reg=reg, num_iters=num_iters)
    return to_unit_range(maps, inside)


def _pooled_maps(features: Tensor, slots: Slots, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Centroids of the slots and their normalised heat-maps, on the grid of the weights."""
    features = on_grid(features, (inside.shape[1], inside.shape[2]))
    weights = slots.weights
    centroids = class_average_pool(features, weights, num_classes=weights.shape[1]).centroids
    maps = to_unit_range(cosine_maps(features, centroids), inside)
    # The map of a class that is not there is 0 already: so is its centroid.
    return centroids, maps
