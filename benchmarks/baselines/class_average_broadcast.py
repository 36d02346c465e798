"""Class means of features under a mask on their grid: the formula, a loop, a scatter, a product."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["best", "index_add", "loop", "published"]


@torch.no_grad()
def published(features: Tensor, mask: Tensor, *, num_classes: int) -> Tensor:
    """Write the formula as it stands: sum over pixels of mask times features, by broadcasting.

    ``features (B, D, h, w)``, ``mask (B, h, w)`` with ids beyond the classes ignored; the result is
    ``(B, C, D)``, zero for an absent class. The same for the other three.
    """
    weights = _one_hot(mask, num_classes).permute(0, 3, 1, 2)[:, :, None].to(features.dtype)
    return (weights * features[:, None]).sum((3, 4)) / weights.sum((3, 4)).clamp_min(1)


@torch.no_grad()
def best(features: Tensor, mask: Tensor, *, num_classes: int) -> Tensor:
    """Multiply the one-hot mask with the features."""
    weights = _one_hot(mask, num_classes).flatten(1, 2).to(features.dtype)
    summed = weights.transpose(1, 2) @ features.flatten(2).transpose(1, 2)
    return summed / weights.sum(1).clamp_min(1).unsqueeze(2)


@torch.no_grad()
def loop(features: Tensor, mask: Tensor, *, num_classes: int) -> Tensor:
    """Average under the mask of one class of one image after the other."""
    centroids = features.new_zeros(features.shape[0], num_classes, features.shape[1])
    for b in range(features.shape[0]):
        for c in mask[b].unique().tolist():
            if c < num_classes:
                centroids[b, c] = features[b, :, mask[b] == c].mean(1)
    return centroids


@torch.no_grad()
def index_add(features: Tensor, mask: Tensor, *, num_classes: int) -> Tensor:
    """Add each pixel's features to the row of its image and class."""
    batch, dim = features.shape[:2]
    slots = num_classes + 1
    image = torch.arange(batch, device=mask.device)[:, None, None]
    index = (mask.clamp_max(num_classes) + slots * image).flatten()
    rows = features.permute(0, 2, 3, 1).reshape(-1, dim)
    total = features.new_zeros(batch * slots, dim).index_add_(0, index, rows)
    count = torch.bincount(index, minlength=batch * slots).clamp_min(1)
    return (total / count[:, None]).view(batch, slots, dim)[:, :num_classes]


def _one_hot(mask: Tensor, num_classes: int) -> Tensor:
    return F.one_hot(mask.clamp_max(num_classes), num_classes + 1)[..., :num_classes]
