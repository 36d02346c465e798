"""Random walks of IRN against squaring the matrix of all pairs, and against scipy's products.

Run ``python -m benchmarks.bench_random_walk [--quick] [--output DIR]``. On large grids the dense
form takes minutes: of its eight products one is timed and counted eight times.
"""

import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._harness import Options, compare, run
from benchmarks.baselines import random_walk_dense
from wsss_blocks.refine import NeighbourAffinity, edge_affinity, random_walk

SQUARED, SCIPY, STEPS = "dense matrix, squared", "scipy CSR, step by step", "dense, step by step"
BETA, DOUBLINGS, CLASSES = 10.0, 8, 3


def cases(options: Options) -> Iterator[dict[str, Any]]:
    for device in options.devices:
        for side in (14,) if options.quick else (28, 56):
            yield walk(options, device, side)
        yield large(options, device, 20 if options.quick else 112)
        yield radius_ten(options, device, 14 if options.quick else 56)


def walk(options: Options, device: str, side: int) -> dict[str, Any]:
    maps, edge = problem(side, device)
    steps = 2**DOUBLINGS

    def dense() -> Tensor:
        matrix = edge_affinity(edge).to_dense()[0]
        return random_walk_dense.published(maps[0], matrix, beta=BETA, doublings=DOUBLINGS)[None]

    def one_by_one() -> Tensor:
        return random_walk(maps, edge_affinity(edge).to_dense(), beta=BETA, steps=steps)

    return compare(
        f"{steps} steps, radius 5, C{CLASSES} {side}x{side}",
        {
            SQUARED: dense,
            STEPS: one_by_one,
            SCIPY: None if device == "cuda" else lambda: scipy(maps, edge_affinity(edge)),
            "ours": lambda: random_walk(maps, edge_affinity(edge), beta=BETA, steps=steps),
        },
        reference="ours",
        options=options,
        device=device,
        bars={SQUARED: 40, SCIPY: 1.5} if side == 56 else {},
        memory_bars={SQUARED: 0.1} if side == 56 else {},
        tolerance=5e-4,
    )


def large(options: Options, device: str, side: int) -> dict[str, Any]:
    maps, edge = problem(side, device)
    steps = 2**DOUBLINGS
    result = compare(
        f"{steps} steps, radius 5, C{CLASSES} {side}x{side}",
        {
            SCIPY: None if device == "cuda" else lambda: scipy(maps, edge_affinity(edge)),
            "ours": lambda: random_walk(maps, edge_affinity(edge), beta=BETA, steps=steps),
        },
        reference="ours",
        options=options,
        device=device,
        bars={SCIPY: 1.5},
        tolerance=5e-4,
    )
    if device == "cpu":
        seconds = DOUBLINGS * one_product(side * side)
        ours = next(row["ms"] for row in result["rows"] if row["name"] == "ours")
        ratio = 1e3 * seconds / ours
        name = f"{SQUARED}: one product of {side * side} x {side * side} timed, x {DOUBLINGS}"
        result["estimate"] = {"name": name, "ms": 1e3 * seconds, "ratio": round(ratio, 1)}
        print(f"  {name}: {seconds:.3g} s, {ratio:.0f}x")
    return result


def radius_ten(options: Options, device: str, side: int) -> dict[str, Any]:
    maps, edge = problem(side, device)
    return compare(
        f"256 steps, radius 10, C{CLASSES} {side}x{side}",
        {
            SCIPY: None
            if device == "cuda"
            else lambda: scipy(maps, edge_affinity(edge, radius=10)),
            "ours": lambda: random_walk(maps, edge_affinity(edge, radius=10), beta=BETA, steps=256),
        },
        reference="ours",
        options=options,
        device=device,
        bars={SCIPY: 1.5},
        tolerance=1e-3,  # of the peer, whose transition is in float32 throughout
    )


def scipy(maps: Tensor, affinity: NeighbourAffinity) -> Tensor:
    transition = random_walk_dense.compressed_rows(affinity.values[0], affinity.offsets, BETA)
    return random_walk_dense.walk_compressed(maps[0], transition, steps=2**DOUBLINGS)[None]


def one_product(n: int) -> float:
    """Return the CPU seconds of one product of two matrices of all pairs."""
    matrix = torch.rand(n, n)
    start = time.process_time()
    torch.mm(matrix, matrix)
    return time.process_time() - start


def problem(side: int, device: str) -> tuple[Tensor, Tensor]:
    """Maps of three classes and an edge map of closed lines, as a boundary detector's."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 1, max(side // 8, 2), max(side // 8, 2), generator=g)
    level = F.interpolate(coarse, size=(side, side), mode="bilinear")
    edge = (1 - 8 * (level - 0.5).abs()).clamp(0, 1)
    maps = torch.rand(1, CLASSES, side, side, generator=g) * (1 - edge)
    return maps.to(device), edge.to(device)


if __name__ == "__main__":
    run("bench_random_walk", cases)
