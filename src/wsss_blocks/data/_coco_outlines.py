"""Read the outlines of a COCO ``instances`` file and paint them into masks."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsss_blocks._optional import require
from wsss_blocks.data._label_tables import check_class_names

__all__ = ["CROWD", "Instances", "Outlined", "Region", "paint", "read_instances"]

CROWD = 255


class Region(NamedTuple):
    """An annotation: the value to paint, its id, and its polygons or run-length code."""

    value: int
    number: int
    outline: Any


class Outlined(NamedTuple):
    """An image: height and width, and its annotations."""

    size: tuple[int, int]
    regions: list[Region]


class Instances(NamedTuple):
    """An annotation file: class names, the images by name, and its SHA-256."""

    names: tuple[str, ...]
    images: dict[str, Outlined]
    source: str


def read_instances(path: Path) -> Instances:
    """Read what painting needs; images are called by their file names without suffix."""
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file at {path}.")
    try:
        with path.open("rb") as file:
            source = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            content = json.load(file)
        categories = sorted(content["categories"], key=lambda category: int(category["id"]))
        names = check_class_names(str(category["name"]) for category in categories)
        value_of = {category["id"]: k for k, category in enumerate(categories, 1)}
        if not len(names) == len(value_of) < CROWD:
            raise ValueError(f"categories must have different ids, at most 254, got {len(names)}")
        by_number: dict[Any, Outlined] = {}
        images: dict[str, Outlined] = {}
        for item in content["images"]:
            name = Path(item["file_name"]).stem
            if name in images:
                raise ValueError(f"two images are called {name!r}")
            images[name] = Outlined((int(item["height"]), int(item["width"])), [])
            by_number[item["id"]] = images[name]
        for item in content["annotations"]:
            number, image = int(item["id"]), item["image_id"]
            category, outline = item["category_id"], item.get("segmentation")
            if image not in by_number or category not in value_of:
                raise ValueError(
                    f"annotation {number} names image {image!r} and category {category!r}, of "
                    "which one is not listed"
                )
            if isinstance(outline, list):  # fewer than three corners enclose nothing
                outline = [corners for corners in outline if len(corners) >= 6]
            value = CROWD if item.get("iscrowd") else value_of[category]
            by_number[image].regions.append(Region(value, number, outline))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a COCO instances file: {error!r}") from error
    return Instances(names, images, source)


def paint(image: Outlined, path: Path) -> NDArray[np.uint8]:
    """Paint from the region with the most pixels to the one with the fewest, then by id."""
    coder = require("pycocotools.mask", extra="cli", what="build_coco_masks")
    coded = []
    for value, number, outline in image.regions:
        if outline:
            with _naming(path, number):
                code = _encode(coder, outline, image.size)
                coded.append((-int(coder.area(code)), number, value, code))
    mask = np.zeros(image.size, np.uint8)
    for _, number, value, code in sorted(coded, key=lambda region: region[:2]):
        with _naming(path, number):
            pixels = coder.decode(code)
            if pixels.max() > 1:  # run lengths that end too early leave memory as it was
                raise ValueError("its run lengths do not fill the image")
        mask[pixels.view(np.bool_)] = value
    return mask


def _encode(coder: ModuleType, outline: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Return the compressed run-length code of polygons or of an uncompressed code."""
    code: dict[str, Any] = outline
    if isinstance(outline, list):
        code = coder.merge(coder.frPyObjects(outline, *size))
    elif isinstance(outline["counts"], list):
        if sum(outline["counts"]) != size[0] * size[1]:
            raise ValueError(f"run lengths of {sum(outline['counts'])} pixels, image of {size}")
        code = coder.frPyObjects(outline, *size)
    if tuple(code["size"]) != size:
        raise ValueError(f"size {code['size']}, but the image has {list(size)}")
    return code


@contextmanager
def _naming(path: Path, number: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # pycocotools raises Exception itself
        raise ValueError(
            f"{path}: the outline of annotation {number} cannot be read: {error}"
        ) from error
