"""Class-level average pooling against loops, scatters and a broadcast.

Run ``python -m benchmarks.bench_class_average_pool [--quick] [--output DIR]``.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks._harness import Candidate, Options, compare, run
from benchmarks.baselines import class_average_broadcast, class_average_patch_loop
from wsss_blocks.pooling import class_average_pool

BROADCAST, LOOP, PATCHES = "broadcast", "loop over images and classes", "loop over patches"
# batch, classes, features, grid
ON_THE_GRID = ((16, 21, 768, 28), (16, 81, 768, 28), (4, 21, 256, 56))
FROM_PIXELS = ((16, 21, 768, 28, 16), (4, 21, 2048, 64, 8))  # and pixels per patch

PIXELS_NOTE = (
    "Bound by the passes over the pixels of the masks (checks, index, one scatter) and by the "
    "product with the features; the loop takes a fixed time per patch, so large patches favour it. "
    "int32 indices with a bincount were no faster."
)


def cases(options: Options) -> Iterator[dict[str, Any]]:
    for device in options.devices:
        for batch, classes, dim, grid in ON_THE_GRID:
            b, d, n = (2, 32, 8) if options.quick else (batch, dim, grid)
            yield on_the_grid(options, device, b, classes, d, n)
        for batch, classes, dim, grid, factor in FROM_PIXELS:
            b, d, n = (2, 32, 8) if options.quick else (batch, dim, grid)
            yield from_pixels(options, device, b, classes, d, n, factor)


def on_the_grid(
    options: Options, device: str, batch: int, classes: int, dim: int, grid: int
) -> dict[str, Any]:
    features, mask = problem(batch, classes, dim, grid, 1, device)
    baselines = class_average_broadcast
    candidates: dict[str, Candidate | None] = {
        LOOP: partial(baselines.loop, features, mask, num_classes=classes),
        "index_add": partial(baselines.index_add, features, mask, num_classes=classes),
        "one-hot product": partial(baselines.best, features, mask, num_classes=classes),
        "ours": lambda: class_average_pool(features, mask, num_classes=classes).centroids,
    }
    if classes <= 21:  # gibibytes and seconds with 81 classes
        candidates[BROADCAST] = partial(baselines.published, features, mask, num_classes=classes)
    return compare(
        f"mask on the grid, B{batch} C{classes} D{dim} {grid}x{grid}",
        candidates,
        reference="ours",
        options=options,
        device=device,
        bars={LOOP: 1.5, BROADCAST: 50},
        tolerance=1e-4,
    )


def from_pixels(
    options: Options, device: str, batch: int, classes: int, dim: int, grid: int, factor: int
) -> dict[str, Any]:
    features, mask = problem(batch, classes, dim, grid, factor, device)
    ours = partial(class_average_pool, features, mask, num_classes=classes)
    baselines = class_average_patch_loop
    return compare(
        f"mask of {factor * grid}x{factor * grid} pixels, B{batch} C{classes} D{dim} {grid}x{grid}",
        {
            PATCHES: partial(baselines.published, features, mask, num_classes=classes),
            "counts and product": partial(baselines.best, features, mask, num_classes=classes),
            "ours, majority": lambda: ours(assign="majority").centroids,
        },
        reference="ours, majority",
        options=options,
        device=device,
        bars={PATCHES: 8},
        tolerance=1e-4,
        note=PIXELS_NOTE,
    )


def problem(
    batch: int, classes: int, dim: int, grid: int, factor: int, device: str
) -> tuple[Tensor, Tensor]:
    """Features, and a mask of blocks of a few classes per image with ignored pixels.

    Borders of blocks cross the patches, but the ignored pixels win no patch: DHR drops such a
    patch, ours asks the pixels that have a class.
    """
    g = torch.Generator().manual_seed(0)
    features = torch.randn(batch, dim, grid, grid, generator=g)
    side, step = grid * factor, max(1, grid * factor // 4 - factor // 3)
    ids = torch.randint(0, classes, (batch, 6, 6), generator=g)
    mask = ids.repeat_interleave(step, 1).repeat_interleave(step, 2)[:, :side, :side].clone()
    mask[torch.rand(mask.shape, generator=g) < 0.05] = 255
    return features.to(device), mask.to(device)


if __name__ == "__main__":
    run("bench_class_average_pool", cases)
