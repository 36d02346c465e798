"""Reading and augmenting photographs against PIL and torchvision's transforms.

Run ``python -m benchmarks.bench_loading [--quick] [--output DIR]``.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Generator, Tensor
from torchvision.transforms import v2

from benchmarks._harness import Candidate, Options, compare, max_difference, run
from benchmarks.baselines import torchvision_loading as plain
from wsss_blocks.data import (
    Compose,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Transform,
    collate,
    new_sample,
    read_image,
    training_transform,
)

BYTES, PIL_IMAGES, FLOATS = "v2 on bytes", "v2 on PIL images", "v2 in floating point"
JITTER = [
    v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
    v2.RandomGrayscale(0.2),
    v2.GaussianBlur(13, (0.1, 2.0)),  # wide enough for three standard deviations
]
ROUNDING = (
    "v2 on bytes and on PIL images rounds the resized image to bytes; ours does not (most of its "
    "time is torch's float32 resize), checks the image, and carries its box and geometry along."
)
Load = Callable[[Path], Tensor]


def cases(options: Options) -> Iterator[dict[str, Any]]:
    if "cpu" not in options.devices:
        return
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder), (96, 72) if options.quick else (500, 375))
        scenes = write_photos(Path(folder), (96, 96))
        yield decoding(options, photos)
        # Several draws of each, because the variants draw different scales and colours.
        photos, scenes = photos * 3, scenes * 3
        size = 64 if options.quick else 448
        yield same_draws(options, photos, size)
        low, high = (36, 145) if options.quick else (188, 751)
        window = [
            v2.RandomResize(low, high),  # of the short side: by 0.5 to 2
            v2.RandomHorizontalFlip(),
            v2.RandomCrop(size, pad_if_needed=True),
        ]
        name = f"`voc` preset, {size}x{size}"
        yield recipe(options, name, photos, training_transform(size), [*window, *JITTER], bar=1.3)
        name = f"`voc` preset without colour changes, {size}x{size}"
        yield recipe(options, name, photos, training_transform(size, colour="none"), window)
        size = 64 if options.quick else 384
        squeezed = training_transform(size, scale=(1.0, 1.0), colour="none", square=True)
        steps = [v2.Resize((size, size)), v2.RandomHorizontalFlip()]
        yield recipe(options, f"`voc-small` preset, {size}x{size}", photos, squeezed, steps)
        drawn = training_transform(96, scale=(0.85, 1.2), flip=False, colour="permute")
        steps = [
            v2.RandomResize(82, 116),
            v2.RandomCrop(96, pad_if_needed=True),
            v2.RandomChannelPermutation(),
        ]
        yield recipe(options, "`scenes` preset, 96x96", scenes, drawn, steps)
        crop = Compose(
            RandomResizedCrop(size := 64 if options.quick else 224), RandomHorizontalFlip()
        )
        steps = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
        yield recipe(options, f"RandomResizedCrop and flip, {size}x{size}", photos, crop, steps)


def decoding(options: Options, photos: Sequence[Path]) -> dict[str, Any]:
    return compare(
        f"decode, {describe(photos)}",
        {
            "PIL to bytes": lambda: [plain.pil_pixels(path) for path in photos],
            "torchvision.io to bytes": lambda: [plain.decode_jpeg(path) for path in photos],
            "PIL to float32": lambda: [plain.float_pixels(path) for path in photos],
            "ours": lambda: [read_image(path) for path in photos],
        },
        reference="ours",
        options=options,
        bars={"PIL to float32": 1.0},
        note="Ours also puts the planes one after the other, which later steps repay.",
        difference=lambda a, b: max_difference(map(unit, a), map(unit, b)),
        tolerance=1e-6,
    )


def same_draws(options: Options, photos: Sequence[Path], size: int) -> dict[str, Any]:
    """The same random numbers, so that the results can be compared."""
    return compare(
        f"`voc` preset, {size}x{size}, the same draws",
        {
            FLOATS: lambda: torch.stack([
                plain.exact(plain.float_pixels(path), seeded(i), size=size, scale=(0.5, 2.0))
                for i, path in enumerate(photos)
            ]),
            "ours": ours(photos, training_transform(size)),
        },
        reference="ours",
        options=options,
        bars={FLOATS: 1.3},
        tolerance=1e-5,
    )  # fmt: skip


def recipe(
    options: Options,
    name: str,
    photos: Sequence[Path],
    transform: Transform,
    steps: Sequence[v2.Transform],
    *,
    bar: float = 1.0,
) -> dict[str, Any]:
    """Draws of their own: of the results only the mean brightness can be compared."""
    return compare(
        f"{name}, {describe(photos)}",
        {
            PIL_IMAGES: theirs(photos, plain.published(steps)),
            BYTES: theirs(photos, plain.best(steps)),
            FLOATS: theirs(photos, plain.unrounded(steps)),
            "ours": ours(photos, transform),
        },
        reference="ours",
        options=options,
        bars={PIL_IMAGES: bar, BYTES: bar, FLOATS: bar},
        difference=lambda a, b: float((a.mean() - b.mean()).abs()),
        tolerance=0.2,
        note=ROUNDING,
    )


def theirs(photos: Sequence[Path], load: Load) -> Candidate:
    def batch() -> Tensor:
        torch.manual_seed(0)
        return torch.stack([load(path) for path in photos])

    return batch


def ours(photos: Sequence[Path], transform: Transform) -> Candidate:
    def batch() -> Tensor:
        samples = (new_sample(read_image(path), id=path.stem) for path in photos)
        moved = [transform(sample, seeded(i)) for i, sample in enumerate(samples)]
        return collate(moved)["image"]

    return batch


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def unit(image: Tensor) -> Tensor:
    return image if image.is_floating_point() else image / 255


def describe(photos: Sequence[Path]) -> str:
    with PIL.Image.open(photos[0]) as file:
        return f"{len(photos)} JPEGs of {file.width}x{file.height}"


def write_photos(folder: Path, size: tuple[int, int]) -> list[Path]:
    """Write scikit-learn's two photographs, each as it is and as three of its mirror images."""
    from sklearn.datasets import load_sample_images

    paths = []
    for number, pixels in enumerate(load_sample_images().images):
        image = PIL.Image.fromarray(pixels).resize(size)
        for turn in range(4):
            pixels = np.asarray(image)[:: 1 - 2 * (turn // 2), :: 1 - 2 * (turn % 2)]
            paths.append(folder / f"{size[0]}x{size[1]}_{number}{turn}.jpg")
            PIL.Image.fromarray(np.ascontiguousarray(pixels)).save(paths[-1], quality=95)
    return paths


if __name__ == "__main__":
    run("bench_loading", cases)
