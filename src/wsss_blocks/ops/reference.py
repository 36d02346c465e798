"""The plain eager chains that the fused operations must agree with."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._numerics import at_least_float32, first_argmax

__all__ = ["cam_to_label"]


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
    """Label pixels step by step, on maps of all classes at full size.

    The background scores ``(1 - best) ** power`` if there is a power, ``low (B,)`` if there is a
    threshold, as channel 0 of ``cam`` if there is neither. Up to ``high (B,)`` is undecided.
    """
    classes = labels.shape[1]
    x = at_least_float32(cam)
    # Weights that sum to 1 only up to rounding would give a constant map a range to be scaled up.
    base = x.amin((-2, -1), keepdim=True)
    x = F.interpolate(x - base, size=(height, width), mode="bilinear", align_corners=False) + base
    if relu:
        x = x.relu()
    if minmax:
        least, most = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
        x = (x - least) / (most - least + 1e-5)
    scores = x[:, -classes:].masked_fill((labels <= 0)[:, :, None, None], -float("inf"))
    best, winner = scores.amax(1), first_argmax(scores, 1) + 1
    if power is not None:
        below = above = (1 - best.clamp_min(0)).clamp_min(0) ** power
    elif low is None:
        below = above = x[:, 0]
    else:
        below = low[:, None, None]
        above = below if high is None else high[:, None, None]
    label = torch.where(best > above, winner, torch.where(best > below, ignore_index, 0))
    if box is not None:
        top, left, bottom, right = box[:, :, None, None].unbind(1)
        rows = torch.arange(height, device=cam.device)[:, None]
        columns = torch.arange(width, device=cam.device)
        inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        label = torch.where(inside, label, ignore_index)
    return label.to(dtype)
