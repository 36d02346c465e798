"""New folders and files that appear whole or not at all, and never in place of others."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wsss_blocks._files import replaced

__all__ = ["new_file", "new_folder"]


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``, renamed when the block ends well, else removed."""
    if path.exists():
        raise FileExistsError(f"{path} exists: choose another output, nothing is replaced.")
    with replaced(path) as temporary:
        yield temporary


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``, renamed when the block ends well, else removed."""
    path = Path(os.path.abspath(path))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(
            f"{path} must be a new or empty folder: nothing is replaced. Choose another output."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if path.is_dir():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
