"""Read image files as RGB in [0, 1] and masks as class ids; write masks people can look at."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsss_blocks._files import replaced
from wsss_blocks._optional import require
from wsss_blocks.data._files import named
from wsss_blocks.data._mask_files import read_mask_ids
from wsss_blocks.data.names import voc_palette

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "IMAGE_SUFFIXES",
    "check_image",
    "is_image",
    "read_image",
    "read_mask",
    "upright_rgb",
    "write_mask",
]

ORIENTATION = 0x0112  # the EXIF tag
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def is_image(name: str) -> bool:
    """Tell whether a file is named like an image and is not hidden."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def read_image(path: str | Path) -> Tensor:
    """Read an image of any kind as upright RGB.

    Grey, CMYK, palette and 16-bit images are converted, transparency is dropped, and the
    orientation a camera noted (EXIF) is applied. Floating-point images are refused: nothing says
    which value is white.

    Args:
        path: the file.

    Returns:
        ``(3, H, W)`` float32 in ``[0, 1]``.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is truncated, no image, or as large as a decompression bomb.
        ImportError: pillow is not installed.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.data import write_voc_layout
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     voc = write_voc_layout(folder, train=1, val=1)
        ...     tuple(read_image(voc / "JPEGImages" / "train_00000.jpg").shape)
        (3, 96, 96)
    """
    pillow = require("PIL.Image", extra="cli", what="read_image")
    with named(Path(path)), pillow.open(path) as file:
        pixels = upright_rgb(file)
    # Planes one after the other: resizing and colour changes are twice as fast as on pixels.
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float().div_(255)


def check_image(path: str | Path) -> None:
    """Raise what :func:`read_image` would raise, decoding JPEGs at an eighth of their size."""
    pillow = require("PIL.Image", extra="cli", what="check_image")
    with named(Path(path)), pillow.open(path) as file:
        file.draft(file.mode, (1, 1))
        upright_rgb(file)


def read_mask(path: str | Path) -> Tensor:
    """Read an indexed or grey PNG as class ids.

    Args:
        path: the file.

    Returns:
        ``(H, W)`` int64.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is truncated or no image.
        ValueError: it is a colour picture.
        ImportError: pillow is not installed.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.data import write_voc_layout
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     voc = write_voc_layout(folder, train=1, val=1)
        ...     read_mask(voc / "SegmentationClass" / "train_00000.png").unique().tolist()
        [0, 7]
    """
    return torch.from_numpy(read_mask_ids(Path(path)).astype(np.int64))


def write_mask(path: str | Path, mask: Tensor | NDArray[np.uint8]) -> None:
    """Write class ids as an indexed PNG with the VOC palette.

    The file is written under a temporary name and renamed; missing folders are made.

    Args:
        path: the file.
        mask: ``(H, W)`` integers in ``[0, 255]``.

    Raises:
        ValueError: ``mask`` is not ``(H, W)`` or holds other numbers.
        TypeError: ``mask`` does not hold integers.
        ImportError: pillow is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_mask(f"{folder}/mask.png", torch.tensor([[0, 1, 255]]))
        ...     read_mask(f"{folder}/mask.png").tolist()
        [[0, 1, 255]]
    """
    if not isinstance(mask, Tensor | np.ndarray):
        raise TypeError(f"mask must be a tensor or an array, got {type(mask).__name__}.")
    if isinstance(mask, Tensor) and mask.dtype == torch.bfloat16:  # numpy has none
        raise TypeError(f"mask must hold integers, got {mask.dtype}.")
    ids = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else mask
    if ids.ndim != 2 or not ids.size:
        raise ValueError(f"mask must have shape (H, W), got {ids.shape}.")
    if ids.dtype.kind not in "iu":
        raise TypeError(f"mask must hold integers, got {ids.dtype}.")
    if ids.min() < 0 or ids.max() > 255:
        raise ValueError(f"mask must hold ids in [0, 255], got {ids.min()} to {ids.max()}.")
    image = require("PIL.Image", extra="cli", what="write_mask").fromarray(ids.astype(np.uint8))
    image.putpalette(voc_palette().flatten().tolist())
    with replaced(Path(path)) as temporary:
        image.save(temporary, format="PNG")


def upright_rgb(file: "Image") -> NDArray[np.uint8]:
    """Decode an opened image as ``(H, W, 3)``, which may be read-only."""
    if file.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; save it with 8 or 16 bits")
    image: Image = file
    file.load()  # a PNG may hold its EXIF after the pixels
    if file.getexif().get(ORIENTATION, 1) != 1:  # or exif_transpose would copy the image
        image = require("PIL.ImageOps", extra="cli", what="read_image").exif_transpose(file)
    if image.mode.startswith("I"):  # 16-bit grey: PIL would clip it at 255
        grey = (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "P":  # by way of RGBA, or PIL warns of palettes with transparency
        image = image.convert("RGBA")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
