"""SimSeg's zero-shot segmentation of one image, step by step, with loops."""

import math

import numpy as np
from scipy import ndimage


def threshold(scores, top, sigma):
    """Mean and unbiased deviation of the best scores; of one score the deviation is 0."""
    best = sorted(scores, reverse=True)[:top]
    mean = sum(best) / len(best)
    squares = sum((s - mean) ** 2 for s in best)
    return mean + sigma * (math.sqrt(squares / (len(best) - 1)) if len(best) > 1 else 0.0)


def selected(scores, *, top, sigma, most, background):
    """Walk down the ranks: skip the background, stop at the first class below the threshold."""
    limit = None if sigma is None else threshold(scores, top, sigma)
    found = []
    for c in sorted(range(len(scores)), key=lambda c: -scores[c])[:most]:
        if c == background:
            continue
        if limit is not None and scores[c] < limit:
            break
        found.append(c)
    return found


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def product(a, b):
    """With a text of norm 1."""
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(y * y for y in b))


def nearest(plane, height, width):
    """The pixel whose square holds the centre of the new one."""
    rows, columns = len(plane), len(plane[0])
    return [
        [
            plane[int((i + 0.5) * rows / height)][int((j + 0.5) * columns / width)]
            for j in range(width)
        ]
        for i in range(height)
    ]


def closed(mask, size):
    """Dilate, erode; pixels outside the image take no part."""
    square = np.ones((size, size), bool)
    grown = ndimage.binary_dilation(mask, square, border_value=0)
    return ndimage.binary_erosion(grown, square, border_value=1)


def class_mask(patches, text, side, closing, level, refine, alike):
    """One class on the square: ``patches`` are rows of columns of vectors."""
    found = [[alike(vector, text) for vector in row] for row in patches]
    large = nearest(found, side, side)
    low = min(min(row) for row in large)
    high = max(max(row) for row in large)
    scaled = [[(x - low) / (high - low) for x in row] for row in large]
    if refine is not None:
        absent, present = refine([[1 - x for x in row] for row in scaled], scaled)
        mask = [[present[i][j] > absent[i][j] for j in range(side)] for i in range(side)]
    else:
        mask = [[x > level for x in row] for row in scaled]
    return closed(np.array(mask), closing)


def zero_shot(
    pooled,
    patches,
    rows,
    *,
    side,
    size,
    top,
    sigma,
    most,
    closing,
    level=0.5,
    refine=None,
    alike=cosine,
    given=None,
):
    """The label of each pixel of the image, ``rows`` being background and classes in order.

    ``refine`` turns the two maps of one class into refined ones; all scores must be positive.
    ``given`` are the classes that somebody knows to be there.
    """
    scores = [cosine(pooled, row) for row in rows]
    assert min(scores) > 0, "the released code never shows a class of negative score"
    chosen = selected(scores, top=top, sigma=sigma, most=most, background=0)
    chosen = chosen if given is None else given
    prediction = {}
    for c in chosen:
        mask = class_mask(patches, rows[c], side, closing, level, refine, alike)
        prediction[c] = nearest(mask.tolist(), *size)
    labels = []
    for i in range(size[0]):
        labels.append([])
        for j in range(size[1]):
            best, value = 0, 0.0
            for c, mask in prediction.items():
                if mask[i][j] * scores[c] > value:
                    best, value = c, scores[c]
            labels[-1].append(best)
    return labels
