"""Where masks to export come from, and what each must hold."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsss_blocks._optional import require
from wsss_blocks.data._files import files_below, named
from wsss_blocks.data._mask_files import read_mask_ids
from wsss_blocks.data._matching import find_images, image_id, spelled

__all__ = ["IGNORED", "Images", "Mask", "Named", "Source", "checked_mask", "list_masks", "pairs"]

IGNORED = 255
Source = Tensor | NDArray[Any] | Path
Named = tuple[str, Source]


class Mask(NamedTuple):
    """A mask to write.

    Attributes:
        name: its id, a path with forward slashes and without suffix.
        ids: ``(H, W)`` uint8: 0 background, 1..K, 255 ignored.
        image: the photograph, if somebody said where it is.
        file: what the photograph is called, below the folder of all.
    """

    name: str
    ids: NDArray[np.uint8]
    image: Path | None
    file: str


class Images:
    """The photographs below a folder, by id."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"images must be a folder, got {folder}.")
        self.folder = folder
        self._files: dict[str, list[str]] = {}
        for file in find_images(folder):
            self._files.setdefault(spelled(image_id(file)), []).append(file)

    def find(self, name: str, shape: tuple[int, ...], what: str) -> str:
        """Return the file of an id, which must have the size of its mask."""
        files = self._files.get(spelled(name), [])
        if len(files) != 1:
            found = f"two of them: {files[0]}, {files[1]}" if files else "none"
            raise FileNotFoundError(f"{what} must have an image in {self.folder}, got {found}.")
        path = self.folder / files[0]
        pillow = require("PIL.Image", extra="cli", what="export_masks")
        with named(path), pillow.open(path) as image:
            size = (image.height, image.width)
            # Orientations from 5 on are turned by a quarter.
            size = size[::-1] if image.getexif().get(0x0112, 1) >= 5 else size
        if size != shape:
            raise ValueError(f"{what} must have the size {size} of {path}, got {tuple(shape)}.")
        return files[0]


def list_masks(folder: Path) -> list[Named]:
    """List the PNG masks in and below a folder, without the figures of ``wsss segment``."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of masks at {folder}.")
    found = files_below(folder, ".png", any_case=True)
    masks: list[Named] = [pair for pair in found.items() if not _is_figure(pair[0], found)]
    if not masks:
        raise ValueError(f"no masks (*.png) in {folder}.")
    return masks


def pairs(masks: Iterable[Any]) -> Iterator[Named]:
    """Yield ids and masks; raise on ids that are used twice or cannot name a file."""
    seen: set[str] = set()
    for pair in masks:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise TypeError(f"masks must be pairs of an id and a mask, got {type(pair).__name__}.")
        name, mask = pair
        parts = PurePosixPath(name).parts
        if not parts or "\\" in name or name != "/".join(parts) or {"/", ".", ".."} & set(parts):
            raise ValueError(f"masks must have ids that can name files, got {name!r}.")
        if name in seen:
            raise ValueError(f"masks must have different ids, got {name!r} twice.")
        seen.add(name)
        yield name, mask


def checked_mask(
    one: Named, *, names: Sequence[str], ignore_index: int, images: Images | None
) -> Mask:
    """Read a mask, check its ids and its size, and turn ``ignore_index`` into 255."""
    name, source = one
    what = str(source) if isinstance(source, Path) else f"mask {name!r}"
    ids = _read(source, what)
    if ids.ndim != 2 or not ids.size:
        raise ValueError(f"{what} must have shape (H, W), got {tuple(ids.shape)}.")
    odd = ids[((ids < 0) | (ids > len(names))) & (ids != ignore_index)]
    if len(odd):
        raise ValueError(
            f"{what} must hold ids 0..{len(names)} (names has {len(names)} classes) and "
            f"{ignore_index} for ignored pixels, got {int(odd[0])}."
        )
    kept = np.where(ids == ignore_index, IGNORED, ids).astype(np.uint8)
    if images is None:
        return Mask(name, kept, None, f"{name}.jpg")
    file = images.find(name, kept.shape, what)
    return Mask(name, kept, images.folder / file, file)


def _read(source: Source, what: str) -> NDArray[Any]:
    if isinstance(source, Path):
        return read_mask_ids(source)
    if not isinstance(source, Tensor | np.ndarray):
        raise TypeError(f"{what} must be a tensor or an array, got {type(source).__name__}.")
    dtype = source.dtype
    whole = dtype.kind in "iu" if isinstance(dtype, np.dtype) else _is_whole(dtype)
    if not whole:
        raise TypeError(f"{what} must hold integers, got {dtype}.")
    return source.detach().cpu().numpy() if isinstance(source, Tensor) else source


def _is_whole(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _is_figure(name: str, found: Mapping[str, Path]) -> bool:
    """Tell whether a colour picture is one that ``wsss segment`` writes beside its masks."""
    mask = name.removesuffix("_overlay")
    if (mask == name or mask not in found) and PurePosixPath(name).name != "class_scores":
        return False
    with found[name].open("rb") as file:
        return file.read(26)[25:] in (b"\x02", b"\x06")  # a PNG's colour type: RGB or RGBA
