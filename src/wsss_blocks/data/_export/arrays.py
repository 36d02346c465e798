"""Masks as compressed arrays of numpy: a file per image, or one for all."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsss_blocks.data._export.options import Options
from wsss_blocks.data._export.source import Mask

__all__ = ["NpzFileWriter", "NpzFolderWriter"]

EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date that a zip can hold: the same bytes each time


class NpzFolderWriter:
    """Write ``ID.npz`` with ``mask`` and ``names``, background first."""

    def __init__(self, place: Path, options: Options) -> None:
        self.place, self.names = place, np.array(["background", *options.names])

    def convert(self, mask: Mask) -> bytes:
        """Write the file of an image."""
        target = self.place / f"{mask.name}.npz"
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, {"mask": _content(mask.ids), "names": _content(self.names)})
        return b""

    def finish(self, results: Mapping[str, bytes]) -> None:
        """Nothing is shared."""


class NpzFileWriter:
    """Write one file with ``ids``, ``names`` and ``masks/ID`` for each image."""

    def __init__(self, place: Path, options: Options) -> None:
        self.place, self.names = place, np.array(["background", *options.names])

    def convert(self, mask: Mask) -> bytes:
        """Return a mask, compressed to be kept until all are there."""
        return zlib.compress(_content(mask.ids))

    def finish(self, results: Mapping[str, bytes]) -> None:
        """Write the file."""
        with zipfile.ZipFile(self.place, "w") as file:
            heads = {"ids": np.array(list(results)), "names": self.names}
            for key, array in heads.items():
                _put(file, key, _content(array))
            for name, packed in results.items():
                _put(file, f"masks/{name}", zlib.decompress(packed))


def _content(array: NDArray[Any]) -> bytes:
    written = io.BytesIO()
    np.lib.format.write_array(written, array, allow_pickle=False)
    return written.getvalue()


def _write(path: Path, arrays: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for key, content in arrays.items():
            _put(file, key, content)


def _put(file: zipfile.ZipFile, key: str, content: bytes) -> None:
    file.writestr(zipfile.ZipInfo(f"{key}.npy", EPOCH), content, zipfile.ZIP_DEFLATED)
