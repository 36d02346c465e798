"""Whatever people have as an image, to RGB in [0, 1]."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsss_blocks._optional import require
from wsss_blocks._validate import check_floating, check_shape
from wsss_blocks.data.images import read_image, upright_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageLike = str | os.PathLike[str] | Image | NDArray[np.uint8] | Tensor
else:  # pillow is optional
    ImageLike = object

__all__ = ["ImageLike", "as_image"]


def as_image(image: ImageLike) -> Tensor:
    """Return ``(3, H, W)`` floats in [0, 1] on the CPU, or say what the image should be."""
    if isinstance(image, Tensor):
        check_shape("image", image, "3 H W")
        check_floating("image", image)
        low, high = image.aminmax()
        if not (low >= -0.5 and high <= 1.5):  # what the encoders allow for resampled images
            raise ValueError(f"image must be RGB in [0, 1], got {low:.4g} to {high:.4g}.")
        return image.detach().cpu()
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image))
    pillow = require("PIL.Image", extra="cli", what="Segmenter.segment")
    if isinstance(image, pillow.Image):
        return _from_array(upright_rgb(image))
    raise TypeError(
        "image must be a path, a PIL image, a uint8 array (H, W, 3) or (H, W), or a tensor "
        f"(3, H, W), got {type(image).__name__}."
    )


def _from_array(pixels: NDArray[np.uint8]) -> Tensor:
    if pixels.dtype != np.uint8:
        raise TypeError(
            f"image must be a uint8 array (floats go in as a tensor (3, H, W)), got {pixels.dtype}."
        )
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"image must have shape (H, W, 3) or (H, W), got {pixels.shape}.")
    copied = torch.from_numpy(np.array(pixels, order="C"))
    return copied.permute(2, 0, 1).float().div_(255)
