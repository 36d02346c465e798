"""CAM to pseudo-label as the field runs it: each step of the formula on the whole map, eagerly."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["label_eager", "label_lean"]


@torch.no_grad()
def label_eager(
    cam: Tensor,
    labels: Tensor,
    *,
    size: tuple[int, int],
    threshold: tuple[float, float],
    ignore_index: int = 255,
) -> Tensor:
    """Resize, rectify, min-max, mask, maximum and thresholds as separate out-of-place steps.

    The extremes come from adaptive pooling to one pixel, as is usual in this field's code.
    """
    scores = F.interpolate(cam, size=size, mode="bilinear", align_corners=False)
    scores = F.relu(scores)
    scores = scores + F.adaptive_max_pool2d(-scores, (1, 1))
    scores = scores / (F.adaptive_max_pool2d(scores, (1, 1)) + 1e-5)
    return _decide(labels[:, :, None, None] * scores, threshold, ignore_index)


@torch.no_grad()
def label_lean(
    cam: Tensor,
    labels: Tensor,
    *,
    size: tuple[int, int],
    threshold: tuple[float, float],
    ignore_index: int = 255,
) -> Tensor:
    """Do the same with ``amin`` and ``amax`` and in place: eager torch at its best."""
    scores = F.interpolate(cam, size=size, mode="bilinear", align_corners=False).relu_()
    low = scores.amin((2, 3), keepdim=True)
    span = scores.amax((2, 3), keepdim=True) - low + 1e-5
    scores.sub_(low).div_(span).mul_(labels[:, :, None, None])
    return _decide(scores, threshold, ignore_index)


def _decide(scores: Tensor, threshold: tuple[float, float], ignore_index: int) -> Tensor:
    value, label = scores.max(1)
    label += 1
    label[value <= threshold[1]] = ignore_index
    label[value <= threshold[0]] = 0
    return label
