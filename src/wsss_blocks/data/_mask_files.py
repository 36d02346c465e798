"""Read masks in numpy alone, as processes do that only count."""

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsss_blocks._optional import require
from wsss_blocks.data._files import named

__all__ = ["look_up_ids", "read_mask_ids"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PLAIN = (b"\x08\x00\x00\x00\x00", b"\x08\x03\x00\x00\x00")  # 8 bits, grey or indexed, no interlace
_LARGEST = 2**26  # pixels: what a broken header asks for may be more than there is memory


def read_mask_ids(path: Path) -> NDArray[np.integer[Any]]:
    """Read an indexed or grey image as ids ``(H, W)``, in the integers of the file.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is truncated or no image.
        ValueError: it is a colour picture.
    """
    with named(path):
        content = path.read_bytes()
    ids = _plain_png(content)
    if ids is not None:
        return ids
    pillow = require("PIL.Image", extra="cli", what="reading a mask")
    with named(path), pillow.open(io.BytesIO(content)) as image:
        mode = image.mode
        found: NDArray[np.integer[Any]] = np.array(image)
    if found.ndim != 2 or mode not in ("P", "L", "1", "I", "I;16"):
        raise ValueError(f"{path} must be an indexed or grey mask of class ids, got mode {mode!r}.")
    return found.astype(np.uint8) if found.dtype == np.bool_ else found


def look_up_ids(
    ids: NDArray[np.integer[Any]], lookup: NDArray[np.uint8] | None, path: Path
) -> NDArray[np.integer[Any]]:
    """Turn the ids of a file into those of a data set, by its ``(256,)`` table.

    Raises:
        ValueError: an id is not in [0, 256).
    """
    if lookup is None:
        return ids
    if ids.dtype != np.uint8:
        odd = ids[(ids < 0) | (ids >= len(lookup))]
        if len(odd):
            raise ValueError(f"{path} must hold ids in [0, {len(lookup)}), got {int(odd[0])}.")
    found: NDArray[np.uint8] = lookup[ids]
    return found


def _plain_png(content: bytes) -> NDArray[np.uint8] | None:
    """Decode a PNG as masks are mostly written, its rows unfiltered; None for any other one.

    Half the time of pillow, which scores of ten thousand masks wait for. The checksums of the
    chunks are verified; that of the pixels, which takes longer, adds nothing to them.
    """
    if content[:8] != _SIGNATURE or content[24:29] not in _PLAIN:
        return None
    width, height = int.from_bytes(content[16:20]), int.from_bytes(content[20:24])
    if not 0 < width * height <= _LARGEST:
        return None
    parts, at, kind = [], 8, b""
    while kind != b"IEND":
        length, kind = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8]
        end = at + 8 + length
        checksum = content[end : end + 4]
        if len(checksum) < 4 or zlib.crc32(content[at + 4 : end]) != int.from_bytes(checksum):
            return None  # pillow says what is wrong with it
        if kind == b"IDAT":
            parts.append(content[at + 8 : end])
        at = end + 4
    packed, size = b"".join(parts), height * (width + 1)
    if packed[:1] != b"\x78" or packed[1:2] not in (b"\x01", b"\x5e", b"\x9c", b"\xda"):
        return None
    try:
        pixels = zlib.decompress(packed[2:], wbits=-15, bufsize=size)
    except zlib.error:
        return None
    if len(pixels) != size:
        return None
    rows = np.frombuffer(pixels, np.uint8).reshape(height, width + 1)
    return None if rows[:, 0].any() else np.ascontiguousarray(rows[:, 1:])
