"""The formats that data sets and the field keep labels in; every error names the file."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from wsss_blocks.data._files import read_text
from wsss_blocks.data._label_tables import Rows
from wsss_blocks.data._plain_pickle import load_arrays
from wsss_blocks.data.images import is_image, read_mask

__all__ = [
    "read_coco_json",
    "read_coco_txt",
    "read_folders",
    "read_mask_names",
    "read_npy",
    "read_xml",
]


def read_npy(path: Path, names: Sequence[str]) -> Rows:
    """Read the field's ``cls_labels(_onehot).npy``: a pickled dictionary in a 0-d array."""
    if not path.is_file():
        raise FileNotFoundError(f"no label file at {path}.")
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            dtype = read_header(file)[2]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} is not a .npy file: {error}") from error
        if dtype != np.dtype(object):
            raise ValueError(f"{path} must hold a dictionary from id to labels, got {dtype} data.")
        try:
            vectors = load_arrays(file)
        except ValueError as error:
            raise ValueError(f"{path} is {error}") from error
    rows = {}
    for image, vector in vectors.items():
        if len(vector) != len(names):
            hint = " Is it the VOC file under another name?" if len(vector) == 20 else ""
            raise ValueError(
                f"{path} has {len(vector)} label columns, but names has {len(names)}.{hint}"
            )
        if not np.isin(vector, (0, 1)).all():
            raise ValueError(f"{path} must hold 0 or 1 for each class, not so for {image!r}.")
        rows[image] = [name for name, value in zip(names, vector, strict=True) if value]
    return rows


def read_folders(root: Path, exclude: Collection[str]) -> tuple[list[str], Rows]:
    """Read a folder per class; images directly in ``root`` have none."""
    if not root.is_dir():
        raise FileNotFoundError(f"root must be a folder, got {root}.")
    folders = {p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")}
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


def read_mask_names(path: Path, names: Sequence[str]) -> list[str]:
    """List the classes of a mask's ids, without 0 and 255."""
    ids = [i for i in np.unique(read_mask(path).numpy()).tolist() if i not in (0, 255)]
    if ids and max(ids) > len(names):
        raise ValueError(f"{path} has the class id {max(ids)}, but names has {len(names)}.")
    return [names[i - 1] for i in ids]


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
