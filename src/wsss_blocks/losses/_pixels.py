"""What the segmentation losses share: the cross-entropy of each pixel that has a label."""

import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_integer,
    check_mask_values,
    check_same_device,
    check_shape,
)

__all__ = ["pixel_losses"]


def pixel_losses(logits: Tensor, mask: Tensor, *, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Check logits and mask; return the losses ``(B, H, W)`` and the mask as int64.

    Logits of another size are resized to the mask. Ignored pixels are zeros, and get no gradient.
    """
    check_shape("logits", logits, "B C h w")
    check_floating("logits", logits)
    check_shape("mask", mask, "B H W", B=logits.shape[0])
    check_integer("mask", mask)
    check_same_device("mask", mask, "logits", logits)
    mask = mask.long()  # uint8 wraps an ignore_index of -1 around
    check_mask_values("mask", mask, num_classes=logits.shape[1], ignore_index=ignore_index)
    check_finite("logits", logits)
    logits = at_least_float32(logits)
    size = mask.shape[-2:]
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, mask, ignore_index=ignore_index, reduction="none"), mask
