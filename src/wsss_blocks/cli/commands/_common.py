"""What several commands are told in the same words."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TypeVar

from tyro.conf import arg

__all__ = ["File", "Folder", "Names", "Number", "class_names", "progress"]

T = TypeVar("T")

# Options that may be left out; what happens then stands in their help.
File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]
Folder = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")]
Names = Annotated[str | None, arg(metavar="NAMES", help_behavior_hint="")]
Number = Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: one per core)")]


def class_names(text: str) -> tuple[str, ...]:
    """Read class names: a known data set, a file of names or of labels, or names with commas.

    A text file holds one name a line; a JSON file is a list, or has a list called ``names``.

    Raises:
        ValueError: the file does not hold names.
        FileNotFoundError: it looks like a file and is not there.
    """
    import json

    from wsss_blocks.data._files import read_text
    from wsss_blocks.data._label_tables import check_class_names
    from wsss_blocks.data._tables import CLASS_TABLES, read_table

    if text in CLASS_TABLES:
        return tuple(read_table(text)["names"])
    path = Path(text)
    if "," in text and not path.is_file():
        return check_class_names([name.strip() for name in text.split(",") if name.strip()])
    if path.suffix.lower() not in (".txt", ".json"):
        raise ValueError(
            f"names must be one of {', '.join(CLASS_TABLES)}, a .txt or .json file, or names "
            f"separated by commas, got {text!r}."
        )
    content = read_text(path, "file of class names")
    if path.suffix.lower() == ".txt":
        return check_class_names(line.strip() for line in content.splitlines() if line.strip())
    try:
        found = json.loads(content)
        return check_class_names(found["names"] if isinstance(found, dict) else found)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be a JSON list of class names, got: {error}") from error


def progress(items: Iterable[T], *, total: int, text: str) -> Iterable[T]:
    """Show a bar on stderr while the items are taken; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, total=total, description=text, console=Console(stderr=True))
