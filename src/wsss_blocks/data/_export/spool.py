"""What a writer needs of each mask in the end, kept on the disk until then."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

__all__ = ["Spool"]


class Spool(Mapping[str, bytes]):
    """Bytes by id, sorted by it, in a file without a name; only ids are held in memory.

    Args:
        folder: on a disk with as much room as what is written in the end.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0

    def put(self, name: str, content: bytes) -> None:
        """Append what belongs to an id."""
        self._file.seek(self._end)
        self._file.write(content)
        self._places[name] = (self._end, len(content))
        self._end += len(content)

    def __getitem__(self, name: str) -> bytes:
        start, length = self._places[name]
        self._file.seek(start)
        return self._file.read(length)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._places))

    def __len__(self) -> int:
        return len(self._places)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file, which removes it."""
        self._file.close()
