"""Draw what class rebalancing does to some images, from the tensors of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks.pooling import class_average_pool, patch_class_weights
from wsss_blocks.refine import RebalancedMask, class_heatmaps
from wsss_blocks.viz import rebalancing_figure

__all__ = ["RebalancedCase", "draw_rebalancing"]


class RebalancedCase(NamedTuple):
    """One image of a batch of one, for :func:`draw_rebalancing`.

    Attributes:
        image: ``(1, 3, H, W)``, RGB in [0, 1]; it is drawn at the size of the masks.
        labels: ``(1, K)`` multi-hot.
        features: unsupervised features ``(1, D, h, w)`` of the image.
        found: what :class:`~wsss_blocks.refine.ClassRebalancer` returned, with heat-maps.
        truth: ``(1, H', W')`` ids, or None.
    """

    image: Tensor
    labels: Tensor
    features: Tensor
    found: RebalancedMask
    truth: Tensor | None = None


def draw_rebalancing(
    path: str | Path, cases: Sequence[RebalancedCase], *, names: Sequence[str]
) -> None:
    """Save a :func:`~wsss_blocks.viz.rebalancing_figure` of images with rebalanced masks.

    "Before" are the heat-maps of the unsupervised features alone, pooled with the initial mask.

    Args:
        path: PNG file to write.
        cases: at least one image; they may differ in size.
        names: of the K classes, without background.

    Raises:
        ValueError: there is no image, heat-maps are missing, or some images have a truth and some
            have none.
        ImportError: pillow is not installed.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.refine import ClassRebalancer
        >>> image, labels, features = (
        ...     torch.rand(1, 3, 8, 8),
        ...     torch.ones(1, 1),
        ...     torch.rand(1, 4, 4, 4),
        ... )
        >>> mask = torch.zeros(1, 8, 8, dtype=torch.int64)
        >>> found = ClassRebalancer()(image, None, mask, labels, features)
        >>> case = RebalancedCase(image, labels, features, found)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     draw_rebalancing(f"{folder}/a.png", [case], names=["cat"])
    """
    if not cases:
        raise ValueError("cases must hold at least one image, got none.")
    if len({case.truth is None for case in cases}) > 1:
        raise ValueError("cases must all have a truth, or none, got both.")
    columns = [_columns(case, len(names) + 1) for case in cases]
    images, initial, weights, before, after, result, *truth = zip(*columns, strict=True)
    rebalancing_figure(
        images,
        torch.cat([case.labels for case in cases]).cpu(),
        path=path,
        names=("background", *names),
        initial=initial,
        weights=weights,
        before=before,
        after=after,
        result=result,
        truth=truth[0] if truth else None,
    )


@torch.no_grad()
def _columns(case: RebalancedCase, classes: int) -> tuple[Tensor, ...]:
    found = case.found
    if found.heatmaps is None:
        raise ValueError("cases must have heat-maps: rebalance with features.")
    grid = (found.heatmaps.shape[2], found.heatmaps.shape[3])
    weights = patch_class_weights(found.initial, size=grid, num_classes=classes)
    features = F.interpolate(case.features.float(), size=grid, mode="bilinear", align_corners=False)
    centroids = class_average_pool(features, weights, num_classes=classes).centroids
    before = class_heatmaps(features, centroids)
    size = found.mask.shape[-2:]
    image = F.interpolate(case.image, size=size, mode="area")
    shown = [image, found.initial, weights, before, found.heatmaps, found.mask]
    if case.truth is not None:
        truth = F.interpolate(case.truth[:, None].float(), size=size, mode="nearest-exact")
        shown.append(truth[:, 0].long())
    return tuple(x[0].cpu() for x in shown)
