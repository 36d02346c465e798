"""Lists of ids, and errors that name the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["named", "read_ids"]


def read_ids(path: Path) -> list[str]:
    """Read a list of image ids: the first word of each line; of a path its stem."""
    if not path.is_file():
        raise FileNotFoundError(f"no id list at {path}.")
    words = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    ids = [Path(word).stem if "/" in word else word for word in words]
    if not ids:
        raise ValueError(f"{path} lists no ids.")
    return ids


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Name the file in whatever PIL raises about it."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no image at {path}.") from error
    except (OSError, SyntaxError, ValueError) as error:  # what PIL raises on broken files
        raise OSError(f"{path} cannot be read as an image: {error}") from error
