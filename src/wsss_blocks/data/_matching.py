"""Which image file a row of labels means, and which images are left out for want of one."""

import os
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from wsss_blocks.data._files import walk
from wsss_blocks.data.images import IMAGE_SUFFIXES, is_image
from wsss_blocks.data.weak_labels import WeakLabels

__all__ = [
    "NO_IMAGE",
    "NO_LABELS",
    "Chosen",
    "check_names",
    "choose_images",
    "find_images",
    "image_id",
    "spelled",
    "with_reasons",
]

NO_LABELS, NO_IMAGE = "without labels", "without an image"  # how reasons in `skipped` begin


class Chosen(NamedTuple):
    """The images of a data set: ids, files below its folder, their labels, and what is left out."""

    ids: list[str]
    files: list[str]
    labels: WeakLabels | None
    skipped: dict[str, str]


def find_images(root: Path, *, exclude: Collection[str] = ()) -> list[str]:
    """List the images below ``root`` as relative paths, without its sub-folders ``exclude``."""
    found: list[str] = []
    for folder, folders, names in walk(root):
        left_out = exclude if folder == root else ()
        folders[:] = [name for name in folders if not name.startswith(".") and name not in left_out]
        below = folder.relative_to(root)
        found += [(below / name).as_posix() for name in names if is_image(name)]
    return sorted(found, key=lambda file: (image_id(file), file))


def image_id(file: str) -> str:
    """Return the path without its suffix."""
    return os.path.splitext(file)[0]


def spelled(name: str) -> str:
    """Write an id in one way: composed accents, the suffix of an image in lower case."""
    name = name if name.isascii() else unicodedata.normalize("NFC", name)
    stem, suffix = os.path.splitext(name)
    return stem + suffix.lower() if suffix.lower() in IMAGE_SUFFIXES else name


def choose_images(
    root: Path,
    files: Sequence[str],
    labels: WeakLabels | None,
    *,
    ids: Sequence[str] | None = None,
    strict: bool = True,
    complete: bool = False,
    key: Callable[[str], str] = spelled,
) -> Chosen:
    """Match ids with files and rows of labels; both may carry the suffix of the image or not.

    ``ids`` are by default those of ``labels``, or all ``files``. ``complete``: each file must have
    a row. What lacks a file or a row is an error, or else left out with a reason.
    """
    meaning: dict[str, list[str]] = {}
    for file in dict.fromkeys(files):
        for name in dict.fromkeys((key(image_id(file)), key(file))):
            meaning.setdefault(name, []).append(file)
    rows = {} if labels is None else _rows(labels, meaning, root, key)
    everything = ids is None
    if ids is None:
        ids = [image_id(file) for file in files] if labels is None else labels.ids
    chosen: list[str] = []
    skipped: dict[str, str] = {}
    for name in ids:
        found = _file(name, meaning, root, key)
        if labels is not None and found not in rows and (found or name not in labels):
            skipped[name] = f"{NO_LABELS}: no row for {root / (found or name)}"
        elif found is None:
            skipped[name] = f"{NO_IMAGE}: no file for {name!r} in {root}"
        else:
            chosen.append(found)
    if labels is not None and (complete or (everything and not strict)):
        for file in files:
            if file not in rows:
                skipped[image_id(file)] = f"{NO_LABELS}: no row for {root / file}"
    if strict and skipped:
        _refuse(skipped, len({*ids, *skipped}), root, files, labels)
    if not chosen:
        if skipped:
            raise ValueError(f"no image in {root} can be used: {with_reasons(skipped)}.")
        raise ValueError(f"no images in {root}: no file ends in {', '.join(IMAGE_SUFFIXES)}.")
    kept = _unique_ids(chosen, root)
    if labels is not None:
        of_files = {image_id(file): labels.classes(rows[file]) for file in chosen}
        labels = WeakLabels(labels.names, of_files)
    return Chosen(kept, chosen, labels, skipped)


def with_reasons(skipped: Mapping[str, str]) -> str:
    """Count what was left out for each reason, with an example."""
    kinds: dict[str, list[str]] = {}
    for reason in skipped.values():
        kind, _, detail = reason.partition(": ")
        kinds.setdefault(kind, []).append(detail)
    parts = (f"{len(found)} {kind} ({found[0]})" for kind, found in sorted(kinds.items()))
    return f"{len(skipped)} skipped: {', '.join(parts)}"


def check_names(labels: WeakLabels, names: Sequence[str], source: object) -> None:
    """Raise unless the labels are about these classes, in this order."""
    if labels.names != tuple(names):
        where = f" (from {source})" if isinstance(source, str | Path) else ""
        raise ValueError(
            f"labels{where} must have the classes {_classes(names)}, got {_classes(labels.names)}."
        )


def _rows(
    labels: WeakLabels, meaning: Mapping[str, list[str]], root: Path, key: Callable[[str], str]
) -> dict[str, str]:
    rows: dict[str, str] = {}
    for row in labels:
        file = _file(row, meaning, root, key)
        if file is None:
            continue
        if file in rows:
            raise ValueError(
                f"labels must have one row for {root / file}, got {rows[file]!r} and {row!r}."
            )
        rows[file] = row
    return rows


def _file(
    name: str, meaning: Mapping[str, list[str]], root: Path, key: Callable[[str], str]
) -> str | None:
    files = meaning.get(key(name), [])
    if len(files) > 1:
        raise ValueError(f"{root} has two images with id {name!r}: {files[0]}, {files[1]}.")
    return files[0] if files else None


def _unique_ids(files: Iterable[str], root: Path) -> list[str]:
    owner: dict[str, str] = {}
    ids = []
    for file in files:
        name = image_id(file)
        if owner.setdefault(name, file) != file:
            raise ValueError(f"{root} has two images with id {name!r}: {owner[name]}, {file}.")
        ids.append(name)
    return ids


def _refuse(
    skipped: Mapping[str, str], total: int, root: Path, files: Sequence[str], labels: object
) -> None:
    missing = [name for name, reason in skipped.items() if reason.startswith(NO_LABELS)]
    if missing and isinstance(labels, WeakLabels):
        raise ValueError(
            f"{len(missing)} of {total} ids have no row in labels: {_some(missing)}. The "
            f"{len(labels)} rows are named like {_some(labels.ids)}; the images are in {root}."
        )
    like = f"; the {len(files)} images there are named like {_some(files)}" if files else ""
    raise FileNotFoundError(
        f"{len(skipped)} of {total} ids have no image in {root}: {_some(list(skipped))}{like}."
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")


def _classes(names: Sequence[str]) -> str:
    return f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}; {len(names)} names)"
