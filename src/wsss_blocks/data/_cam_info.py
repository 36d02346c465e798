"""What the maps of a CAM store are, and how much disk they take."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

from wsss_blocks._validate import check_choice, check_int, check_number, check_sequence, check_size
from wsss_blocks.data._cam_shards import DTYPES

__all__ = [
    "CamStoreEstimate",
    "StoreInfo",
    "describe",
    "estimate_cam_store",
    "from_cells",
    "info_file",
    "read_info",
    "same_or_raise",
]

_FORMAT = 1
_PER_IMAGE, _PER_MAP = 120, 12  # id (twice), sizes, check; class and range


class StoreInfo(TypedDict):
    """The content of ``store.json``; ``made_with`` is a hash of the rest."""

    format: int
    dtype: str
    names: list[str]
    about: dict[str, object]
    ids: list[str]
    made_with: str


class CamStoreEstimate(NamedTuple):
    """What a CAM store takes on disk.

    Args:
        images: number of images.
        classes: mean number of classes of an image.
        cells: mean number of cells of all maps of an image together.
        dtype: of the maps.
        bytes: of all files together.
    """

    images: int
    classes: float
    cells: float
    dtype: str
    bytes: int

    def __str__(self) -> str:
        return (
            f"{self.images} images, {self.classes:.2f} classes and {self.cells:.0f} cells each, "
            f"{self.dtype}: about {self.bytes / 1e9:.3g} GB"
        )


def estimate_cam_store(
    images: int,
    *,
    classes: float,
    grid: tuple[int, int],
    dtype: Literal["uint8", "float16"] = "uint8",
) -> CamStoreEstimate:
    """Say what the maps of a data set will take on disk.

    Args:
        images: number of images.
        classes: mean number of classes of an image.
        grid: height and width of a map.
        dtype: of the maps in the store.

    Raises:
        ValueError: a number is negative or no number, or ``dtype`` is another.

    Example:
        COCO's 82,081 images of 480 x 640 pixels, at stride 8 and at stride 4:

        >>> print(estimate_cam_store(82_081, classes=2.9, grid=(60, 80)))
        82081 images, 2.90 classes and 13920 cells each, uint8: about 1.16 GB
        >>> print(estimate_cam_store(82_081, classes=2.9, grid=(120, 160), dtype="float16"))
        82081 images, 2.90 classes and 55680 cells each, float16: about 9.15 GB
    """
    check_int("images", images, least=0)
    check_number("classes", classes)
    if not 0 <= classes < float("inf"):
        raise ValueError(f"classes must be finite and not negative, got {classes}.")
    check_size("grid", grid)
    check_choice("dtype", dtype, DTYPES)
    return from_cells(images, classes, classes * grid[0] * grid[1], dtype)


def from_cells(images: int, classes: float, cells: float, dtype: str) -> CamStoreEstimate:
    """Add up what an image takes, of ``cells`` in all of its maps."""
    each = _PER_IMAGE + classes * _PER_MAP + cells * DTYPES[dtype].itemsize
    return CamStoreEstimate(images, classes, cells, dtype, round(images * each))


def info_file(folder: Path) -> Path:
    """Return where the description of a store is."""
    return folder / "store.json"


def describe(
    ids: Sequence[str], names: Sequence[str], dtype: str, about: Mapping[str, object]
) -> StoreInfo:
    """Check and collect all that decides what the maps are."""
    for name, values in (("ids", ids), ("names", names)):
        check_sequence(name, values)
        for value in values:
            if not isinstance(value, str):
                raise TypeError(f"{name} must be strings, got {value!r}.")
        if len(set(values)) != len(values):
            twice = next(value for value in values if list(values).count(value) > 1)
            raise ValueError(f"{name} must differ, got {twice!r} twice.")
    if not len(names):
        raise ValueError("names must name at least one class, got none.")
    check_choice("dtype", dtype, DTYPES)
    if not isinstance(about, Mapping):
        raise TypeError(f"about must be a mapping, got {about!r}.")
    try:
        plain = json.loads(json.dumps(dict(about), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"about must hold what JSON can write, got {error}.") from error
    info = StoreInfo(
        format=_FORMAT,
        dtype=dtype,
        names=list(names),
        about=plain,
        ids=list(ids),
        made_with="",
    )
    text = json.dumps(info, sort_keys=True)
    info["made_with"] = hashlib.sha256(text.encode()).hexdigest()
    return info


def read_info(folder: Path) -> StoreInfo:
    """Read ``store.json``."""
    path = info_file(folder)
    if not path.is_file():
        raise FileNotFoundError(f"no CAM store at {folder}: there is no {path.name}.")
    try:
        found: StoreInfo = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != _FORMAT:
            raise ValueError(f"format {found['format']!r} is not {_FORMAT}")
        again = describe(found["ids"], found["names"], found["dtype"], found["about"])
        if again != found:
            raise ValueError("it was changed after it was written")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be what CamStoreWriter wrote, got {error!r}.") from error
    return found


def same_or_raise(wanted: StoreInfo, found: StoreInfo, folder: Path) -> None:
    """Refuse maps made with something else, and name what."""
    differ = [
        f"{key} {found['about'].get(key)!r} instead of {wanted['about'].get(key)!r}"
        for key in sorted({*wanted["about"], *found["about"]})
        if found["about"].get(key) != wanted["about"].get(key)
    ]
    if wanted["dtype"] != found["dtype"]:
        differ.append(f"dtype {found['dtype']!r} instead of {wanted['dtype']!r}")
    for what, old, new in (
        ("names", found["names"], wanted["names"]),
        ("ids", found["ids"], wanted["ids"]),
    ):
        if old != new:
            at = next((i for i, x in enumerate(zip(old, new, strict=False)) if x[0] != x[1]), -1)
            first = f", the first other {old[at]!r} instead of {new[at]!r}" if at >= 0 else ""
            differ.append(f"{len(old)} {what} instead of {len(new)}{first}")
    if differ:
        raise ValueError(
            f"{folder} must hold maps made as those asked for, got {'; '.join(differ)}: "
            "choose another folder, or remove this one."
        )
