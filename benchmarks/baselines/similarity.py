"""Cosine similarity of every patch with every text: by broadcasting, in a loop, as a product."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["best", "loop", "published"]


@torch.no_grad()
def published(features: Tensor, text: Tensor) -> Tensor:
    """Broadcast: ``features (B, D, h, w)`` and ``text (K, D)`` to ``(B, K, h, w)``."""
    return F.cosine_similarity(features[:, None], text[None, :, :, None, None], dim=2)


@torch.no_grad()
def loop(features: Tensor, text: Tensor) -> Tensor:
    """Make the map of one class after the other."""
    return torch.stack([F.cosine_similarity(features, t[:, None, None], dim=1) for t in text], 1)


@torch.no_grad()
def best(features: Tensor, text: Tensor) -> Tensor:
    """Normalise both and multiply."""
    unit = F.normalize(features, dim=1)
    return torch.einsum("bdhw,kd->bkhw", unit, F.normalize(text, dim=1))
