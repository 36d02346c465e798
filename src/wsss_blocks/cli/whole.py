"""A sample of a data set as a batch of one, as the network of a run sees whole images."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks.cam import scale_box

__all__ = ["whole_image"]

_FIELDS = ("image", "labels", "box", "pseudo_mask")


def whole_image(
    sample: Mapping[str, Any], *, size: int | None = None, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Make a batch of one of the tensors of a sample that a method may see: never of its mask.

    Args:
        sample: with ``image`` and, if it has them, ``labels``, ``box`` and ``pseudo_mask``.
        size: side of the square that the image is squeezed into, and its box with it; None leaves
            it as it is.
        device: of the result.

    Returns:
        Those tensors with a first axis of one; ``pseudo_mask`` keeps its size.

    Example:
        >>> from wsss_blocks.data import Scenes
        >>> batch = whole_image(Scenes("val", size=1)[0], size=48)
        >>> tuple(batch["image"].shape), batch["box"].tolist(), "mask" in batch
        ((1, 3, 48, 48), [[0, 0, 48, 48]], False)
    """
    batch = {name: sample[name][None].to(device) for name in _FIELDS if name in sample}
    if size is not None:
        old, new = batch["image"].shape[-2:], (size, size)
        batch["image"] = F.interpolate(
            batch["image"], size=new, mode="bilinear", align_corners=False
        )
        if "box" in batch:
            batch["box"] = scale_box(batch["box"], image_size=(old[0], old[1]), size=new)
    return batch
