"""Class rebalancing (DHR, eqs. 1-4) as loops over images, patches, classes and groups."""

import math

import torch
from torch import Tensor

from oracles.pooling import class_areas
from oracles.refine import resize_oracle
from oracles.transport_refine import factor_oracle, transport_refine_oracle

Cell = tuple[int, int]


def cosine(a: list[float], b: list[float]) -> float:
    """Cosine of two vectors; 0 where one of them is zero."""
    lengths = math.sqrt(sum(x * x for x in a)), math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / (
        max(lengths[0], 1e-6) * max(lengths[1], 1e-6)
    )


def min_max(scores: dict[Cell, float]) -> dict[Cell, float]:
    """Bring the scores of the given cells to [0, 1]; a range of 1e-5 or less is constant: 0."""
    if not scores:
        return {}
    low, high = min(scores.values()), max(scores.values())
    if high - low <= 1e-5:
        return dict.fromkeys(scores, 0.0)
    return {cell: (s - low) / (high - low) for cell, s in scores.items()}


def heatmap(features: Tensor, centroid: list[float], cells: list[Cell]) -> dict[Cell, float]:
    """Cosine of one centroid and the features (D, h, w) of each cell, not normalised."""
    return {(y, x): cosine(centroid, features[:, y, x].tolist()) for y, x in cells}


def class_heatmaps_oracle(
    features: Tensor, centroids: Tensor, valid: Tensor | None, *, normalize: bool
) -> Tensor:
    """features (B, D, h, w), centroids (B, C, D) -> (B, C, h, w)."""
    batch, _, height, width = features.shape
    out = torch.zeros(batch, centroids.shape[1], height, width, dtype=torch.float64)
    for b in range(batch):
        cells = [
            (y, x) for y in range(height) for x in range(width) if valid is None or valid[b, y, x]
        ]
        for c in range(centroids.shape[1]):
            scores = heatmap(features[b], centroids[b, c].tolist(), cells)
            for cell, score in (min_max(scores) if normalize else scores).items():
                out[b, c][cell] = score
    return out


def groups_oracle(
    centroids: list[list[float]], *, threshold: float, overlapping: bool
) -> list[list[int]]:
    """Groups of two or more: connected components by a search, or the official upper rows."""
    number = len(centroids)
    near = [
        [j for j in range(number) if j == i or cosine(centroids[i], centroids[j]) > threshold]
        for i in range(number)
    ]
    if overlapping:
        rows = [[j for j in near[i] if j >= i] for i in range(number)]
        return [row for row in rows if len(row) > 1]
    seen: set[int] = set()
    found = []
    for start in range(number):
        if start in seen:
            continue
        group, waiting = set(), [start]
        while waiting:
            i = waiting.pop()
            if i not in group:
                group.add(i)
                waiting += near[i]
        seen |= group
        if len(group) > 1:
            found.append(sorted(group))
    return found


def resize_channels(features: Tensor, size: Cell) -> Tensor:
    """Resize (D, h, w) one channel after the other."""
    if tuple(features.shape[-2:]) == size:
        return features
    return torch.stack([resize_oracle(plane, size, align_corners=False) for plane in features])


def inside_box(box: Tensor | None, image_size: Cell, size: Cell) -> list[Cell]:
    """List the cells of a grid whose centre lies in the box of one image."""
    cells = []
    for y in range(size[0]):
        for x in range(size[1]):
            if box is None:
                cells.append((y, x))
                continue
            top, left, bottom, right = box.tolist()
            row = (2 * y + 1) * image_size[0]
            column = (2 * x + 1) * image_size[1]
            rows = 2 * top * size[0] <= row < 2 * bottom * size[0]
            if rows and 2 * left * size[1] <= column < 2 * right * size[1]:
                cells.append((y, x))
    return cells


def centroid(features: Tensor, weights: list[list[float]], cells: list[Cell]) -> list[float]:
    """Eq. 2 with area weights: the weighted mean of the features of the cells."""
    total = sum(weights[y][x] for y, x in cells)
    summed = [0.0] * features.shape[0]
    for y, x in cells:
        if weights[y][x]:
            vector = features[:, y, x].tolist()
            summed = [s + weights[y][x] * v for s, v in zip(summed, vector, strict=True)]
    return [s / total for s in summed]


def seeds_oracle(
    cam: Tensor, labels: Tensor, mask: Tensor, box: Tensor | None
) -> tuple[Tensor, float]:
    """Eq. 1 for one image, without a refiner: the initial mask and the least margin of a pixel."""
    size = tuple(mask.shape)
    grid = tuple(cam.shape[-2:])
    cells = inside_box(box, size, grid)
    valid = torch.zeros(1, *grid, dtype=torch.bool)
    for cell in cells:
        valid[0][cell] = True
    maps = transport_refine_oracle(cam[None], labels[None], valid=valid)[0]
    none = torch.zeros(grid, dtype=torch.float64)
    for cell in cells:
        none[cell] = 1 - max(float(plane[cell]) for plane in maps)
    present = [k for k in range(len(labels)) if labels[k] > 0]
    planes = [none, *(maps[k] for k in present)]
    planes = [resize_oracle(p, size, align_corners=False) for p in planes]
    out, margin = mask.clone(), math.inf
    for y, x in inside_box(box, size, size):
        scores = [float(p[y, x]) for p in planes]
        winner = scores.index(max(scores))
        others = sorted(scores)[-2:]
        if len(scores) > 1:
            margin = min(margin, others[1] - others[0])
        if winner:
            out[y, x] = present[winner - 1] + 1
    return out, margin


def rebalance_oracle(
    cam: Tensor | None,
    mask: Tensor,
    labels: Tensor,
    uss: Tensor | None,
    wss: list[Tensor],
    *,
    box: Tensor | None = None,
    valid: Tensor | None = None,
    threshold: float = 0.8,
    size: Cell | None = None,
    class_mass: str = "uniform",
    ignore_index: int = 255,
) -> tuple[Tensor, Tensor, Tensor, float, Tensor]:
    """One image, no refiner: mask, initial mask, heat-maps (K+1, h, w), the margins of both.

    cam (K, h, w), mask (H, W), labels (K,), features (D, h, w), box (4,), valid of the USS grid.
    A margin says how far the best score of a pixel is above the second, so that a test can tell a
    tie from a difference: the least one of the seeds, and one per pixel (H, W) of the result.
    """
    pixels = tuple(mask.shape)
    inside = inside_box(box, pixels, pixels)
    seed_margin = math.inf
    margin = torch.full(pixels, math.inf, dtype=torch.float64)
    initial = mask.clone()
    if cam is not None:
        initial, seed_margin = seeds_oracle(cam, labels, mask, box)
    for y in range(pixels[0]):
        for x in range(pixels[1]):
            if (y, x) not in inside:
                initial[y, x] = ignore_index
    grid = size or tuple((wss[0] if wss else uss).shape[-2:])
    cells = inside_box(box, pixels, grid)
    if valid is not None and uss is not None:
        whole = resize_oracle(valid.double(), grid, align_corners=False)
        cells = [cell for cell in cells if float(whole[cell]) > 1 - 1e-4]
    uss = None if uss is None else resize_channels(uss, grid)
    wss = [resize_channels(f, grid) for f in wss]

    classes = len(labels) + 1
    areas = class_areas(initial.tolist(), grid, classes, ignore_index)
    weights = [[[float(a) for a in row] for row in plane] for plane in areas]
    allowed = [c for c in range(classes) if c == 0 or labels[c - 1] > 0]
    alive = [c for c in allowed if sum(weights[c][y][x] for y, x in cells) > 0]
    out = torch.full(pixels, ignore_index)
    heat = torch.zeros(classes, *grid, dtype=torch.float64)
    if not alive:
        return out, initial, heat, seed_margin, margin

    mass = [sum(weights[c][y][x] for y, x in cells) if class_mass == "area" else 1.0 for c in alive]
    mean = {}
    maps = []
    for features in wss:
        for c in alive:
            vector = centroid(features, weights[c], cells)
            scores = min_max(heatmap(features, vector, cells))
            for cell in cells:
                mean[c, cell] = mean.get((c, cell), 0.0) + scores[cell] / len(wss)
    if wss:
        maps = [min_max({cell: mean[c, cell] for cell in cells}) for c in alive]
    if uss is not None:
        guide = maps
        vectors = [centroid(uss, weights[c], cells) for c in alive]
        maps = [min_max(heatmap(uss, v, cells)) for v in vectors]
        groups = groups_oracle(vectors, threshold=threshold, overlapping=False) if wss else []
        for group in groups:
            factors = factor_oracle(
                [guide[i] for i in group],
                reg=0.1,
                num_iters=20,
                official=False,
                mass=[mass[i] for i in group],
            )
            for i, factor in zip(group, factors, strict=True):
                maps[i] = {cell: s * factor[cell] for cell, s in maps[i].items()}
    factors = factor_oracle(maps, reg=0.1, num_iters=20, official=False, mass=mass)
    maps = [
        min_max({cell: s * factor[cell] for cell, s in scores.items()})
        for scores, factor in zip(maps, factors, strict=True)
    ]
    for c, scores in zip(alive, maps, strict=True):
        for cell, score in scores.items():
            heat[c][cell] = score
    planes = [resize_oracle(heat[c], pixels, align_corners=False) for c in alive]
    for y, x in inside:
        scores = [float(p[y, x]) for p in planes]
        out[y, x] = alive[scores.index(max(scores))]
        if len(scores) > 1:
            second, first = sorted(scores)[-2:]
            margin[y, x] = first - second
    return out, initial, heat, seed_margin, margin
