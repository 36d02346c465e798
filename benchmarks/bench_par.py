"""Pixel-adaptive refinement against one-hot depthwise convolutions, the form the field runs.

Run ``python -m benchmarks.bench_par [--quick] [--output DIR]``.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._harness import Options, compare, run
from benchmarks.baselines import par_onehot
from wsss_blocks.refine import PixelAdaptiveRefine, pixel_adaptive_refine

ONE_HOT, SLICES = "one-hot convolutions", "slices"
PAMR: dict[str, Any] = {"colour_scale": 0.1, "position_weight": 0.0, "kernel": "pamr"}


def cases(options: Options) -> Iterator[dict[str, Any]]:
    side = 48 if options.quick else 224
    for device in options.devices:
        yield function(options, device, 1, 3, side, 7)
        yield function(options, device, 1, 21, side, 20)
        yield function(options, device, 4, 3, side, 7)
        yield function(options, device, 1, 3, 2 * side, 7)
        yield function(options, device, 1, 21, side, 20, pamr=True)
        yield pair(options, device, side)
        yield refiner(options, device, 48 if options.quick else 96)


def function(
    options: Options,
    device: str,
    batch: int,
    channels: int,
    side: int,
    bar: float,
    *,
    pamr: bool = False,
) -> dict[str, Any]:
    images, maps = problem(batch, channels, side, device)
    settings = PAMR if pamr else {}
    return compare(
        f"{'PAMR' if pamr else 'PAR'}, B{batch} C{channels} {side}x{side}",
        {
            ONE_HOT: lambda: par_onehot.published(images, maps, **settings),
            SLICES: lambda: par_onehot.best(images, maps, **settings),
            "ours": lambda: pixel_adaptive_refine(images, maps, **settings),
        },
        reference="ours",
        options=options,
        device=device,
        bars={ONE_HOT: bar},
        memory_bars={ONE_HOT: 1 / 5},
        tolerance=1e-5,
    )


def pair(options: Options, device: str, side: int) -> dict[str, Any]:
    """High and low background over one image: the peer refines twice, ours shares the weights."""
    images, maps = problem(1, 6, side, device)
    sets = maps.unflatten(1, (2, 3))

    def one_by_one() -> Tensor:
        return torch.stack([par_onehot.published(images, sets[:, g]) for g in range(2)], 1)

    return compare(
        f"PAR, high/low pair, C3 {side}x{side}",
        {
            ONE_HOT: one_by_one,
            "ours": lambda: pixel_adaptive_refine(images, sets),
        },
        reference="ours",
        options=options,
        device=device,
        bars={ONE_HOT: 7},
        memory_bars={ONE_HOT: 1 / 5},
        tolerance=1e-5,
    )


def refiner(options: Options, device: str, side: int) -> dict[str, Any]:
    """A training step's refiner: one or two of 20 classes present, work at half the image size.

    The second peer also drops the absent classes, image by image, as ToCo's loop does.
    """
    batch, classes = 8, 20
    images, maps = problem(batch, 2 * (classes + 1), side, device, map_side=side // 8)
    maps = maps.unflatten(1, (2, classes + 1))
    labels = torch.zeros(batch, classes, device=device)
    for b in range(batch):
        labels[b, [b, 3 * b % classes]] = 1
    kept = [[0, *(c + 1 for c in range(classes) if labels[b, c])] for b in range(batch)]
    half = (side // 2, side // 2)

    def one_hot(image: Tensor, scores: Tensor) -> Tensor:
        small = resize(scores.flatten(1, 2), half).unflatten(1, scores.shape[1:3]).softmax(2)
        refined = par_onehot.published(resize(image, half), small.flatten(1, 2))
        return resize(refined, (side, side)).unflatten(1, scores.shape[1:3])

    def all_classes() -> Tensor:
        absent = torch.cat([torch.zeros_like(labels[:, :1]), 1 - labels], 1)
        return one_hot(images, maps - 1e4 * absent[:, None, :, None, None])

    def image_by_image() -> Tensor:
        out = maps.new_zeros(*maps.shape[:3], side, side)
        for b in range(batch):
            out[b, :, kept[b]] = one_hot(images[b : b + 1], maps[b : b + 1, :, kept[b]])[0]
        return out

    block = PixelAdaptiveRefine()
    return compare(
        f"PixelAdaptiveRefine, B{batch} K{classes} G2 {side}x{side}",
        {
            f"{ONE_HOT}, all classes": all_classes,
            f"{ONE_HOT}, image by image": image_by_image,
            "ours": lambda: block(images, maps, labels=labels),
        },
        reference="ours",
        options=options,
        device=device,
        tolerance=1e-5,
    )


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def problem(
    batch: int, channels: int, side: int, device: str, map_side: int | None = None
) -> tuple[Tensor, Tensor]:
    """Smooth images with some noise, and the probabilities of smooth random maps."""
    g = torch.Generator().manual_seed(0)
    size = (side, side)
    images = resize(torch.rand(batch, 3, 8, 8, generator=g), size)
    images = (images + 0.05 * torch.randn(images.shape, generator=g)).clamp(0, 1)
    maps = torch.randn(batch, channels, 14, 14, generator=g)
    maps = resize(maps, (map_side or side, map_side or side)).softmax(1)
    return images.to(device), maps.to(device)


if __name__ == "__main__":
    run("bench_par", cases)
