"""A sample of a data set as a batch of one, as the network of a run sees whole images."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks.cam import scale_box

__all__ = ["whole_image", "whole_mask"]

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


@torch.no_grad()
def whole_mask(
    pseudo_label: Callable[[Tensor, Tensor, Tensor], Tensor],
    sample: Mapping[str, Any],
    *,
    size: int | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Make the pseudo-label of a whole image, at its own size.

    Args:
        pseudo_label: images ``(1, 3, H, W)``, labels ``(1, K)``, box ``(1, 4)`` -> ids
            ``(1, h, w)``.
        sample: with ``image``, ``labels`` and ``box``.
        size: side of the square that the function sees; None shows it the image as it is.
        device: where the function wants its arguments.

    Returns:
        ``(H, W)`` int64, by nearest neighbours.

    Example:
        >>> from wsss_blocks.data import Scenes
        >>> sample = Scenes("val", size=1)[0]
        >>> whole_mask(lambda images, *_: images[:, 0].long(), sample, size=48).shape
        torch.Size([96, 96])
    """
    batch = whole_image(sample, size=size, device=device)
    ids = pseudo_label(batch["image"], batch["labels"], batch["box"])
    old = sample["image"].shape[-2:]
    return F.interpolate(ids[None].float(), size=(old[0], old[1]), mode="nearest")[0, 0].long()
