"""Thresholds without masks, score by score."""

import math


def strongest_oracle(cam, labels, *, relu=True, minmax=True, eps=1e-5):
    """Best present score of each cell of ``[B][K][h][w]``, images without a class left out."""
    found = []
    for maps, present in zip(cam, labels, strict=True):
        kept = []
        for plane, label in zip(maps, present, strict=True):
            if label > 0:
                cells = [max(v, 0.0) if relu else v for row in plane for v in row]
                if minmax:
                    low, high = min(cells), max(cells)
                    cells = [(v - low) / (high - low + eps) for v in cells]
                kept.append(cells)
        if kept:
            found += [max(column) for column in zip(*kept, strict=True)]
    return found


def otsu_oracle(scores, bins):
    """Try each inner edge of the histogram; the middle of those that part like the first best."""
    low, high = min(scores), max(scores)
    if low == high:
        return low
    cells = [min(bins - 1, int((s - low) * (bins / (high - low)))) for s in scores]
    best, found, split = -1.0, [], None
    for edge in range(1, bins):
        left = [s for s, c in zip(scores, cells, strict=True) if c < edge]
        right = [s for s, c in zip(scores, cells, strict=True) if c >= edge]
        means = math.fsum(left) / len(left), math.fsum(right) / len(right)
        value = len(left) * len(right) * (means[1] - means[0]) ** 2
        if value > best * (1 + 1e-12) and len(left) != split:
            best, found, split = value, [], len(left)
        if len(left) == split:
            found.append(edge)
    return low + sum(found) / len(found) / bins * (high - low)


def crossing_oracle(weights, means, deviations):
    """The score between two means at which the weighted normal densities are equal: a quadratic."""
    (u, v), (m, n), (s, t) = weights, means, deviations
    a = 1 / (2 * t**2) - 1 / (2 * s**2)
    b = m / s**2 - n / t**2
    c = n**2 / (2 * t**2) - m**2 / (2 * s**2) + math.log(u / s) - math.log(v / t)
    if a == 0:
        return -c / b
    root = math.sqrt(b * b - 4 * a * c)
    return next(x for x in ((-b + root) / (2 * a), (-b - root) / (2 * a)) if m <= x <= n)
