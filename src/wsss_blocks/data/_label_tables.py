"""Weak labels in the formats that people edit; every error names the file and the line."""

import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from wsss_blocks.data._files import read_text

__all__ = [
    "Rows",
    "check_class_names",
    "check_rows",
    "check_suffix",
    "in_order",
    "read_csv",
    "read_json",
    "write_csv",
    "write_json",
]

Rows = dict[str, list[str]]

# The first separator outside quotes: "," or, where the comma is decimal, Excel's ";" (or a tab).
SEPARATOR = re.compile(r'(?:"(?:[^"]|"")*"|[^",;\t])*([,;\t])')


def check_class_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names as a tuple; raise unless they are different strings, at least one."""
    listed = isinstance(names, Iterable) and not isinstance(names, str)
    found = tuple(names) if listed else ()
    if not listed or not all(isinstance(name, str) for name in found):
        raise TypeError(f"names must be a sequence of strings, got {names!r}.")
    if not found or len(set(found)) < len(found):
        raise ValueError(f"names must be unique and at least one, got {found}.")
    return found


def check_rows(rows: Mapping[str, Collection[str]], names: Collection[str]) -> None:
    """Raise unless ``rows`` maps ids to collections of these names."""
    if not isinstance(rows, Mapping):
        raise TypeError(f"rows must map image ids to class names, got {type(rows).__name__}.")
    for image, present in rows.items():
        listed = isinstance(present, Collection) and not isinstance(present, str)
        if not listed or not isinstance(image, str):
            raise TypeError(
                f"rows must map strings to collections of class names, got {image!r}: {present!r}."
            )
        for name in present:
            if name not in names:
                raise ValueError(
                    f"rows must hold known classes, got {name!r} for {image!r}, which is not among "
                    f"the {len(names)} names ({', '.join(list(names)[:3])}, ...)."
                )


def in_order(
    path: Path, found: tuple[Sequence[str], Rows], names: Sequence[str] | None
) -> tuple[Sequence[str], Rows]:
    """Put ``names``, if given, in place of the same names in the order of the file."""
    own, rows = found
    if names is not None and set(names) != set(own):
        odd = ", ".join(sorted(set(names) ^ set(own))[:5])
        raise ValueError(
            f"{path} must have the {len(names)} classes of names, got {len(own)}; "
            f"in only one of the two: {odd}."
        )
    return own if names is None else names, rows


def check_suffix(path: Path) -> None:
    """Raise unless a label file of this name can be written."""
    if path.suffix not in (".json", ".csv"):
        raise ValueError(f"path must end in .json or .csv, got {path}.")


def write_json(
    file: IO[str], names: Sequence[str], rows: Rows, *, counts: Mapping[str, int], digest: str
) -> None:
    """Write names, images per class, hash, and a line per image."""
    head = {"names": list(names), "counts": dict(counts), "hash": digest}
    top = "".join(f" {_json(key)}: {_json(value)},\n" for key, value in head.items())
    lines = ",\n".join(f"  {_json(image)}: {_json(present)}" for image, present in rows.items())
    file.write(f'{{{top[1:]} "labels": {{\n{lines}\n }}}}\n')


def write_csv(file: IO[str], names: Sequence[str], rows: Rows) -> None:
    """Write a 0/1 column per class."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["id", *names])
    for image, present in rows.items():
        writer.writerow([image, *(int(name in present) for name in names)])


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def read_json(path: Path) -> tuple[list[str], Rows]:
    """Read ``{"names": [...], "labels": {id: [class names]}}``."""
    text = read_text(path, "label file")
    try:
        content = json.loads(text)
        names, rows = list(content["names"]), dict(content["labels"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a JSON file of weak labels: {error!r}") from error
    if not all(isinstance(row, list) for row in rows.values()):
        raise ValueError(f"{path} must give a list of class names for each id.")
    try:
        check_rows(rows, check_class_names(names))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return names, rows


def read_csv(path: Path, names: Sequence[str] | None) -> tuple[list[str], Rows]:
    """Read a 0/1 column per class, or one column of class names separated by semicolons.

    The second form knows only the classes that occur; ``names`` may add others.
    """
    lines = list(io.StringIO(read_text(path, "label file")))
    match = SEPARATOR.match(next(filter(str.strip, lines), ""))
    separator = match[1] if match else ","
    table = _cells(path, lines, separator)
    if not table or len(table[0][1]) < 2:
        raise ValueError(f"{path} must start with a header of at least two columns.")
    (first, header), *body = table
    for line, row in body:
        if len(row) != len(header) or not row[0]:
            raise ValueError(f"{path}:{line} must have an id and {len(header) - 1} more cells.")
    rows: Rows = {}
    if len(header) == 2 and header[1].lower() in ("label", "labels", "class", "classes"):
        for _, (image, cell) in body:
            words = re.split("[;,]" if separator == ";" else ";", cell)
            rows.setdefault(image, []).extend(word.strip() for word in words if word.strip())
        found = {name for row in rows.values() for name in row}
        return sorted(found | set(names or ())), rows
    if "" in header[1:] or len(set(header[1:])) < len(header) - 1:
        raise ValueError(f"{path}:{first} must name each class once, got {', '.join(header[1:])}.")
    for line, (image, *cells) in body:
        if image in rows:
            raise ValueError(f"{path}:{line} repeats the id {image!r}.")
        if not set(cells) <= {"0", "1"}:
            odd = next(cell for cell in cells if cell not in ("0", "1"))
            raise ValueError(f"{path}:{line} must hold 0 or 1 for each class, got {odd!r}.")
        rows[image] = [name for name, c in zip(header[1:], cells, strict=True) if c == "1"]
    return header[1:], rows


def _cells(path: Path, lines: Iterable[str], separator: str) -> list[tuple[int, list[str]]]:
    """List line numbers and stripped cells of the rows that are not empty."""
    reader, table = csv.reader(lines, delimiter=separator), []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                table.append((reader.line_num, cells))
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num} is not CSV: {error}") from error
    return table
