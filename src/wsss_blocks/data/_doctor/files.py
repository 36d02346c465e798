"""Check one image and its masks: each file is read once and decoded from memory."""

import hashlib
import re
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from wsss_blocks._optional import require
from wsss_blocks.data._doctor.kinds import Finding
from wsss_blocks.data._files import named

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Item", "Seen", "check_files"]

MASK_MODES = ("P", "L", "1", "I", "I;16")  # what read_mask takes
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16")
ORIENTATION = 0x0112  # EXIF
JPEG, PNG, PNG_END = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


class Item(NamedTuple):
    """An image to check: its file, its masks, its classes; ``twin``: another split has its id."""

    image: str
    masks: tuple[str, ...]
    present: tuple[str, ...] | None
    twin: bool = False


class Seen(NamedTuple):
    """What was found, and what comparing files needs: a hash, 16 x 16 pixels if asked for."""

    item: Item
    findings: list[Finding]
    digest: bytes | None
    looks: bytes | None


def check_files(item: Item, names: tuple[str, ...]) -> Seen:
    """Read an image and its masks; ``names`` may be empty if the classes are not known."""
    findings: list[Finding] = []
    digest = looks = size = None
    turned = 1
    raw = _read(item.image, findings)
    if raw:
        digest = hashlib.blake2b(raw, digest_size=16).digest()
        try:
            with named(Path(item.image)), _pillow().open(BytesIO(raw)) as image:
                size = image.size
                if not item.twin:
                    image.draft(image.mode, (1, 1))  # an eighth of the size, all bytes are read
                image.load()
                turned = image.getexif().get(ORIENTATION, 1)
                findings += _about(image, item.image, size)
                findings += _without_end(item.image, raw)
                if item.twin:
                    looks = image.convert("L").resize((16, 16)).tobytes()
        except OSError as error:
            digest, size, turned = None, None, 1
            findings.append(_broken(item.image, raw, error))
    upright = size
    if size is not None and turned in (5, 6, 7, 8):
        upright = size[::-1]
    mask_sizes = [_check_mask(mask, item, names, upright, findings) for mask in item.masks]
    if size is not None and upright is not None and turned in range(2, 9):
        findings.append(Finding("exif-rotated", item.image, _turn(turned, size, mask_sizes)))
    return Seen(item, findings, digest, looks)


def _check_mask(
    path: str,
    item: Item,
    names: tuple[str, ...],
    upright: tuple[int, int] | None,
    findings: list[Finding],
) -> tuple[int, int] | None:
    raw = _read(path, findings)
    if not raw:
        return None
    try:
        with named(Path(path)), _pillow().open(BytesIO(raw)) as mask:
            mask.load()
            size: tuple[int, int] = mask.size
            ids = _ids(mask) if mask.mode in MASK_MODES else None
            mode = mask.mode
    except OSError as error:
        findings.append(_broken(path, raw, error))
        return None
    findings += _without_end(path, raw)
    if upright is not None and size != upright:
        detail = f"mask {_by(size)}, image {_by(upright)} (width x height): {item.image}"
        findings.append(Finding("size-mismatch", path, detail))
    if ids is None:
        findings.append(Finding("rgb-mask", path, f"mode {mode}; a mask has mode P or L"))
        return size
    if names:
        findings += _check_ids(path, ids, item, names)
    return size


def _check_ids(
    path: str, ids: dict[int, int], item: Item, names: tuple[str, ...]
) -> Iterable[Finding]:
    odd = {i: pixels for i, pixels in ids.items() if len(names) < i and i != 255}
    if odd:
        listed = ", ".join(f"{i} ({n} pixels)" for i, n in list(odd.items())[:5])
        more = ", ..." if len(odd) > 5 else ""
        yield Finding("mask-id", path, f"{listed}{more}; ids go to {len(names)}, 255 is ignored")
    if item.present is None:
        return
    inside = {names[i - 1]: n for i, n in ids.items() if 0 < i <= len(names)}
    if lacking := [name for name in item.present if name not in inside]:
        yield Finding("label-not-in-mask", path, f"labels say {', '.join(lacking)}")
    if beyond := [f"{name} ({n} pixels)" for name, n in inside.items() if name not in item.present]:
        yield Finding("mask-not-in-label", path, f"the mask shows {', '.join(beyond)}")


def _about(image: "Image", path: str, size: tuple[int, int]) -> Iterable[Finding]:
    if image.mode == "F":
        yield Finding("unreadable", path, "floating-point pixels: save it with 8 or 16 bits")
    if image.mode == "CMYK":
        yield Finding("cmyk", path, "mode CMYK")
    if image.mode in GREY_MODES:
        yield Finding("grey", path, f"mode {image.mode}")
    if min(size) == 1:
        yield Finding("one-pixel", path, f"{_by(size)} pixels (width x height)")


def _without_end(path: str, raw: bytes) -> Iterable[Finding]:
    """Notice a PNG cut behind its last pixel, which PIL reads."""
    if raw.startswith(PNG) and PNG_END not in raw:
        yield Finding("truncated", path, f"{len(raw)} bytes: the end of the PNG file is missing")


def _turn(turned: int, size: tuple[int, int], mask_sizes: Iterable[tuple[int, int] | None]) -> str:
    detail = f"orientation {turned}, stored as {_by(size)} (width x height)"
    if turned < 5 or size[0] == size[1]:
        return detail
    for mask in mask_sizes:
        if mask == size[::-1]:
            detail += "; the mask has the size of the upright image"
        elif mask == size:
            detail += "; the mask has the size of the image as stored: turn one of them"
    return f"{detail}; shown as {_by(size[::-1])}"


def _ids(mask: "Image") -> dict[int, int]:
    """Count the pixels of each id."""
    if mask.mode in ("P", "L"):
        return {i: n for i, n in enumerate(mask.histogram()) if n}
    found, counts = np.unique(np.asarray(mask), return_counts=True)
    return dict(zip((int(i) for i in found), counts.tolist(), strict=True))


def _read(path: str, findings: list[Finding]) -> bytes:
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        findings.append(Finding("unreadable", path, error.strerror or str(error)))
        return b""
    if not raw:
        findings.append(Finding("empty-file", path, "0 bytes"))
    return raw


def _broken(path: str, raw: bytes, error: OSError) -> Finding:
    """Tell a file that was cut, or that never ends, from one that is no image."""
    why = str(error.__cause__ or error)
    no_end = (raw.startswith(JPEG) and not raw.endswith(b"\xff\xd9")) or (
        raw.startswith(PNG) and PNG_END not in raw
    )
    if no_end or "truncated" in why.lower():
        return Finding("truncated", path, f"{len(raw)} bytes: {why}")
    if raw.lstrip().startswith(b"<"):
        return Finding("unreadable", path, "a page of HTML or XML")
    return Finding("unreadable", path, re.sub("<_io.BytesIO[^>]*>", "", why).strip())


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _pillow() -> ModuleType:
    return require("PIL.Image", extra="cli", what="examine")
