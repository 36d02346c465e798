"""Write small shards of image-text pairs, with broken samples where asked for."""

import io
import json
import tarfile

import numpy as np
import PIL.Image


def encoded(shade, *, size=(6, 4), mode="RGB", format="JPEG"):
    image = PIL.Image.new("RGB", size, (shade, shade, shade)).convert(mode)
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def noise(seed=0, size=(64, 48)):
    pixels = np.random.default_rng(seed).integers(256, size=(*size[::-1], 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_tar(path, members):
    """``members`` name -> bytes, in order."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pair(key, *, image=None, text=None, **others):
    """Members of a sound sample, each of them replaced or (as b"") left out on request."""
    made = {
        "jpg": encoded(int(key) % 200) if image is None else image,
        "txt": f"caption {key}".encode() if text is None else text,
        "json": json.dumps({"key": key, "status": "success"}).encode(),
    } | others
    return {f"{key}.{suffix}": data for suffix, data in made.items() if data is not None}


def write_shards(folder, sizes, *, stats=True, first=0):
    """Write ``00000.tar, ...`` of so many sound samples; keys count on over all shards."""
    folder.mkdir(parents=True, exist_ok=True)
    number = first
    for shard, size in enumerate(sizes):
        members = {}
        for _ in range(size):
            members |= pair(f"{number:09d}")
            number += 1
        write_tar(folder / f"{shard:05d}.tar", members)
        if stats:
            content = {"count": size + 7, "successes": size}
            (folder / f"{shard:05d}_stats.json").write_text(json.dumps(content))
    return folder
