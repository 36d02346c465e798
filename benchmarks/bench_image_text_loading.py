"""Reading image-text pairs from tar shards against PIL and torchvision alone.

Run ``python -m benchmarks.bench_image_text_loading [--quick] [--output DIR]``. A loader of one core
should give at least 300 images per second where the short side is 256.
"""

import io
import json
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms import v2

from benchmarks._harness import Candidate, Options, compare, run
from wsss_blocks.backbones import SmallTextEncoder
from wsss_blocks.data import (
    AutoAugment,
    Compose,
    RandomResizedCrop,
    Transform,
    find_shards,
    shard_loader,
)

CAPTION = "a photo of the roof old temple with blue sky red flower and green leaves"
WORDS = CAPTION.split()
BOUND = (
    "Ours reads the tar through webdataset, shuffles, tidies captions, checks images, carries box "
    "and geometry along, and resizes without rounding."
)


def cases(options: Options) -> Iterator[dict[str, Any]]:
    if "cpu" not in options.devices:
        return
    short, count = (64, 32) if options.quick else (256, 256)
    size = short * 7 // 8
    with tempfile.TemporaryDirectory() as folder:
        shards = find_shards(write_shard(Path(folder), short=short, count=count))
        (path,) = shards.paths
        tokenise = SmallTextEncoder(WORDS, dim=8, heads=1, max_length=25).tokenize
        crop = RandomResizedCrop(size, scale=(0.6, 1.0))

        def ours(transform: Transform) -> Candidate:
            def batches() -> Tensor:
                loader = shard_loader(shards, transform, batch_size=32, mode="exact")
                pairs = [(batch["image"], tokenise(batch["caption"])) for batch in loader]
                return torch.cat([image for image, _ in pairs])

            return batches

        def plain(steps: list[v2.Transform]) -> Candidate:
            final = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
            transform = v2.Compose([v2.RandomResizedCrop(size, scale=(0.6, 1.0)), *steps, *final])

            def batches() -> Tensor:
                torch.manual_seed(0)
                pairs = [(transform(opened(jpeg)), text) for jpeg, text in members(path)]
                parts = [pairs[i : i + 32] for i in range(0, len(pairs), 32)]
                for part in parts:
                    tokenise([text for _, text in part])
                return torch.cat([torch.stack([image for image, _ in part]) for part in parts])

            return batches

        for name, own, theirs in (
            ("", crop, []),
            (" and AutoAugment", Compose(crop, AutoAugment()), [v2.AutoAugment(fill=128)]),
        ):
            result = compare(
                f"RandomResizedCrop {size}{name}, {count} pairs of short side {short}",
                {
                    "read the tar": lambda: read(path),
                    "and decode": lambda: decoded(path),
                    "PIL and torchvision": plain(theirs),
                    "ours": ours(own),
                },
                reference="ours",
                options=options,
                bars={"PIL and torchvision": 1.0},
                # Draws of their own: only the mean brightness can be compared.
                difference=lambda a, b: float((a.mean() - b.mean()).abs()),
                tolerance=0.2,
                note=BOUND,
            )
            for row in result["rows"]:
                row["images_per_second"] = round(1000 * count / row["ms"])
            shown = ", ".join(f"{r['name']} {r['images_per_second']}" for r in result["rows"])
            print(f"  images per second: {shown}")
            yield result


def members(path: Path) -> Iterator[tuple[bytes, str]]:
    with tarfile.open(path, "r|") as tar:
        jpeg = b""
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            if member.name.endswith(".jpg"):
                jpeg = file.read()
            elif member.name.endswith(".txt"):
                yield jpeg, file.read().decode()


def opened(jpeg: bytes) -> PIL.Image.Image:
    with PIL.Image.open(io.BytesIO(jpeg)) as file:
        return file.convert("RGB")


def read(path: Path) -> Tensor:
    return torch.full((1,), 0.5).mul(min(len(jpeg) for jpeg, _ in members(path)) > 0)


def decoded(path: Path) -> Tensor:
    return torch.tensor([np.asarray(opened(jpeg))[::16].mean() / 255 for jpeg, _ in members(path)])


def write_shard(folder: Path, *, short: int, count: int) -> Path:
    """Write crops of scikit-learn's two photographs with captions, as img2dataset would."""
    from sklearn.datasets import load_sample_images

    photos = [PIL.Image.fromarray(pixels) for pixels in load_sample_images().images]
    random = np.random.default_rng(0)
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number in range(count):
            photo = photos[number % 2]
            left, top = (int(random.integers(0, side // 4)) for side in photo.size)
            part = photo.crop((left, top, left + 3 * photo.width // 4, top + 3 * photo.height // 4))
            file = io.BytesIO()
            part.resize((short * 4 // 3, short)).save(file, "JPEG", quality=95)
            text = " ".join(random.choice(WORDS, 10))
            row = json.dumps({"caption": text, "status": "success"})
            for suffix, data in (("jpg", file.getvalue()), ("json", row), ("txt", text)):
                content = data if isinstance(data, bytes) else data.encode()
                info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    (folder / "00000_stats.json").write_text(json.dumps({"successes": count}))
    return folder


if __name__ == "__main__":
    run("bench_image_text_loading", cases)
