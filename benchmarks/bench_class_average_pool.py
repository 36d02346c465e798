"""Class-level average pooling against loops, scatters and a broadcast.

Run ``python -m benchmarks.bench_class_average_pool [--quick] [--output DIR]``.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._harness import Candidate, Options, compare, run
from wsss_blocks.pooling import class_average_pool

# batch, classes, features, grid
CASES = ((16, 21, 768, 28), (16, 81, 768, 28), (4, 21, 256, 56))


def cases(options: Options) -> Iterator[dict[str, Any]]:
    for device in options.devices:
        for batch, classes, dim, grid in CASES:
            b, d, n = (2, 32, 8) if options.quick else (batch, dim, grid)
            yield on_the_grid(options, device, b, classes, d, n)
        b, d, n = (2, 32, 8) if options.quick else (16, 768, 28)
        yield from_pixels(options, device, b, 21, d, n)


def on_the_grid(
    options: Options, device: str, batch: int, classes: int, dim: int, grid: int
) -> dict[str, Any]:
    features, mask = problem(batch, classes, dim, grid, 1, device)

    def loop() -> Tensor:
        out = features.new_zeros(batch, classes, dim)
        for b in range(batch):
            for c in mask[b].unique().tolist():
                if c < classes:
                    out[b, c] = features[b, :, mask[b] == c].mean(1)
        return out

    def index_add() -> Tensor:
        slots = classes + 1
        folded = mask.where(mask < classes, classes)
        index = (folded + slots * torch.arange(batch, device=device)[:, None, None]).flatten()
        rows = features.permute(0, 2, 3, 1).reshape(-1, dim)
        total = features.new_zeros(batch * slots, dim).index_add_(0, index, rows)
        count = torch.bincount(index, minlength=batch * slots).clamp_min(1)
        return (total / count[:, None]).view(batch, slots, dim)[:, :classes]

    def broadcast() -> Tensor:
        one = F.one_hot(mask.clamp_max(classes), classes + 1)[..., :classes]
        weights = one.permute(0, 3, 1, 2)[:, :, None].to(features.dtype)
        return (weights * features[:, None]).sum((3, 4)) / weights.sum((3, 4)).clamp_min(1)

    candidates: dict[str, Candidate | None] = {
        "loop over images and classes": loop,
        "index_add": index_add,
        # Gibibytes and seconds with 81 classes.
        **({"broadcast": broadcast} if classes <= 21 else {}),
        "ours": lambda: class_average_pool(features, mask, num_classes=classes).centroids,
    }
    return compare(
        f"mask on the grid, B{batch} C{classes} D{dim} {grid}x{grid}",
        candidates,
        reference="ours",
        options=options,
        device=device,
        bars={"loop over images and classes": 1.5},
        tolerance=1e-4,
    )


def from_pixels(
    options: Options, device: str, batch: int, classes: int, dim: int, grid: int
) -> dict[str, Any]:
    features, mask = problem(batch, classes, dim, grid, 16, device)

    def one_hot_and_pool() -> Tensor:
        one = F.one_hot(mask.clamp_max(classes), classes + 1)[..., :classes].permute(0, 3, 1, 2)
        weights = F.adaptive_avg_pool2d(one.to(features.dtype), (grid, grid)).flatten(2)
        summed = weights @ features.flatten(2).transpose(1, 2)
        return summed / weights.sum(2, keepdim=True).clamp_min(1e-12)

    return compare(
        f"mask of {16 * grid}x{16 * grid} pixels, B{batch} C{classes} D{dim} {grid}x{grid}",
        {
            "one-hot, average pooling, bmm": one_hot_and_pool,
            "ours": lambda: class_average_pool(features, mask, num_classes=classes).centroids,
        },
        reference="ours",
        options=options,
        device=device,
        tolerance=1e-3,
    )


def problem(
    batch: int, classes: int, dim: int, grid: int, factor: int, device: str
) -> tuple[Tensor, Tensor]:
    """Features, and a mask of blocks of a few classes per image with ignored pixels."""
    g = torch.Generator().manual_seed(0)
    features = torch.randn(batch, dim, grid, grid, generator=g)
    side, step = grid * factor, max(1, grid * factor // 4)
    ids = torch.randint(0, classes, (batch, 5, 5), generator=g)
    mask = ids.repeat_interleave(step, 1).repeat_interleave(step, 2)[:, :side, :side].clone()
    mask[torch.rand(mask.shape, generator=g) < 0.05] = 255
    return features.to(device), mask.to(device)


if __name__ == "__main__":
    run("bench_class_average_pool", cases)
