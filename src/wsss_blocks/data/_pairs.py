"""Read image-text pairs from a tar shard and decode them, or say why one cannot be used."""

import html
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from wsss_blocks._optional import require
from wsss_blocks.data._files import named
from wsss_blocks.data.images import upright_rgb
from wsss_blocks.data.sample import Sample, new_sample
from wsss_blocks.data.shards import SHARD_IMAGES

__all__ = ["REASONS", "RawPair", "decode_pair", "read_pairs"]

NO_IMAGE, NO_CAPTION, EMPTY, BROKEN, ARCHIVE = REASONS = (
    "no image",
    "no caption",
    "empty caption",
    "broken image",
    "broken archive",
)


class RawPair(NamedTuple):
    """The bytes of one sample."""

    id: str
    image: bytes | None
    text: bytes | None


def read_pairs(path: Path, skipped: Callable[[str], None]) -> Iterator[RawPair]:
    """Read a shard from front to back; what its archive hides is reported and left out."""
    tar = require("webdataset.tariterators", extra="webdata", what="ImageTextShards")

    def handler(error: Exception) -> bool:
        skipped(ARCHIVE)
        return True

    with path.open("rb") as stream:
        source = [{"url": str(path), "stream": stream}]
        members = tar.tar_file_expander(source, handler=handler)
        for found in tar.group_by_keys(members, handler=handler):
            image = next((found[s] for s in SHARD_IMAGES if s in found), None)
            yield RawPair(f"{path.stem}/{found['__key__']}", image, found.get("txt"))


def decode_pair(pair: RawPair, *, short_side: int | None) -> Sample | str:
    """Make a sample with ``caption``, or return the reason why that is impossible."""
    if pair.image is None:
        return NO_IMAGE
    if pair.text is None:
        return NO_CAPTION
    caption = " ".join(html.unescape(pair.text.decode("utf-8-sig", errors="replace")).split())
    if not caption:
        return EMPTY
    pillow = require("PIL.Image", extra="cli", what="ImageTextShards")
    try:
        with named(Path(pair.id)), pillow.open(io.BytesIO(pair.image)) as file:
            if short_side is not None:
                file.draft(file.mode, (short_side, short_side))
            pixels = upright_rgb(file)
    except OSError:
        return BROKEN
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float().div_(255)
    sample = new_sample(image, id=pair.id)
    sample["caption"] = caption
    return sample
