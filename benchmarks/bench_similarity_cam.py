"""Patch-text similarity maps against broadcast cosine similarity and a loop over classes.

Run ``python -m benchmarks.bench_similarity_cam [--quick] [--output DIR]``.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks._harness import Candidate, Options, compare, run
from benchmarks.baselines import similarity as baseline
from wsss_blocks.cam import similarity_cam

BROADCAST = "broadcast cosine"


def cases(options: Options) -> Iterator[dict[str, Any]]:
    batch, dim, grid = (2, 64, 7) if options.quick else (16, 512, 28)
    for device in options.devices:
        for classes, bar in ((20, 40.0), (80, 100.0)):
            yield similarity(options, device, batch, dim, grid, classes, bar)


def similarity(
    options: Options,
    device: str,
    batch: int,
    dim: int,
    grid: int,
    classes: int,
    bar: float,
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(batch, dim, grid, grid, generator=g).to(device)
    text = F.normalize(torch.randn(classes, dim, generator=g)).to(device)

    candidates: dict[str, Candidate] = {
        BROADCAST: partial(baseline.published, features, text),
        "loop over classes": partial(baseline.loop, features, text),
        "normalise, einsum": partial(baseline.best, features, text),
        "ours": lambda: similarity_cam(features, text),
    }
    return compare(
        f"B{batch} N{grid * grid} D{dim} K{classes}",
        candidates,
        reference="ours",
        options=options,
        device=device,
        bars={BROADCAST: bar},
        tolerance=1e-4,
    )


if __name__ == "__main__":
    run("bench_similarity_cam", cases)
