"""Write scenes as a folder in the official COCO 2014 layout."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsss_blocks._files import replaced
from wsss_blocks._optional import require
from wsss_blocks._validate import check_int
from wsss_blocks.data._drawing import CANVAS
from wsss_blocks.data.images import write_mask
from wsss_blocks.data.names import COCO_NAMES
from wsss_blocks.data.scenes import Scenes
from wsss_blocks.data.voc_layout import check_scene_names

__all__ = ["write_coco_layout"]

GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
CATEGORY_IDS = tuple(number for number in range(1, 91) if number not in GAPS)
FIRST_VAL = 500_000  # the numbers of training and validation images never meet


def write_coco_layout(
    root: str | Path,
    *,
    train: int = 2000,
    val: int = 200,
    seed: int = 0,
    names: Sequence[str] = COCO_NAMES,
) -> Path:
    """Write scenes under ``root`` as COCO 2014 keeps its images and labels, and masks beside them.

    JPEG images in ``train2014`` and ``val2014``, ``annotations/instances_*.json`` with the official
    category ids (1..90, with their gaps), one annotation per class of an image (box, area, and
    its pixels as an uncompressed run-length code), and indexed masks in
    ``SegmentationClass/SPLIT``. Each file is written under a temporary name and renamed, the
    annotations last.

    Args:
        root: folder to write into; created if missing.
        train: number of training images.
        val: number of validation images.
        seed: seed of the scenes.
        names: the class names, at most 80; the digits stand for the first ten.

    Returns:
        ``root``, to be read with ``COCO(root, "train")``.

    Raises:
        ValueError: ``train`` or ``val`` is less than 1, ``seed < 0``, or not 10 to 80 unique names.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(p.name for p in write_coco_layout(folder, train=2, val=1).iterdir())
        ['SegmentationClass', 'annotations', 'train2014', 'val2014']
    """
    root = Path(root)
    check_scene_names(names, at_most=len(CATEGORY_IDS))
    check_int("train", train, least=1)
    check_int("val", val, least=1)
    images = require("PIL.Image", extra="cli", what="write_coco_layout")
    categories = [
        {"id": number, "name": name, "supercategory": "scene"}
        for number, name in zip(CATEGORY_IDS, names, strict=False)
    ]
    for scenes, first in (
        (Scenes("train", size=train, seed=seed), 1),
        (Scenes("val", size=val, seed=seed), FIRST_VAL + 1),
    ):
        split = f"{scenes.split}2014"
        listed: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(len(scenes)):
            scene, number = scenes.draw(index), first + index
            name = f"COCO_{split}_{number:012d}"
            with replaced(root / split / f"{name}.jpg") as path:
                images.fromarray(scene.image).save(path, format="JPEG", quality=95)
            write_mask(root / "SegmentationClass" / split / f"{name}.png", scene.mask)
            listed.append(
                {"id": number, "file_name": f"{name}.jpg", "height": CANVAS, "width": CANVAS}
            )
            for digit in sorted(set(scene.digits)):
                described = _describe(scene.mask == digit + 1)
                key = {"id": len(annotations) + 1, "image_id": number}
                annotations.append({**key, "category_id": CATEGORY_IDS[digit], **described})
        content = {"images": listed, "annotations": annotations, "categories": categories}
        with replaced(root / "annotations" / f"instances_{split}.json") as path:
            path.write_text(json.dumps(content))
    return root


def _describe(region: NDArray[np.bool_]) -> dict[str, Any]:
    """Return box (left, top, width, height), area and run lengths down the columns."""
    rows, columns = np.nonzero(region)
    left, top = columns.min(), rows.min()
    box = [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
    flat = np.concatenate([[False], region.T.ravel()])  # runs start with background
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges, [region.size]]))
    return {
        "bbox": [int(side) for side in box],
        "area": int(region.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(region.shape), "counts": counts.tolist()},
    }
