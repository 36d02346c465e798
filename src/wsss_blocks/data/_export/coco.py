"""Masks as the annotations of a COCO ``instances`` file."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

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


class CocoWriter:
    """Write one JSON file; category ids are COCO's own where the names are COCO's."""

    def __init__(self, place: Path, options: Options) -> None:
        self.place, self.options = place, options
        coco = class_table("coco")
        official = options.names == coco.names
        self.categories = coco.raw_ids if official else tuple(range(1, len(options.names) + 1))
        self.coder = require("pycocotools.mask", extra="cli", what="export_masks to coco-json")

    def convert(self, mask: Mask) -> bytes:
        """Describe an image and its objects, a line each, without numbers for either."""
        height, width = mask.ids.shape
        parts, regions = find_regions(mask.ids, instances=self.options.instances)
        outlines = part_polygons(parts) if self.options.segmentation == "polygon" else {}
        region_of = np.zeros(int(parts.max()) + 1, np.int64)
        for number, region in enumerate(regions, 1):
            region_of[list(region.parts)] = number
        lines = [_json({"file_name": mask.file, "height": height, "width": width})]
        for region, pixels in zip(regions, _pixels(region_of[parts], len(regions)), strict=True):
            columns, rows = np.divmod(pixels, height)
            left, top = int(columns.min()), int(rows.min())
            box = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
            shown: Any = [
                simplify_ring(outlines[part], self.options.simplify).ravel().tolist()
                for part in region.parts
                if outlines
            ]
            one = {
                "category_id": self.categories[region.value - 1],
                "bbox": box,
                "area": len(pixels),
                "iscrowd": 0,
                "segmentation": shown or self._code(pixels, (height, width)),
            }
            lines.append(_json(one))
        return b"\n".join(lines)  # JSON writes the ends of lines otherwise

    def finish(self, results: Mapping[str, bytes]) -> None:
        """Number images and objects and write the file."""
        info = _json({"description": "masks exported by wsss-blocks"})
        categories = _json([
            {"id": number, "name": name, "supercategory": "none"}
            for number, name in zip(self.categories, self.options.names, strict=True)
        ])  # fmt: skip
        numbers = _numbers(results)
        with self.place.open("wb") as file:
            file.write(b'{"info":' + info + b',"licenses":[],"images":')
            images = (
                _numbered({"id": number}, found.split(b"\n", 1)[0])
                for number, found in zip(numbers, results.values(), strict=True)
            )
            _write_list(file, images)
            file.write(b',"annotations":')
            objects = (
                (number, line)
                for number, found in zip(numbers, results.values(), strict=True)
                for line in found.split(b"\n")[1:]
            )
            _write_list(file, (
                _numbered({"id": count, "image_id": number}, line)
                for count, (number, line) in enumerate(objects, 1)
            ))  # fmt: skip
            file.write(b',"categories":' + categories + b"}\n")

    def _code(self, pixels: NDArray[np.int64], size: tuple[int, int]) -> dict[str, Any]:
        """Return the compressed run lengths of pixels, counted down the columns."""
        breaks = np.flatnonzero(np.diff(pixels) > 1)
        starts = pixels[np.concatenate([[0], breaks + 1])]
        ends = pixels[np.concatenate([breaks, [-1]])] + 1
        edges = np.stack([starts, ends], 1).ravel()
        counts = np.diff(np.concatenate([[0], edges, [size[0] * size[1]]])).tolist()
        code = self.coder.frPyObjects({"size": list(size), "counts": counts}, *size)
        return {"size": list(size), "counts": code["counts"].decode("ascii")}


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _numbered(numbers: Mapping[str, int], described: bytes) -> bytes:
    """Put numbers in front of what a JSON object has."""
    return _json(numbers)[:-1] + b"," + described[1:]


def _write_list(file: BinaryIO, items: Iterable[bytes]) -> None:
    file.write(b"[")
    for i, item in enumerate(items):
        file.write(b"," + item if i else item)
    file.write(b"]")


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
