"""Apply a change of a PIL image to the image of a sample that has no mask."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from wsss_blocks._optional import require
from wsss_blocks.data.sample import Sample

__all__ = ["with_pil"]


def with_pil(sample: Sample, change: Callable[[Any], Any], *, what: str) -> Sample:
    """Copy the sample with ``change`` applied to its image in bytes; ``what`` is for errors."""
    if "mask" in sample or "pseudo_mask" in sample:
        raise ValueError(f"sample must hold no mask, which {what} would not move, got one.")
    pillow = require("PIL.Image", extra="cli", what=what)
    planes = (sample["image"] * 255).round().to(torch.uint8).numpy()
    # Plane by plane: PIL interleaves them eight times as fast as numpy.
    image = pillow.merge("RGB", [pillow.fromarray(plane) for plane in planes])
    made = np.asarray(change(image)).transpose(2, 0, 1).copy()
    new = sample.copy()
    new["image"] = torch.from_numpy(made).float().div_(255)
    return new
