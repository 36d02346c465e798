"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replaced"]


@contextmanager
def replaced(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside ``path``, renamed when the block ends well, else removed."""
    path = Path(path)
    if path.exists() and not path.is_file():  # a folder, or a device such as /dev/null
        raise ValueError(f"{path} must be a file, or not exist yet: it cannot be replaced.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
