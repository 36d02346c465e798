"""Outlines of regions as polygons that enclose exactly their pixels, holes included."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["part_polygons", "trace_rings"]

Ints = NDArray[np.int64]

# Directions right, down, left, up: the next one is a turn to the right. Rows are (x, y).
STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])


def part_polygons(parts: Ints, *, inset: float = 0.0) -> dict[int, NDArray[np.float64]]:
    """Outline each part of an image by one polygon, clockwise as seen.

    The corners are those of pixels: pixel ``(row, column)`` covers ``[column, column + 1]`` times
    ``[row, row + 1]``. From the top of a hole a cut leads straight up to the next outline, down and
    up again, so that a part with holes has one polygon, too.

    Args:
        parts: ``(H, W)``, 0 where nothing is, else the number of a part. The pixels of a part must
            be connected through their sides.
        inset: by how much (less than 0.5) to move all edges into the part. The cuts become narrow
            slits then, and no polygon touches itself or another one.

    Returns:
        Part -> corners ``(N, 2)``, rows of x, y.
    """
    width = parts.shape[1] + 1
    owner = _edges(parts)
    following, rings = trace_rings(owner, width)
    starts = np.flatnonzero(owner)  # an edge is its place here; its key is 4 * vertex + direction
    vertices = (starts // 4).tolist()
    after: list[int] = following.tolist()
    before: list[int] = np.argsort(following).tolist()  # the inverse of a permutation
    by_vertex = owner.reshape(-1, width, 4)
    first: dict[int, int] = {}
    for start in rings:
        part = int(owner[starts[start]])
        if part not in first:  # its topmost edge: that of the outer ring
            first[part] = start
            continue
        y, x = divmod(vertices[start], width)
        meets = int(np.flatnonzero((by_vertex[:y, x] == part).any(1))[-1])
        corner = meets * width + x
        key = 4 * corner + int(np.flatnonzero(by_vertex[meets, x] == part)[0])
        target = int(np.searchsorted(starts, key))
        # ... -> corner -> top of the hole -> around it -> top of the hole -> corner -> ...
        down, up = len(vertices), len(vertices) + 1
        vertices += [corner, vertices[start]]
        last, previous = before[start], before[target]
        after += [start, target]
        before += [previous, last]
        after[previous], after[last] = down, up
        before[start], before[target] = down, up
    found = {}
    for part, start in first.items():
        ring, at = [vertices[start]], after[start]
        while at != start:
            ring.append(vertices[at])
            at = after[at]
        y, x = np.divmod(np.array(ring), width)
        found[part] = _corners(np.stack([x, y], 1), inset)
    return found


def trace_rings(owner: Ints, width: int) -> tuple[Ints, list[int]]:
    """Chain the edges of each part to closed rings.

    Args:
        owner: the part of each directed edge, or 0, by 4 * vertex + direction.
        width: vertices in a row.

    Returns:
        For each edge the next one, and the first edge of each ring, topmost first; edges are
        counted among those that are there.
    """
    starts = np.flatnonzero(owner)
    place = np.zeros(len(owner), np.int64)
    place[starts] = np.arange(len(starts))
    vertex, direction = np.divmod(starts, 4)
    end = vertex + (STEPS[:, 0] + width * STEPS[:, 1])[direction]
    following = np.zeros(len(starts), np.int64)
    # A part lies to the right of its edges, so the sharpest turn to the right stays with it.
    for turn in (3, 0, 1):
        key = 4 * end + (direction + turn) % 4
        fits = owner[key] == owner[starts]
        following[fits] = place[key[fits]]
    after, seen, rings = following.tolist(), bytearray(len(starts)), []
    for start in range(len(after)):
        if not seen[start]:
            rings.append(start)
            at = start
            while not seen[at]:
                seen[at] = 1
                at = after[at]
    return following, rings


def _edges(parts: Ints) -> Ints:
    """Give each directed edge of a pixel that bounds its part, part to the right, that part."""
    height, width = parts.shape
    padded = np.zeros((height + 2, width + 2), np.int64)
    padded[1:-1, 1:-1] = parts
    owner = np.zeros((height + 1, width + 1, 4), np.int64)
    above, below = padded[:-1, 1:-1], padded[1:, 1:-1]  # of each horizontal crack
    differ = above != below
    owner[:, :-1, 0] = below * differ
    owner[:, 1:, 2] = above * differ
    left, right = padded[1:-1, :-1], padded[1:-1, 1:]
    differ = left != right
    owner[:-1, :, 1] = left * differ
    owner[1:, :, 3] = right * differ
    return owner.ravel()


def _corners(points: Ints, inset: float) -> NDArray[np.float64]:
    """Leave out what lies on a straight line and move the rest inwards."""
    outgoing = np.sign(np.roll(points, -1, 0) - points)
    incoming = np.roll(outgoing, 1, 0)
    turns = (outgoing != incoming).any(1)
    inwards = (incoming + outgoing)[turns] @ np.array([[0, 1], [-1, 0]])
    moved: NDArray[np.float64] = points[turns] + inset * inwards
    return moved
