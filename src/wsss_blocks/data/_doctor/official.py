"""Splits, images, labels and masks of VOC, PASCAL Context, COCO and ADE20K layouts."""

from pathlib import Path

from wsss_blocks.data._doctor.kinds import Finding
from wsss_blocks.data._doctor.parts import Listing, Part, Wanted, load_given
from wsss_blocks.data._files import read_ids
from wsss_blocks.data._label_files import read_xml
from wsss_blocks.data._matching import find_images, image_id
from wsss_blocks.data.opening import SPLITS
from wsss_blocks.data.weak_labels import WeakLabels

__all__ = ["coco_folders", "parts_of_folders", "parts_of_lists"]


def parts_of_lists(root: Path, kind: str, wanted: Wanted, findings: list[Finding]) -> Part:
    """Read VOC and PASCAL Context: one folder of images, a list of ids for each split."""
    images = root / "JPEGImages"
    suffix = ".jpg" if kind == "voc" else ""  # VOC2012 opens no other
    files = [file for file in find_images(images) if file.endswith(suffix)]
    lists = root / "ImageSets" / ("Segmentation" if kind == "voc" else "SegmentationContext")
    own = root / ("SegmentationClass" if kind == "voc" else "SegmentationClassContext")
    augmented = root / "SegmentationClassAug"
    ids: dict[Path, list[str]] = {}
    for path in sorted(lists.glob("*.txt")):
        try:
            ids[path] = read_ids(path)
        except (OSError, ValueError) as error:
            findings.append(Finding("labels-unreadable", str(path), str(error)))
    if not ids:
        findings.append(Finding("labels-unreadable", str(lists), "no list of ids (train.txt, ...)"))
        ids[Path("all")] = [image_id(file) for file in files]
    splits = []
    for path, listed in ids.items():
        folder = augmented if path.stem.endswith("aug") and augmented.is_dir() else own
        folder = wanted.masks or folder
        splits.append(Listing(path.stem, path, listed, folder if folder.is_dir() else None))
    part = Part(images, files, splits, suffix=suffix)
    if wanted.labels is not None:
        load_given(part, wanted, findings)
    elif kind == "voc":
        _read_annotations(part, root / "Annotations", wanted, findings)
    return part


def _read_annotations(part: Part, folder: Path, wanted: Wanted, findings: list[Finding]) -> None:
    part.labels_from = folder
    if not folder.is_dir():
        findings.append(Finding("labels-unreadable", str(folder), "no folder of annotations"))
        return
    have, names = {path.stem for path in folder.glob("*.xml")}, wanted.names or ()
    rows = {}
    for name in {i: None for split in part.splits for i in split.ids or ()}:
        stem = name if name in have else image_id(name)
        path = folder / f"{stem}.xml"
        if stem not in have:
            continue
        try:
            rows[name] = read_xml(path, names)
        except (OSError, ValueError) as error:
            kind = "labels-unreadable" if error.__cause__ is not None else "class-names"
            findings.append(Finding(kind, str(path), str(error)))
            part.reported.add(name)
    part.labels = WeakLabels(names, rows)
    stems = {image_id(file) for file in part.files}
    listed = {name for split in part.splits for name in split.ids or ()}
    for name in sorted(have - stems - listed):
        path = folder / f"{name}.xml"
        findings.append(Finding("label-without-file", str(path), f"no image in {part.images}"))


def parts_of_folders(root: Path, kind: str, wanted: Wanted, findings: list[Finding]) -> list[Part]:
    """Read COCO and ADE20K: a folder of images for each split."""
    given = Part(root, [], [])
    if wanted.labels is not None:
        load_given(given, wanted, findings)
    parts = []
    if kind == "ade20k":
        inner = root / "ADEChallengeData2016"
        root = inner if inner.is_dir() else root
        folders = [root / "images" / name for name in ("training", "validation")]
        folders = [folder for folder in folders if folder.is_dir()]
    else:
        folders = coco_folders(root)
    if not folders:
        raise FileNotFoundError(f"no {kind} layout (a folder of images for each split) in {root}.")
    for images in folders:
        name = images.name
        below = (root / "annotations",) if kind == "ade20k" else ()
        choices = [folder / name for folder in (*below, root / "SegmentationClass", root / "masks")]
        if wanted.masks is not None:
            choices = [wanted.masks / name, wanted.masks]
        masks = next((folder for folder in choices if folder.is_dir()), None)
        part = Part(images, find_images(images), [Listing(name, images, None, masks)])
        parts.append(part)
        part.labels, part.labels_from = given.labels, given.labels_from
        if kind == "ade20k" or wanted.labels is not None:
            continue
        part.labels_from = root / "annotations" / f"instances_{name}.json"
        if not part.labels_from.is_file() and name.startswith("test"):
            continue  # their annotations are secret
        try:
            part.labels = WeakLabels.from_coco_json(part.labels_from)
        except (OSError, ValueError) as error:
            findings.append(Finding("labels-unreadable", str(part.labels_from), str(error)))
    if kind == "coco":
        known = {folder.name for folder in folders}
        for path in sorted((root / "annotations").glob("instances_*.json")):
            name = path.stem.removeprefix("instances_")
            if name not in known:
                detail = f"no folder of images {name} in {root} or {root / 'images'}"
                findings.append(Finding("label-without-file", str(path), detail))
    return parts


def coco_folders(root: Path) -> list[Path]:
    """List folders of images in ``root`` and ``root/images`` that are named like a split."""
    found: dict[str, Path] = {}
    for base in (root, root / "images"):
        for path in sorted(base.iterdir()) if base.is_dir() else ():
            named = (root / "annotations" / f"instances_{path.name}.json").is_file()
            if path.is_dir() and (named or _coco_name(path.name, root)):
                found.setdefault(path.name, path)
    return list(found.values())


def _coco_name(name: str, root: Path) -> bool:
    """Tell whether a folder is a split of COCO, though it may lack its annotation file."""
    year = name[-4:] in ("2014", "2015", "2017") and name[:-4] in SPLITS
    return year or (name in SPLITS and any((root / "annotations").glob("instances_*.json")))
