"""Greyscale closing with a square, pixel by pixel."""


def _pooled(plane, size, best):
    height, width, r = len(plane), len(plane[0]), size // 2
    out = []
    for y in range(height):
        row = []
        for x in range(width):
            seen = []
            for v in range(max(0, y - r), min(height, y + r + 1)):
                seen += plane[v][max(0, x - r) : min(width, x + r + 1)]
            row.append(best(seen))
        out.append(row)
    return out


def closing_oracle(plane, size):
    """Close one map, a list of rows."""
    return _pooled(_pooled(plane, size, max), size, min)
