"""Boundary IoU from its definition: erode the mask of each class, pixel by pixel, d times."""

import math


def eroded(inside, height, width):
    """One erosion by a 3 x 3 square; what lies outside of the frame is not in the mask."""
    return {
        (y, x)
        for y in range(height)
        for x in range(width)
        if all((y + dy, x + dx) in inside for dy in (-1, 0, 1) for dx in (-1, 0, 1))
    }


def border(inside, height, width, distance):
    """The pixels of a mask that ``distance`` erosions take away."""
    left = inside
    for _ in range(distance):
        left = eroded(left, height, width)
    return inside - left


def pixels_of(mask, value):
    return {(y, x) for y, row in enumerate(mask) for x, v in enumerate(row) if v == value}


def region(mask, distance):
    """Nested lists (H, W): whether a pixel is in the border of the region of its own id."""
    height, width = len(mask), len(mask[0])
    near = set()
    for value in {v for row in mask for v in row}:
        near |= border(pixels_of(mask, value), height, width, distance)
    return [[(y, x) in near for x in range(width)] for y in range(height)]


def distance_of(height, width, ratio):
    return max(1, round(ratio * math.sqrt(height**2 + width**2)))


def counts(pairs, classes, ignore, ratio):
    """``pairs`` of nested lists (pred, target) -> [both, target, pred], each one number a class."""
    table = [[0] * classes for _ in range(3)]
    for pred, target in pairs:
        height, width = len(target), len(target[0])
        distance = distance_of(height, width, ratio)
        scored = {(y, x) for y in range(height) for x in range(width)} - pixels_of(target, ignore)
        for c in range(classes):
            in_target = border(pixels_of(target, c), height, width, distance) & scored
            in_pred = border(pixels_of(pred, c), height, width, distance) & scored
            table[0][c] += len(in_target & in_pred)
            table[1][c] += len(in_target)
            table[2][c] += len(in_pred)
    return table


def scores(table, absent):
    """Boundary IoU of each class (NaN where it is not counted) and their mean."""
    found = []
    for both, in_target, in_pred in zip(*table, strict=True):
        union = in_target + in_pred - both
        counted = in_target > 0 if absent == "target" else union > 0
        found.append(both / union if counted else math.nan)
    known = [v for v in found if not math.isnan(v)]
    return found, sum(known) / len(known) if known else math.nan
