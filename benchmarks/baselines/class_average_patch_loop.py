"""Class means from a pixel mask as DHR computes them: one patch after the other."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["best", "published"]


@torch.no_grad()
def published(
    features: Tensor, mask: Tensor, *, num_classes: int, ignore_index: int = 255
) -> Tensor:
    """Give each patch the majority class of its window and average the features of each class.

    ``features (B, D, h, w)`` and ``mask (B, H, W)``, H and W multiples of h and w; the result is
    ``(B, C, D)``. Ties go to the smallest id. Ignored pixels vote too: a patch that they win
    belongs to no class.
    """
    batch, dim, h, w = features.shape
    ids = mask.cpu().numpy()
    high, wide = ids.shape[1] // h, ids.shape[2] // w
    centroids = features.new_zeros(batch, num_classes, dim)
    for b in range(batch):
        members: dict[int, list[Tensor]] = {}
        for i in range(h):
            for j in range(w):
                window = ids[b, i * high : (i + 1) * high, j * wide : (j + 1) * wide]
                found, votes = np.unique(window, return_counts=True)
                label = int(found[votes.argmax()])
                if label != ignore_index:
                    members.setdefault(label, []).append(features[b, :, i, j])
        for label, patches in members.items():
            centroids[b, label] = torch.stack(patches).mean(0)
    return centroids


@torch.no_grad()
def best(features: Tensor, mask: Tensor, *, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Count the votes of all patches at once; a product with the one-hot majority does the rest."""
    batch, _, h, w = features.shape
    slots = num_classes + 1
    ids = mask.long().where(mask != ignore_index, num_classes)
    row, column = (
        torch.arange(pixels, device=ids.device) // (pixels // cells)
        for pixels, cells in zip(ids.shape[1:], (h, w), strict=True)
    )
    image = torch.arange(batch, device=ids.device)[:, None, None]
    cell = (image * h + row[:, None]) * w + column
    votes = torch.bincount((cell * slots + ids).flatten(), minlength=batch * h * w * slots)
    label = votes.view(batch, h * w, slots).argmax(2)
    hot = F.one_hot(label, slots)[..., :num_classes].to(features.dtype)
    summed = hot.transpose(1, 2) @ features.flatten(2).transpose(1, 2)
    return summed / hot.sum(1).clamp_min(1).unsqueeze(2)
