"""The pictures of a page: image, masks and errors as data that stands in the file."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wsss_blocks._optional import require

__all__ = ["Picture", "legend", "picture"]

_SIDE = 320
# Colours that people who see few of them can tell apart (Okabe and Ito).
_ERRORS = {
    "right": (232, 232, 232),
    "missed": (0, 114, 178),
    "false": (230, 159, 0),
    "another class": (204, 121, 167),
    "not scored": (150, 150, 150),
}


class Picture(NamedTuple):
    """An image of the page.

    Attributes:
        id: of the image.
        caption: what to say about it, as its mIoU.
        image: ``(H, W, 3)`` uint8 on a CPU, as a tensor or an array; None shows masks alone.
        prediction: ``(H, W)`` class ids.
        truth: ``(H, W)`` class ids.
    """

    id: str
    caption: str
    image: Tensor | NDArray[np.uint8] | None
    prediction: Tensor | NDArray[np.integer]
    truth: Tensor | NDArray[np.integer]


def legend(pictures: Sequence[Picture], names: Sequence[str], colors: NDArray[np.uint8]) -> str:
    """Name the colours of the classes that occur in the pictures, and those of the errors."""
    shown = set().union(*(_ids(p.truth) | _ids(p.prediction) for p in pictures))
    entries = {
        names[i] if i < len(names) else "ignored" if i == 255 else str(i): tuple(colors[i].tolist())
        for i in sorted(shown)
    }
    lists = []
    for text, one in (("Classes", entries), ("Errors", _ERRORS)):
        items = "".join(
            f'<li><i style="background:rgb{color}"></i>{escape(name)}</li>'
            for name, color in one.items()
        )
        lists.append(f'<ul class="legend"><li><b>{text}</b></li>{items}</ul>')
    return "<h2>Images</h2>\n" + "\n".join(lists)


def picture(one: Picture, colors: NDArray[np.uint8], *, ignore_index: int) -> str:
    """Return image, truth, prediction and errors side by side; ``colors`` is ``(256, 3)``."""
    prediction, truth = np.asarray(one.prediction), np.asarray(one.truth)
    image = None if one.image is None else np.asarray(one.image)
    if prediction.ndim != 2 or prediction.shape != truth.shape:
        raise ValueError(
            f"pictures must have masks (H, W) of one size, got {prediction.shape} and "
            f"{truth.shape} for {one.id!r}."
        )
    panels = []
    if image is not None:
        if image.shape != (*truth.shape, 3) or image.dtype != np.uint8:
            raise ValueError(
                f"pictures must have uint8 images of shape {(*truth.shape, 3)}, got {image.dtype} "
                f"{image.shape} for {one.id!r}."
            )
        panels.append(("image", _encoded(image, None)))
    panels += [
        ("truth", _encoded(truth.astype(np.uint8), colors)),
        ("prediction", _encoded(prediction.astype(np.uint8), colors)),
        (
            "errors",
            _encoded(
                _errors(prediction, truth, ignore_index), np.array([*_ERRORS.values()], np.uint8)
            ),
        ),
    ]
    shown = "".join(
        f'<div><img alt="{what} of {escape(one.id)}" src="{data}"><span>{what}</span></div>'
        for what, data in panels
    )
    return (
        f"<figure><figcaption><b>{escape(one.id)}</b> {escape(one.caption)}</figcaption>"
        f'<div class="panels">{shown}</div></figure>'
    )


def _errors(
    prediction: NDArray[np.integer], truth: NDArray[np.integer], ignore_index: int
) -> NDArray[np.uint8]:
    """Return for each pixel the position of its kind in _ERRORS."""
    ignored = (truth == ignore_index) | (prediction == ignore_index)
    kinds = [ignored, prediction == truth, prediction == 0, truth == 0]
    return np.select(kinds, [4, 0, 1, 2], 3).astype(np.uint8)


def _encoded(pixels: NDArray[np.uint8], colors: NDArray[np.uint8] | None) -> str:
    """Return a data URI: JPEG of an image, indexed PNG of ids."""
    pillow = require("PIL.Image", extra="cli", what="write_page")
    picture = pillow.fromarray(np.ascontiguousarray(pixels))
    scale = min(1.0, _SIDE / max(picture.size))
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    buffer = io.BytesIO()
    if colors is None:
        picture.resize(size, pillow.Resampling.LANCZOS).save(buffer, "JPEG", quality=85)
    else:
        picture = picture.resize(size, pillow.Resampling.NEAREST)
        picture.putpalette(colors.flatten().tolist())
        picture.save(buffer, "PNG", optimize=True)
    kind = "jpeg" if colors is None else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _ids(mask: Tensor | NDArray[np.integer]) -> set[int]:
    found = {int(i) for i in np.unique(np.asarray(mask))}
    if found and not 0 <= min(found) <= max(found) <= 255:
        raise ValueError(f"pictures must hold ids in [0, 255], got {min(found)} to {max(found)}.")
    return found
