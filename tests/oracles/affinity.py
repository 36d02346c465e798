"""Loop-level transcriptions of pixel affinities, random walks and affinity labels."""

import math

import torch
from torch import Tensor

from oracles.refine import resize_oracle


def half_disc_oracle(radius: int) -> list[tuple[int, int]]:
    """List each direction of the disc x^2 + y^2 < radius^2 once: to the right, or down."""
    return [
        (y, x)
        for y in range(radius)
        for x in range(-radius, radius + 1)
        if (y > 0 or x > 0) and y * y + x * x < radius * radius
    ]


def path_oracle(dy: int, dx: int) -> list[tuple[int, int]]:
    """Cells of the rectangle spanned by (0, 0) and (dy, dx), nearer than 1 to the line."""
    return [
        (y, x)
        for y in range(min(0, dy), max(0, dy) + 1)
        for x in range(min(0, dx), max(0, dx) + 1)
        if abs(dy * x - dx * y) / math.sqrt(dy * dy + dx * dx) < 1
    ]


def _pairs(size: tuple[int, int], offsets: list[tuple[int, int]]):
    for r, (dy, dx) in enumerate(offsets):
        for y in range(size[0]):
            for x in range(size[1]):
                if 0 <= y + dy < size[0] and 0 <= x + dx < size[1]:
                    yield r, y, x, y + dy, x + dx


def edge_affinity_oracle(edge: Tensor, radius: int) -> Tensor:
    """edge (B, 1, h, w) -> (B, R, h, w): one minus the strongest edge between the two cells."""
    batch, _, h, w = edge.shape
    offsets = half_disc_oracle(radius)
    out = torch.zeros(batch, len(offsets), h, w, dtype=torch.float64)
    for b in range(batch):
        for r, y, x, _, _ in _pairs((h, w), offsets):
            path = path_oracle(*offsets[r])
            out[b, r, y, x] = 1 - max(float(edge[b, 0, y + i, x + j]) for i, j in path)
    return out


def feature_affinity_oracle(features: Tensor, radius: int) -> Tensor:
    """features (B, D, h, w) -> (B, R, h, w): exp(- mean_d |f_i - f_j|)."""
    batch, dim, h, w = features.shape
    offsets = half_disc_oracle(radius)
    out = torch.zeros(batch, len(offsets), h, w, dtype=torch.float64)
    for b in range(batch):
        for r, y, x, v, u in _pairs((h, w), offsets):
            total = 0.0
            for d in range(dim):
                total += abs(float(features[b, d, y, x]) - float(features[b, d, v, u]))
            out[b, r, y, x] = math.exp(-total / dim)
    return out


def matrix_oracle(values: Tensor, offsets: list[tuple[int, int]]) -> Tensor:
    """values (B, R, h, w) -> (B, N, N): both directions of each pair, ones on the diagonal."""
    batch, _, h, w = values.shape
    out = torch.zeros(batch, h * w, h * w, dtype=torch.float64)
    for b in range(batch):
        for i in range(h * w):
            out[b, i, i] = 1
        for r, y, x, v, u in _pairs((h, w), offsets):
            out[b, y * w + x, v * w + u] = values[b, r, y, x]
            out[b, v * w + u, y * w + x] = values[b, r, y, x]
    return out


def random_walk_oracle(
    maps: Tensor, matrix: Tensor, *, beta: float, steps: int, valid: Tensor | None = None
) -> Tensor:
    """x <- x T, T = A^beta with columns that sum to 1; maps (B, C, h, w), matrix (B, N, N)."""
    batch, channels, h, w = maps.shape
    n = h * w
    out = torch.zeros(batch, channels, n, dtype=torch.float64)
    for b in range(batch):
        inside = [valid is None or bool(valid[b].flatten()[i]) for i in range(n)]
        a = [[float(matrix[b, i, j]) ** beta for j in range(n)] for i in range(n)]
        transition = [[0.0] * n for _ in range(n)]
        for j in range(n):
            if not inside[j]:
                continue
            total = sum(a[i][j] for i in range(n) if inside[i])
            for i in range(n):
                if total == 0:
                    transition[i][j] = float(i == j)
                elif inside[i]:
                    transition[i][j] = a[i][j] / total
        for c in range(channels):
            x = maps[b, c].flatten().tolist()
            for _ in range(steps):
                x = [sum(x[i] * transition[i][j] for i in range(n)) for j in range(n)]
            for j in range(n):
                out[b, c, j] = x[j] if inside[j] else 0.0
    return out.view(batch, channels, h, w)


def walk_refiner_oracle(
    maps: Tensor,
    matrix: Tensor,
    labels: Tensor,
    *,
    grid: tuple[int, int],
    size: tuple[int, int],
    beta: float,
    steps: int,
    valid: Tensor | None = None,
) -> Tensor:
    """Resize to the grid of the affinity, walk, resize to the image; absent channels are 0."""
    batch, channels = maps.shape[:2]
    out = torch.zeros(batch, channels, *size, dtype=torch.float64)
    for b in range(batch):
        for c in range(channels):
            if c > 0 and labels[b, c - 1] == 0:
                continue
            plane = resize_oracle(maps[b, c], grid, align_corners=False)
            walked = random_walk_oracle(
                plane[None, None],
                matrix[b : b + 1],
                beta=beta,
                steps=steps,
                valid=None if valid is None else valid[b : b + 1],
            )
            out[b, c] = resize_oracle(walked[0, 0], size, align_corners=False)
    return out


def affinity_labels_oracle(
    mask: Tensor, radius: int, ignore_index: int = 255
) -> tuple[Tensor, ...]:
    """mask (B, h, w) -> three (B, R, h, w): both background, one foreground class, different."""
    batch, h, w = mask.shape
    offsets = half_disc_oracle(radius)
    found = [torch.zeros(batch, len(offsets), h, w, dtype=torch.bool) for _ in range(3)]
    for b in range(batch):
        for r, y, x, v, u in _pairs((h, w), offsets):
            one, other = int(mask[b, y, x]), int(mask[b, v, u])
            if ignore_index in (one, other):
                continue
            kind = 2 if one != other else (0 if one == 0 else 1)
            found[kind][b, r, y, x] = True
    return tuple(found)


def affinity_matrix_labels_oracle(
    mask: Tensor, radius: int | None = None, ignore_index: int = 255
) -> Tensor:
    """mask (B, h, w) -> (B, N, N): 1 same label, 0 different, 255 unknown, far away or itself."""
    batch, h, w = mask.shape
    out = torch.full((batch, h * w, h * w), 255, dtype=torch.uint8)
    for b in range(batch):
        for i in range(h * w):
            for j in range(h * w):
                one, other = int(mask[b, i // w, i % w]), int(mask[b, j // w, j % w])
                far = max(abs(i // w - j // w), abs(i % w - j % w))
                if i == j or ignore_index in (one, other) or (radius is not None and far > radius):
                    continue
                out[b, i, j] = int(one == other)
    return out


def affinity_loss_oracle(values: Tensor, labels: tuple[Tensor, ...]) -> float:
    """A quarter of background, a quarter of foreground, half of different pairs; eps 1e-5."""
    total = 0.0
    for kind, weight in zip(range(3), (0.25, 0.25, 0.5), strict=True):
        terms = []
        for a, chosen in zip(values.flatten().tolist(), labels[kind].flatten(), strict=True):
            if chosen:
                terms.append(-math.log((a if kind < 2 else 1 - a) + 1e-5))
        if terms:
            total += weight * sum(terms) / len(terms)
    return total


def boxes_oracle(marked: list[list[bool]]) -> list[list[bool]]:
    """Fill the bounding box of each 8-connected component of one plane."""
    h, w = len(marked), len(marked[0])
    filled = [[False] * w for _ in range(h)]
    seen: set[tuple[int, int]] = set()
    for y in range(h):
        for x in range(w):
            if not marked[y][x] or (y, x) in seen:
                continue
            component, waiting = [], [(y, x)]
            seen.add((y, x))
            while waiting:
                cell = waiting.pop()
                component.append(cell)
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        v, u = cell[0] + dy, cell[1] + dx
                        if 0 <= v < h and 0 <= u < w and marked[v][u] and (v, u) not in seen:
                            seen.add((v, u))
                            waiting.append((v, u))
            rows, columns = [c[0] for c in component], [c[1] for c in component]
            for v in range(min(rows), max(rows) + 1):
                for u in range(min(columns), max(columns) + 1):
                    filled[v][u] = True
    return filled


def class_aware_affinity_oracle(
    cam: Tensor,
    attention: Tensor,
    labels: Tensor,
    *,
    threshold: float = 0.4,
    rounds: int = 3,
    power: int = 2,
) -> Tensor:
    """cam (B, K, h, w), attention (B, N, N): the balanced affinity of CLIP-ES, class by class."""
    batch, classes, h, w = cam.shape
    n = h * w
    out = torch.zeros(batch, classes, n, dtype=torch.float64)
    for b in range(batch):
        t = [[float(v) for v in row] for row in attention[b]]
        for _ in range(rounds):
            sums = [sum(t[i][j] for i in range(n)) for j in range(n)]
            t = [[t[i][j] / sums[j] if sums[j] else 0.0 for j in range(n)] for i in range(n)]
            t = [[v / sum(row) if sum(row) else 0.0 for v in row] for row in t]
        t = [[(t[i][j] + t[j][i]) / 2 for j in range(n)] for i in range(n)]
        product = [[float(i == j) for j in range(n)] for i in range(n)]
        for _ in range(power):
            product = [
                [sum(product[i][k] * t[k][j] for k in range(n)) for j in range(n)] for i in range(n)
            ]
        for c in range(classes):
            if labels[b, c] == 0:
                continue
            scores = cam[b, c].tolist()
            top = max(max(row) for row in scores)
            box = boxes_oracle([[v > threshold * top for v in row] for row in scores])
            for i in range(n):
                for j in range(n):
                    if box[j // w][j % w]:
                        out[b, c, i] += product[i][j] * scores[j // w][j % w]
    return out.view(batch, classes, h, w)
