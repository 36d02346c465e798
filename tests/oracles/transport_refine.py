"""Loop-level transcription of transport refinement: one problem, one cell, one class at a time."""

import math

import torch
from torch import Tensor

from oracles.refine import resize_oracle


def max_normalise_oracle(plane: Tensor, cells: list[tuple[int, int]]) -> dict:
    """ReLU, then divide by the largest score of the given cells (at least 1e-5)."""
    scores = {(y, x): max(float(plane[y, x]), 0.0) for y, x in cells}
    top = max([*scores.values(), 1e-5])
    return {cell: score / top for cell, score in scores.items()}


def plan_oracle(
    similarity: list[dict],
    *,
    reg: float,
    num_iters: int,
    official: bool,
    mass: list[float] | None = None,
) -> tuple[list[dict], int]:
    """Scale exp((S - 1) / reg) to equal masses of the cells and the given ones of the classes.

    A dict of cells per class, and the number of iterations; the classes' masses are equal by
    default.
    """
    cells = list(similarity[0])
    rows, columns = len(cells), len(similarity)
    share = [1 / columns] * columns if mass is None else [m / sum(mass) for m in mass]
    kernel = [[math.exp((s[cell] - 1) / reg) for s in similarity] for cell in cells]
    r, c = [1.0] * rows, [1.0] * columns
    done = 0
    for _ in range(100 if official else num_iters):
        done += 1
        before = r
        r = [1 / rows / sum(k * s for k, s in zip(kernel[m], c, strict=True)) for m in range(rows)]
        c = [share[n] / sum(kernel[m][n] * r[m] for m in range(rows)) for n in range(columns)]
        change = sum(abs(new - old) for new, old in zip(r, before, strict=True)) / rows
        if official and change < 1e-2:
            break
    plan = [
        {cell: r[m] * kernel[m][n] * c[n] for m, cell in enumerate(cells)} for n in range(columns)
    ]
    return plan, done


def factor_oracle(
    similarity: list[dict],
    *,
    reg: float,
    num_iters: int,
    official: bool,
    mass: list[float] | None = None,
) -> list[dict]:
    """The plan of each class between 0 and 1; fewer than two classes: 1."""
    if len(similarity) < 2 or not similarity[0]:
        return [dict.fromkeys(s, 1.0) for s in similarity]
    plan, _ = plan_oracle(similarity, reg=reg, num_iters=num_iters, official=official, mass=mass)
    factors = []
    for column in plan:
        low, high = min(column.values()), max(column.values())
        if official:
            width = max(high - low, 1e-5)
            factors.append({cell: (t - low) / width for cell, t in column.items()})
        else:
            width = max(high - low, 1e-3 * high)
            factors.append({cell: 1 - (high - t) / width for cell, t in column.items()})
    return factors


def transport_refine_oracle(
    cam: Tensor,
    labels: Tensor,
    *,
    guide: Tensor | None = None,
    reg: float = 0.1,
    num_iters: int = 20,
    valid: Tensor | None = None,
    official: bool = False,
) -> Tensor:
    """cam, guide (B, K, h, w), labels (B, K), valid (B, h, w) -> (B, K, h, w)."""
    batch, classes, height, width = cam.shape
    out = torch.zeros(cam.shape, dtype=torch.float64)
    for b in range(batch):
        grid = [(y, x) for y in range(height) for x in range(width)]
        cells = [cell for cell in grid if valid is None or valid[b][cell]]
        present = [k for k in range(classes) if labels[b, k] > 0]
        scores = [max_normalise_oracle(cam[b, k], cells) for k in present]
        told = cam if guide is None else guide
        similarity = [max_normalise_oracle(told[b, k], cells) for k in present]
        factors = factor_oracle(similarity, reg=reg, num_iters=num_iters, official=official)
        for k, score, factor in zip(present, scores, factors, strict=True):
            for cell in cells:
                out[b, k][cell] = score[cell] * factor[cell]
    return out


def transport_refiner_oracle(
    size: tuple[int, int],
    maps: Tensor,
    labels: Tensor | None,
    valid: Tensor | None = None,
    *,
    reg: float = 0.1,
    num_iters: int = 20,
) -> Tensor:
    """maps (B, K+1, h, w), not normalised -> (B, K+1, *size); background is one more class."""
    batch, channels, height, width = maps.shape
    out = torch.zeros(batch, channels, *size, dtype=torch.float64)
    for b in range(batch):
        grid = [(y, x) for y in range(height) for x in range(width)]
        cells = [cell for cell in grid if valid is None or valid[b][cell]]
        kept = [c for c in range(channels) if c == 0 or labels is None or labels[b, c - 1] > 0]
        scores = [{cell: float(maps[b, c][cell]) for cell in cells} for c in kept]
        factors = factor_oracle(scores, reg=reg, num_iters=num_iters, official=False)
        for c, score, factor in zip(kept, scores, factors, strict=True):
            plane = torch.zeros(height, width, dtype=torch.float64)
            for cell in cells:
                plane[cell] = score[cell] * factor[cell]
            out[b, c] = resize_oracle(plane, size, align_corners=False)
    return out
