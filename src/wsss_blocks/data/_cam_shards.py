"""Shards of a CAM store: the maps of some hundred images, end to end, in one safetensors file."""

import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from wsss_blocks._files import replaced

__all__ = [
    "DTYPES",
    "DamagedError",
    "Record",
    "Shard",
    "decode",
    "encode",
    "list_shards",
    "remove_temporary",
    "shard_file",
    "write_shard",
]

DTYPES = {"uint8": torch.uint8, "float16": torch.float16}
_KINDS = {"uint8": "U8", "float16": "F16"}
_NAME = re.compile(r"shard-(\d+)-(\d+)\.safetensors")


class DamagedError(ValueError):
    """A shard is not whole, or holds other bytes than were written."""


class Record(NamedTuple):
    """What is stored of one image: codes ``(P, h, w)`` and what they mean."""

    image: str
    classes: Tensor
    image_size: tuple[int, int]
    codes: Tensor
    low: Tensor
    high: Tensor

    def check(self) -> int:
        """Return the CRC-32 of all of it."""
        about = json.dumps([self.image, *self.image_size, *self.codes.shape]).encode()
        value = zlib.crc32(about)
        for tensor in (self.codes, self.classes.int(), self.low, self.high):
            value = zlib.crc32(tensor.numpy().tobytes(), value)
        return value


def encode(maps: Tensor, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """Turn float32 maps ``(P, h, w)`` into codes, and the range ``(P,)`` of each."""
    low, high = maps.amin((1, 2)), maps.amax((1, 2))
    if dtype == "float16":
        return maps.half(), low, high
    step = (high.double() - low.double()) / 255
    step = step.where(step > 0, 1.0)[:, None, None]
    return ((maps.double() - low[:, None, None]) / step).round().to(torch.uint8), low, high


def decode(codes: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return float32 maps, in memory of their own."""
    if codes.dtype == torch.float16:
        return codes.float()
    step = (high.double() - low.double()) / 255
    return (codes * step[:, None, None] + low[:, None, None]).float()


def shard_file(folder: Path, rank: int, number: int) -> Path:
    """Return the file of a shard; each process counts its own."""
    return folder / f"shard-{rank:03d}-{number:05d}.safetensors"


def list_shards(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """Yield rank, number and file of each shard, in that order."""
    found = ((path, _NAME.fullmatch(path.name)) for path in folder.glob("shard-*.safetensors"))
    yield from sorted((int(m[1]), int(m[2]), path) for path, m in found if m)


def remove_temporary(folder: Path, *, rank: int, world_size: int) -> None:
    """Remove what killed processes left half-written, each process its share."""
    for path in folder.glob(".shard-*.tmp"):
        match = re.match(r"\.shard-(\d+)-", path.name)
        if match and int(match[1]) % world_size == rank:
            path.unlink(missing_ok=True)


def write_shard(path: Path, records: Sequence[Record], *, made_with: str) -> None:
    """Write a shard under a temporary name, flush it to the disk, then rename it.

    Raises:
        FileExistsError: somebody else has written it.
    """
    from safetensors.torch import save_file

    tensors = {
        "maps": torch.cat([record.codes.flatten() for record in records]),
        "classes": torch.cat([record.classes for record in records]).int(),
        "low": torch.cat([record.low for record in records]),
        "high": torch.cat([record.high for record in records]),
        "counts": torch.tensor([len(record.classes) for record in records]),
        "grids": torch.tensor([record.codes.shape[1:] for record in records]),
        "image_sizes": torch.tensor([record.image_size for record in records]),
        "checks": torch.tensor([record.check() for record in records]),
    }
    ids = json.dumps([record.image for record in records])
    about = {"made_with": made_with, "ids": ids, "ids_check": _check(ids)}
    with replaced(path) as temporary:
        save_file(tensors, temporary, metadata=about)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if path.exists():
            raise FileExistsError(f"{path} exists: another process with this rank wrote it.")


class Shard:
    """Index of one shard; the maps are mapped into memory when one is asked for.

    Raises:
        DamagedError: it is not whole.
        ValueError: it belongs to another store.
    """

    def __init__(self, path: Path, *, made_with: str, dtype: str) -> None:
        from safetensors import SafetensorError, safe_open

        self.path, self._maps = path, torch.empty(0)
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                # copies: a view would keep the whole file mapped
                names = ("classes", "low", "high", "counts", "grids", "image_sizes", "checks")
                found = {name: file.get_tensor(name).clone() for name in names}
                maps = file.get_slice("maps")
                (length,), kind = maps.get_shape(), maps.get_dtype()
            self.ids = [str(image) for image in json.loads(about["ids"])]
            self._classes, self._low, self._high = found["classes"], found["low"], found["high"]
            self._counts = found["counts"].tolist()
            self._grids: list[list[int]] = found["grids"].tolist()
            self._sizes: list[list[int]] = found["image_sizes"].tolist()
            self._checks = found["checks"].tolist()
            cells = (p * h * w for p, (h, w) in zip(self._counts, self._grids, strict=True))
            self._starts = list(accumulate(cells, initial=0))
            self._firsts = list(accumulate(self._counts, initial=0))
            if about["ids_check"] != _check(about["ids"]):
                raise ValueError("its ids have changed")
            images, rows = len(self.ids), self._firsts[-1]
            whole = (
                {len(self._grids), len(self._sizes), len(self._checks)} == {images}
                and {len(self._classes), len(self._low), len(self._high)} == {rows}
                and (self._starts[-1], kind) == (length, _KINDS[dtype])
            )
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise DamagedError(f"{path} must be a whole shard of a CAM store: {error}") from error
        if about.get("made_with") != made_with:
            raise ValueError(f"{path} must belong to the store of store.json, got another's shard.")
        if not whole:
            raise DamagedError(f"{path} must be a whole shard of a CAM store: its index is broken.")

    def __getitem__(self, row: int) -> Record:
        """Read one image.

        Raises:
            DamagedError: the bytes are not those that were written.
        """
        if not len(self._maps) and self._starts[-1]:
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(self.path, framework="pt") as file:
                    self._maps = file.get_tensor("maps")
            except SafetensorError as error:
                raise DamagedError(f"{self.path} must be a whole shard: {error}") from error
        ours = slice(self._firsts[row], self._firsts[row + 1])
        shape = (self._counts[row], *self._grids[row])
        codes = self._maps[self._starts[row] : self._starts[row + 1]].view(shape)
        height, width = self._sizes[row]
        low, high = self._low[ours], self._high[ours]
        record = Record(self.ids[row], self._classes[ours], (height, width), codes, low, high)
        if record.check() != self._checks[row]:
            raise DamagedError(
                f"{self.path} must hold the maps of {record.image!r} as they were written: its "
                "bytes have changed. Remove the file and go on writing: they are made again."
            )
        return record


def _check(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
