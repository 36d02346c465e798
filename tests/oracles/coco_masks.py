"""Masks of COCO, a pixel at a time: every pixel takes the value of its smallest region."""


def expand(counts, height, width):
    """Return the pixels of an uncompressed run-length code: runs down the columns."""
    flat, value = [], 0
    for run in counts:
        flat += [value] * run
        value = 1 - value
    return [[flat[x * height + y] for x in range(width)] for y in range(height)]


def mask(annotations, category_ids, height, width):
    """Paint annotations given as (id, category, iscrowd, counts)."""
    regions = []
    for number, category, crowd, counts in annotations:
        pixels = expand(counts, height, width)
        size = sum(sum(row) for row in pixels)
        value = 255 if crowd else 1 + sum(other < category for other in category_ids)
        regions.append((size, -number, value, pixels))
    out = [[0] * width for _ in range(height)]
    for y in range(height):
        for x in range(width):
            covering = [region[:3] for region in regions if region[3][y][x]]
            if covering:
                out[y][x] = min(covering)[2]
    return out
