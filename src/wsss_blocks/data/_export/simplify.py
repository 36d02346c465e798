"""Leave out corners of polygons that others nearly make up for (Douglas and Peucker)."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["simplify_ring"]

Floats = NDArray[np.float64]


def simplify_ring(ring: Floats, tolerance: float) -> Floats:
    """Keep corners of a closed ring so that no dropped one is farther than this from the rest.

    Args:
        ring: ``(N, 2)``.
        tolerance: in pixels; 0 keeps all.

    Returns:
        Some of the rows, in their order; all where fewer than three would be left.
    """
    if tolerance <= 0 or len(ring) <= 3:
        return ring
    closed = np.concatenate([ring, ring[:1]])
    far = int(np.square(ring - ring[0]).sum(1).argmax())
    kept = np.zeros(len(closed), np.bool_)
    kept[[0, far]] = True
    waiting = [(0, far), (far, len(ring))]
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:
            continue
        distances = _distances(closed[first + 1 : last], closed[first], closed[last])
        worst = int(distances.argmax())
        if distances[worst] > tolerance:
            at = first + 1 + worst
            kept[at] = True
            waiting += [(first, at), (at, last)]
    found = ring[kept[:-1]]
    return found if len(found) >= 3 else ring


def _distances(points: Floats, start: Floats, end: Floats) -> Floats:
    """Measure from points to a segment."""
    along = end - start
    length = float(along @ along)
    place = np.clip((points - start) @ along / length, 0, 1) if length else np.zeros(len(points))
    distances: Floats = np.sqrt(np.square(points - start - place[:, None] * along).sum(1))
    return distances
