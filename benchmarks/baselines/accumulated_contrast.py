"""Gradients of a contrastive loss by chunks, as open_clip's ``--accum-freq`` is described.

All embeddings are made without a graph; then each chunk is encoded again and takes the place of
its rows, and the loss of the whole batch is computed once more and sent back.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["accumulated"]


def accumulated(
    image_encoder: Callable[[Tensor], Tensor],
    text_encoder: Callable[[Tensor], Tensor],
    images: Tensor,
    ids: Tensor,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    *,
    chunk_size: int,
) -> Tensor:
    """Add the gradients to ``.grad``; those of ``loss_fn`` itself come once per chunk."""
    pairs = list(zip(images.split(chunk_size), ids.split(chunk_size), strict=True))
    with torch.no_grad():
        cached = [(image_encoder(x), text_encoder(t)) for x, t in pairs]
    loss = images.new_zeros(())
    for n, (x, t) in enumerate(pairs):
        rows = [*cached[:n], (image_encoder(x), text_encoder(t)), *cached[n + 1 :]]
        image, text = (torch.cat(z) for z in zip(*rows, strict=True))
        loss = loss_fn(image, text)
        loss.backward()
    return loss.detach()
