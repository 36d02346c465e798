"""The formats that data sets and the field keep labels in; every error names the file."""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence, Sized
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from wsss_blocks._optional import require
from wsss_blocks._parallel import ordered_map
from wsss_blocks.data._files import leads_back, named, read_text
from wsss_blocks.data._label_tables import Rows
from wsss_blocks.data._plain_pickle import load_arrays, skip_npy_header
from wsss_blocks.data.classes import CLASS_TABLES, class_table
from wsss_blocks.data.images import is_image, read_mask

__all__ = [
    "read_coco_json",
    "read_coco_txt",
    "read_folders",
    "read_masks",
    "read_npy",
    "read_xml",
]

NAMELESS = "the format has no class names."
ID_PATTERNS = {
    "voc": re.compile(r"\d{4}_\d{6}"),
    "coco": re.compile(r"(COCO_(train|val)2014_)?\d{12}"),
}


def read_npy(path: Path, names: Sequence[str] | None) -> tuple[Sequence[str], Rows]:
    """Read the field's ``cls_labels(_onehot).npy``: a pickled dictionary in a 0-d array."""
    if not path.is_file():
        raise FileNotFoundError(f"no label file at {path}.")
    with path.open("rb") as file:
        try:
            skip_npy_header(file)
        except ValueError as error:
            raise ValueError(
                f"{path} is not a .npy file of a dictionary from id to labels: {error}"
            ) from error
        try:
            vectors = load_arrays(file)
        except ValueError as error:
            raise ValueError(f"{path} is {error}") from error
    if names is None:
        raise ValueError(f"names must be given for {path}: {NAMELESS}{_whose(vectors)}")
    rows = {}
    for image, vector in vectors.items():
        if len(vector) != len(names):
            raise ValueError(
                f"{path} has {len(vector)} label columns, but names has {len(names)}: is it the "
                f"file of another data set?{_whose({image: vector})}"
            )
        if not np.isin(vector, (0, 1)).all():
            raise ValueError(f"{path} must hold 0 or 1 for each class, not so for {image!r}.")
        rows[image] = [names[k] for k in np.flatnonzero(vector).tolist()]
    return names, rows


def _whose(vectors: Mapping[str, Sized]) -> str:
    """Say which data set the columns and the ids of a label file are those of."""
    image, vector = next(iter(vectors.items()), ("", ()))
    columns = len(vector)
    fitting = [name for name in CLASS_TABLES if len(class_table(name).names) == columns]
    look = next((name for name, pattern in ID_PATTERNS.items() if pattern.fullmatch(image)), None)
    hints = []
    if fitting:
        hints.append(f"{columns} columns are those of {' or '.join(fitting)}")
    elif any(len(class_table(name).names) == columns - 1 for name in CLASS_TABLES):
        hints.append(f"one of the {columns} columns may be background, which has no place here")
    if look:
        hints.append(f"ids such as {image} are those of {look}")
    return f" {'; '.join(hints)}." if hints else ""


def read_folders(root: Path, exclude: Collection[str]) -> tuple[list[str], Rows]:
    """Read a folder per class; images directly in ``root`` have none."""
    if not root.is_dir():
        raise FileNotFoundError(f"root must be a folder, got {root}.")
    folders = {
        path.name
        for path in root.iterdir()
        if path.is_dir() and not path.name.startswith(".") and not leads_back(path, root)
    }
    names = sorted(folders - set(exclude))
    if not names:
        raise ValueError(f"{root} must have a folder for each class.")
    rows: Rows = {}
    for name in ("", *names):
        for path in sorted((root / name).iterdir()):
            if is_image(path.name):
                image = path.relative_to(root).with_suffix("").as_posix()
                rows[image] = [name] if name else []
    return names, rows


def read_xml(path: Path, names: Sequence[str]) -> list[str]:
    """Read the object names of a VOC annotation (not those of their parts)."""
    if not path.is_file():
        raise FileNotFoundError(f"no annotation at {path}; pass labels if there are other ones.")
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not XML: {error}") from error
    found = {(item.findtext("name") or "").strip() for item in objects}
    if not found <= set(names):
        raise ValueError(
            f"{path} names {sorted(found - set(names))}, not among the {len(names)} names."
        )
    return sorted(found)


def read_masks(
    root: Path,
    ids: Iterable[str],
    names: Sequence[str],
    *,
    lookup: NDArray[np.uint8] | None,
    workers: int,
) -> Rows:
    """List the classes of each mask ``<id>.png``, without 0 and 255."""

    def read(image: str) -> tuple[str, list[str]]:
        path = root / f"{image}.png"
        found = _ids_in(path)
        if lookup is not None and found and max(found) < len(lookup):
            found = sorted(set(lookup[found].tolist()))
        found = [i for i in found if i not in (0, 255)]
        if found and max(found) > len(names):
            raise ValueError(f"{path} has the class id {max(found)}, but names has {len(names)}.")
        return image, [names[i - 1] for i in found]

    return dict(ordered_map(read, ids, workers=workers))


def _ids_in(path: Path) -> list[int]:
    """List the values of a mask; 8 bits a pixel, as nearly all, by PIL's histogram."""
    pillow = require("PIL.Image", extra="cli", what="reading a mask")
    with named(path), pillow.open(path) as file:
        if file.mode in ("L", "P"):
            return [i for i, count in enumerate(file.histogram()) if count]
    return [int(i) for i in np.unique(read_mask(path).numpy())]


def read_coco_txt(path: Path, names: Sequence[str]) -> Rows:
    """Read lines of an image id followed by 0-based class ids."""
    rows: Rows = {}
    for line, text in enumerate(read_text(path, "label file").splitlines(), 1):
        if not text.strip():
            continue
        image, *cells = text.split()
        if image in rows:
            raise ValueError(f"{path}:{line} repeats the id {image!r}.")
        if not all(cell.isdigit() and int(cell) < len(names) for cell in cells):
            raise ValueError(
                f"{path}:{line} must list class ids in [0, {len(names)}), got {' '.join(cells)!r}."
            )
        rows[image] = [names[int(cell)] for cell in cells]
    return rows


def read_coco_json(path: Path) -> tuple[list[str], Rows]:
    """Read a COCO ``instances`` file: classes in category-id order, a row for every image."""
    text = read_text(path, "annotation file")
    try:
        content = json.loads(text)
        categories = sorted(content["categories"], key=lambda category: int(category["id"]))
        name_of = {category["id"]: str(category["name"]) for category in categories}
        image_of = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
        rows: Rows = {image: [] for image in image_of.values()}
        for annotation in content["annotations"]:
            rows[image_of[annotation["image_id"]]].append(name_of[annotation["category_id"]])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a COCO instances file: {error!r}") from error
    return list(name_of.values()), rows
