"""Masks as the annotations of a COCO ``instances`` file."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsss_blocks._optional import require
from wsss_blocks.data._export.contours import part_polygons
from wsss_blocks.data._export.options import Options
from wsss_blocks.data._export.regions import find_regions
from wsss_blocks.data._export.simplify import simplify_ring
from wsss_blocks.data._export.source import Mask
from wsss_blocks.data.classes import class_table

__all__ = ["CocoWriter"]

NUMBERED = re.compile(r"(?:.*/)?(?:COCO_[a-z]+\d{4}_)?(\d{12})")


class _Described(NamedTuple):
    image: dict[str, Any]
    objects: list[dict[str, Any]]


class CocoWriter:
    """Write one JSON file; category ids are COCO's own where the names are COCO's."""

    def __init__(self, place: Path, options: Options) -> None:
        self.place, self.options = place, options
        coco = class_table("coco")
        official = options.names == coco.names
        self.categories = coco.raw_ids if official else tuple(range(1, len(options.names) + 1))
        self.coder = require("pycocotools.mask", extra="cli", what="export_masks to coco-json")

    def convert(self, mask: Mask) -> _Described:
        """Describe an image and its objects, without numbers for either."""
        height, width = mask.ids.shape
        parts, regions = find_regions(mask.ids, instances=self.options.instances)
        outlines = part_polygons(parts) if self.options.segmentation == "polygon" else {}
        region_of = np.zeros(int(parts.max()) + 1, np.int64)
        for number, region in enumerate(regions, 1):
            region_of[list(region.parts)] = number
        objects = []
        for region, pixels in zip(regions, _pixels(region_of[parts], len(regions)), strict=True):
            columns, rows = np.divmod(pixels, height)
            left, top = int(columns.min()), int(rows.min())
            box = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
            shown: Any = [
                simplify_ring(outlines[part], self.options.simplify).ravel().tolist()
                for part in region.parts
                if outlines
            ]
            objects.append(
                {
                    "category_id": self.categories[region.value - 1],
                    "bbox": box,
                    "area": len(pixels),
                    "iscrowd": 0,
                    "segmentation": shown or self._code(pixels, (height, width)),
                }
            )
        return _Described({"file_name": mask.file, "height": height, "width": width}, objects)

    def finish(self, results: Mapping[str, _Described]) -> None:
        """Number images and objects and write the file."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, found in zip(_numbers(results), results.values(), strict=True):
            images.append({"id": number, **found.image})
            for one in found.objects:
                annotations.append({"id": len(annotations) + 1, "image_id": number, **one})
        content = {
            "info": {"description": "masks exported by wsss-blocks"},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [
                {"id": number, "name": name, "supercategory": "none"}
                for number, name in zip(self.categories, self.options.names, strict=True)
            ],
        }
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        self.place.write_text(text + "\n", encoding="utf-8")

    def _code(self, pixels: NDArray[np.int64], size: tuple[int, int]) -> dict[str, Any]:
        """Return the compressed run lengths of pixels, counted down the columns."""
        breaks = np.flatnonzero(np.diff(pixels) > 1)
        starts = pixels[np.concatenate([[0], breaks + 1])]
        ends = pixels[np.concatenate([breaks, [-1]])] + 1
        edges = np.stack([starts, ends], 1).ravel()
        counts = np.diff(np.concatenate([[0], edges, [size[0] * size[1]]])).tolist()
        code = self.coder.frPyObjects({"size": list(size), "counts": counts}, *size)
        return {"size": list(size), "counts": code["counts"].decode("ascii")}


def _pixels(numbered: NDArray[np.int64], regions: int) -> list[NDArray[np.int64]]:
    """List the pixels of each region, counted down the columns."""
    flat = numbered.T.ravel()
    order = np.argsort(flat, kind="stable")
    counts = np.bincount(flat, minlength=regions + 1)
    return np.split(order, np.cumsum(counts)[:-1])[1:]


def _numbers(ids: Collection[str]) -> list[int]:
    """Return the official numbers of images that have COCO's names, else 1, 2, ..."""
    matches = [NUMBERED.fullmatch(name) for name in ids]
    numbers = [int(match[1]) for match in matches if match]
    if len(set(numbers)) == len(ids):
        return numbers
    return list(range(1, len(ids) + 1))
