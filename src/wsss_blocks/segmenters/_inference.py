"""From a module and its logits to one mask."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._numerics import at_least_float32

__all__ = ["resized", "squeezed", "winners"]


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bilinearly."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def squeezed(images: Tensor, size: int | None) -> Tensor:
    """Bring images into a square of this side, as pillow would; None leaves them as they are."""
    if size is None or images.shape[-2:] == (size, size):
        return images
    x = at_least_float32(images)
    x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
    return x.to(images.dtype)


def winners(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the class ``(*size)`` of the largest of resized logits ``(1, C, h, w)``, C <= 256.

    One class is resized at a time: for a photo of 12 megapixels and 81 classes, all of them would
    be 4 GB, and on a CPU that takes twice as long.
    """
    best = logits.new_full(size, -torch.inf)
    winner = torch.zeros(size, dtype=torch.uint8, device=logits.device)
    for index in range(logits.shape[1]):
        scores = resized(logits[:, index : index + 1], size)[0, 0]
        winner.masked_fill_(scores > best, index)
        torch.maximum(best, scores, out=best)
    return winner.long()
