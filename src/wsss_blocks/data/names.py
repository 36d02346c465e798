"""Class names and the VOC palette: the order of a tuple is the order of the label columns."""

import torch
from torch import Tensor

from wsss_blocks._validate import check_int
from wsss_blocks.data.classes import class_table

__all__ = ["COCO_NAMES", "DIGIT_NAMES", "VOC_NAMES", "VOC_SPOKEN_NAMES", "voc_palette"]

VOC_NAMES = class_table("voc").names
"""The 20 PASCAL VOC classes; mask id = position + 1."""

VOC_SPOKEN_NAMES = tuple(
    {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}.get(
        name, name
    )
    for name in VOC_NAMES
)
"""The same classes as a text encoder should read them."""

COCO_NAMES = class_table("coco").names
"""The 80 COCO things in category-id order (the gaps of the official 1..90 closed)."""

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""The ten classes of :class:`~wsss_blocks.data.Scenes`."""


def voc_palette(n: int = 256) -> Tensor:
    """Return the PASCAL VOC colours: the bits of the class id, dealt out to red, green and blue.

    Args:
        n: number of colours, at most 256.

    Returns:
        ``(n, 3)`` uint8; entry 0 is black, entry 255 (ignored) a light beige.

    Raises:
        ValueError: ``n`` is not in [1, 256].

    Example:
        >>> voc_palette()[[0, 1, 15, 255]].tolist()
        [[0, 0, 0], [128, 0, 0], [192, 128, 128], [224, 224, 192]]
    """
    check_int("n", n)
    if not 1 <= n <= 256:
        raise ValueError(f"n must be in [1, 256], got {n}.")
    ids = torch.arange(n)[:, None]
    channel = torch.arange(3)
    color = torch.zeros(n, 3, dtype=torch.int64)
    for bit in range(8):
        # Bits 3j, 3j+1 and 3j+2 of the id become bit 7-j of red, green and blue.
        color |= ((ids >> (3 * bit + channel)) & 1) << (7 - bit)
    return color.to(torch.uint8)
