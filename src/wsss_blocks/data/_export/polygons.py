"""Masks as polygons in text files: labelme's JSON, the lines of YOLO."""

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsss_blocks.data._export.contours import part_polygons
from wsss_blocks.data._export.options import Options
from wsss_blocks.data._export.pictures import copy_image
from wsss_blocks.data._export.regions import find_regions
from wsss_blocks.data._export.simplify import simplify_ring
from wsss_blocks.data._export.source import Mask

__all__ = ["LabelmeWriter", "YoloWriter"]

# Readers of both formats cut corners down to whole pixels and paint the outline as well. Edges
# moved in by less than half a pixel then paint exactly the pixels of the mask, and who tests the
# centres of pixels finds the same.
INSET = 0.25


class LabelmeWriter:
    """Write ``ID.json``, a polygon for each part; parts of one object share a ``group_id``."""

    def __init__(self, place: Path, options: Options) -> None:
        self.place, self.options = place, options

    def convert(self, mask: Mask) -> bytes:
        """Write the file of an image."""
        parts, regions = find_regions(mask.ids, instances=self.options.instances)
        outlines = part_polygons(parts, inset=INSET)
        shapes: list[dict[str, Any]] = []
        for group, region in enumerate(regions, 1):
            head: dict[str, Any] = {
                "label": self.options.names[region.value - 1],
                "group_id": group if len(region.parts) > 1 else None,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for part in region.parts:
                points = simplify_ring(outlines[part], self.options.simplify)
                shapes.append({**head, "points": points.tolist()})
        target = self.place / f"{mask.name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": self._image_path(mask),
            "imageData": None,
            "imageHeight": mask.ids.shape[0],
            "imageWidth": mask.ids.shape[1],
        }
        text = json.dumps(content, ensure_ascii=False)
        target.write_text(text + "\n", encoding="utf-8")
        return b""

    def finish(self, results: Mapping[str, bytes]) -> None:
        """Nothing is shared."""

    def _image_path(self, mask: Mask) -> str:
        """Return the way from the JSON file, where it will be, to the photograph."""
        if mask.image is None:
            return PurePosixPath(mask.file).name
        here = (self.options.output / mask.name).parent
        return os.path.relpath(mask.image, here).replace(os.sep, "/")


class YoloWriter:
    """Write ``labels/SPLIT/ID.txt``, a line for each part, copies of images, ``data.yaml``."""

    def __init__(self, place: Path, options: Options) -> None:
        self.place, self.options = place, options

    def convert(self, mask: Mask) -> bytes:
        """Write the file of an image, empty where it shows no class."""
        parts, regions = find_regions(mask.ids, instances="classes")
        outlines = part_polygons(parts, inset=INSET)
        height, width = mask.ids.shape
        lines = []
        for region in regions:
            for part in region.parts:
                points = simplify_ring(outlines[part], self.options.simplify)
                lines.append(_line(region.value - 1, points / (width, height)))
        split = self.options.split(mask.name)
        target = self.place / "labels" / split / f"{mask.name}.txt"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(lines))
        copy_image(mask, self.place / "images" / split)
        return b""

    def finish(self, results: Mapping[str, bytes]) -> None:
        """Write names and folders; a split that is missing is the other one."""
        splits = {self.options.split(name) for name in results}
        train = "train" if "train" in splits else "val"
        val = "val" if "val" in splits else "train"
        lines = [f"train: images/{train}", f"val: images/{val}", "names:"]
        names = self.options.names  # a JSON string is a YAML string
        lines += [f"  {i}: {json.dumps(name, ensure_ascii=False)}" for i, name in enumerate(names)]
        (self.place / "data.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(number: int, points: NDArray[np.float64]) -> str:
    return f"{number} {' '.join(f'{value:.6f}' for value in points.ravel())}\n"
