"""CAM to pseudo-label as the field runs it: each step of the formula on the whole map, eagerly."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["lean", "published"]


@torch.no_grad()
def published(
    cam: Tensor,
    labels: Tensor,
    *,
    size: tuple[int, int],
    threshold: tuple[float, float],
    ignore_index: int = 255,
) -> Tensor:
    """Resize, rectify, min-max, mask, maximum and two thresholds, out of place and in int64."""
    low, high = threshold
    scores = F.interpolate(cam, size=size, mode="bilinear", align_corners=False)
    scores = F.relu(scores)
    scores = scores - scores.amin((2, 3), keepdim=True)
    scores = scores / (scores.amax((2, 3), keepdim=True) + 1e-5)
    value, label = (labels[:, :, None, None] * scores).max(1)
    label = label + 1
    label = torch.where(value <= high, ignore_index, label)
    return torch.where(value <= low, 0, label)


@torch.no_grad()
def lean(
    cam: Tensor,
    labels: Tensor,
    *,
    size: tuple[int, int],
    threshold: tuple[float, float],
    ignore_index: int = 255,
) -> Tensor:
    """Do the same in place, in one buffer of the upsampled maps: eager torch at its best."""
    low, high = threshold
    scores = F.interpolate(cam, size=size, mode="bilinear", align_corners=False).relu_()
    scores.sub_(scores.amin((2, 3), keepdim=True))
    scores.mul_(labels[:, :, None, None] / (scores.amax((2, 3), keepdim=True) + 1e-5))
    value, label = scores.max(1)
    return label.add_(1).masked_fill_(value <= high, ignore_index).masked_fill_(value <= low, 0)
