"""Lists of ids, folders behind links, and errors that name the file."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from wsss_blocks._optional import require

__all__ = ["files_below", "leads_back", "named", "read_ids", "read_text", "walk"]

# What PIL raises on broken files, besides its own DecompressionBombError.
BROKEN = (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, ArithmeticError)


def read_text(path: Path, what: str) -> str:
    """Read a text file that people may have edited: UTF-8, with or without a byte-order mark."""
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} must be UTF-8 text, got byte {error.object[error.start]:#04x} at position "
            f"{error.start}: save it as UTF-8 (in Excel: 'CSV UTF-8')."
        ) from error


def read_ids(path: Path) -> list[str]:
    """Read a list of image ids: the first word of each line; of a path its stem."""
    text = read_text(path, "id list")
    words = [line.split()[0] for line in text.splitlines() if line.strip()]
    ids = [Path(word).stem if "/" in word else word for word in words]
    if not ids:
        raise ValueError(f"{path} lists no ids.")
    return ids


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk as ``os.walk`` does, also through links to folders, but never in a circle.

    Who takes names out of the list of folders is not led into them.
    """
    for here, folders, files in os.walk(root, followlinks=True):
        folder = Path(here)
        folders[:] = [name for name in folders if not leads_back(folder / name, root)]
        yield folder, folders, files


def files_below(root: Path, suffix: str, *, any_case: bool = False) -> dict[str, Path]:
    """List the files in and below a folder by their ids (paths without suffix), none hidden."""
    found = {}
    for here, folders, files in walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            spelled = name.lower() if any_case else name
            if spelled.endswith(suffix) and not name.startswith("."):
                path = here / name
                found[path.relative_to(root).with_suffix("").as_posix()] = path
    return dict(sorted(found.items()))


def leads_back(path: Path, root: Path) -> bool:
    """Tell whether a link below ``root`` leads to a folder that holds one on the way to it."""
    if not path.is_symlink():
        return False
    target = path.resolve()
    way = (root / folder for folder in path.relative_to(root).parents)
    return any(folder.resolve().is_relative_to(target) for folder in way)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Name the file in whatever PIL raises about it."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no image at {path}.") from error
    except (*BROKEN, struct.error, _decompression_bomb()) as error:
        raise OSError(f"{path} cannot be read as an image: {error}") from error


def _decompression_bomb() -> type[Exception]:
    pillow = require("PIL.Image", extra="cli", what="reading an image")
    return cast(type[Exception], pillow.DecompressionBombError)
