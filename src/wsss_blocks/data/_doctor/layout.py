"""Find out how a data set that may be half broken is laid out; what is broken is reported."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wsss_blocks._validate import check_choice
from wsss_blocks.data._doctor.kinds import Finding
from wsss_blocks.data._doctor.official import coco_folders, parts_of_folders, parts_of_lists
from wsss_blocks.data._doctor.parts import Listing, Part, Wanted, load_given
from wsss_blocks.data._matching import find_images
from wsss_blocks.data.classes import class_table
from wsss_blocks.data.opening import SPLITS, _find_images, _find_labels
from wsss_blocks.data.voc import find_layout

__all__ = ["LAYOUTS", "TABLES", "Layout", "discover"]

LAYOUTS = ("auto", "voc", "coco", "context", "ade20k", "folder")
TABLES = ("voc", "coco", "context", "ade20k")  # layouts with official classes
YEARS = {"voc": 2012, "context": 2010}  # layouts of lists, and the folder they come in


@dataclass
class Layout:
    """What was found below a folder, and what already was wrong with it."""

    kind: str
    root: Path
    names: tuple[str, ...]  # empty if nothing says which classes there are
    parts: list[Part]
    findings: list[Finding]


def discover(
    root: Path,
    *,
    layout: str,
    labels: Path | None,
    masks: Path | None,
    names: tuple[str, ...] | None,
) -> Layout:
    """List what there is. Only what the user named and is not there is an error."""
    check_choice("layout", layout, LAYOUTS)
    if not root.is_dir():
        raise FileNotFoundError(f"root must be a folder, got {root}.")
    if labels is not None and not labels.is_file():
        raise FileNotFoundError(f"labels must be a file, got {labels}.")
    if masks is not None and not masks.is_dir():
        raise FileNotFoundError(f"masks must be a folder, got {masks}.")
    kind = layout
    if layout == "auto":
        kind, root = _guess(root)
    elif layout in YEARS:
        root = find_layout(root, f"VOC{YEARS[layout]}")
    nameless = labels is not None and labels.suffix.lower() in (".npy", ".txt")
    if names is None and kind in TABLES and (kind != "coco" or nameless):
        names = class_table(kind).names
    if names is None and nameless:
        raise ValueError(f"names must be given for {labels}: the format has no class names.")
    wanted, findings = Wanted(labels, masks, names), list[Finding]()
    if kind in YEARS:
        parts = [parts_of_lists(root, kind, wanted, findings)]
    elif kind in ("coco", "ade20k"):
        parts = parts_of_folders(root, kind, wanted, findings)
    else:
        parts = _folders(root, wanted, findings)
    if not any(part.files for part in parts):
        tried = ", ".join(str(part.images) for part in parts)
        raise ValueError(f"no images to examine in {tried} ({kind} layout).")
    found = next((part.labels.names for part in parts if part.labels is not None), ())
    if names is None and kind == "coco":
        names = found or class_table("coco").names
    return Layout(kind, root, names or found, parts, findings)


def _guess(root: Path) -> tuple[str, Path]:
    """Return the layout, and for lists of ids the folder around them."""
    for year in YEARS.values():
        for folder in (root, root / f"VOC{year}", root / "VOCdevkit" / f"VOC{year}"):
            if (folder / "JPEGImages").is_dir():
                context = (folder / "SegmentationClassContext").is_dir()
                return "context" if context else "voc", folder
    for folder in (root, root / "ADEChallengeData2016"):
        if any((folder / "images" / split).is_dir() for split in ("training", "validation")):
            return "ade20k", root
    annotations = (root / "annotations").glob("instances_*.json")
    return "coco" if any(annotations) or coco_folders(root) else "folder", root


def _folders(root: Path, wanted: Wanted, findings: list[Finding]) -> list[Part]:
    """Read what ``open_dataset`` calls a folder: splits of their own, or one that has no name."""
    parts = []
    bases = {split: _find_images(root, split) for split in SPLITS}
    own = {split: found for split, found in bases.items() if found[0] != root}
    given = Part(root, [], [])
    if wanted.labels is not None:
        load_given(given, wanted, findings)
    for split, (base, images) in (own or {"all": bases["train"]}).items():
        exclude = ("masks",) if base == images else ()
        masks = base / "masks"
        if wanted.masks is not None:
            masks = wanted.masks / split if (wanted.masks / split).is_dir() else wanted.masks
        listing = Listing(split, images, None, masks if masks.is_dir() else None)
        part = Part(images, find_images(images, exclude=exclude), [listing])
        parts.append(part)
        if wanted.labels is not None:
            part.labels, part.labels_from = given.labels, given.labels_from
            continue
        beside = (folder / f"labels.{end}" for folder in (base, images) for end in ("json", "csv"))
        part.labels_from = next((path for path in beside if path.is_file()), images)
        try:
            part.labels = _find_labels(base, images, None)
        except (OSError, ValueError) as error:
            findings.append(Finding("labels-unreadable", str(part.labels_from), str(error)))
            continue
        if part.labels_from == images:
            findings += _empty_folders(images)
    return parts


def _empty_folders(images: Path) -> Iterable[Finding]:
    for folder in sorted(images.iterdir()):
        if folder.is_dir() and not any(folder.iterdir()) and not folder.name.startswith("."):
            yield Finding("empty-class", str(folder), f"no image in the folder {folder.name}")
