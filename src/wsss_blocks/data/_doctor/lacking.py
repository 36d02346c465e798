"""Images without a label row or a mask, and when that is a fault."""

import os
from collections.abc import Iterable
from pathlib import Path

from wsss_blocks.data._doctor.kinds import Finding
from wsss_blocks.data._doctor.parts import Listing, Part
from wsss_blocks.data._matching import image_id

__all__ = ["Lacking", "find_masks", "without_mask", "without_row"]


class Lacking:
    """Images that lack a row or a mask, unless they are in a split where that is meant.

    A label file may speak of train alone; then the images of val, which trainval lists too, are
    not meant to have a row.
    """

    def __init__(self) -> None:
        self.findings: dict[str, Finding] = {}
        self.excused: set[str] = set()

    def judge(self, findings: dict[str, Finding], *, meant: bool) -> None:
        if meant:
            self.excused.update(findings)
        else:
            self.findings = findings | self.findings

    def left(self) -> list[Finding]:
        return [f for image, f in self.findings.items() if image not in self.excused]


def without_row(part: Part, files: Iterable[str], row_of: dict[str, str]) -> dict[str, Finding]:
    """Return a finding for each image file that has no row."""
    lacking = (f for f in files if f not in row_of and image_id(f) not in part.reported)
    paths, detail = (str(part.images / file) for file in lacking), f"no row in {part.labels_from}"
    return {path: Finding("file-without-label", path, detail) for path in paths}


def find_masks(split: Listing, files: Iterable[str], *, numbered: bool) -> dict[str, str]:
    """Find the masks; those of COCO's 2014 images often go by the number alone (``numbered``)."""
    if split.masks is None:
        return {}
    found: dict[str, str] = {}
    for file in files:
        path = _mask(split.masks, image_id(file))
        if numbered and not os.path.isfile(path):
            path = _mask(split.masks, image_id(file).rpartition("_")[2])
        if os.path.isfile(path):
            found[file] = path
    return found


def without_mask(
    part: Part, split: Listing, files: Iterable[str], masks: dict[str, str]
) -> dict[str, Finding]:
    """Return a finding for each image of the split that has no mask."""
    found = {}
    for file in files:
        if split.masks is not None and file not in masks:
            image = str(part.images / file)
            detail = f"no mask of {image}"
            found[image] = Finding("missing-mask", _mask(split.masks, image_id(file)), detail)
    return found


def _mask(folder: Path, name: str) -> str:
    return os.path.join(folder, f"{name}.png")
