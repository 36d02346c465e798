"""SimSeg's pooling and contrast of images with captions, as the equations say it, in loops.

Everything takes nested lists of numbers, or of scalar tensors where a gradient is wanted.
"""

from oracles.cti import exp, log


def unit(row):
    norm = sum(x * x for x in row) ** 0.5
    return [x / norm for x in row]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def image_text_contrastive(image, text, scale, groups=None):
    """Mean over both directions and all rows of the cross entropy with its positives."""
    image, text = [unit(row) for row in image], [unit(row) for row in text]
    groups = range(len(image)) if groups is None else groups
    total = 0.0
    for own, others in ((image, text), (text, image)):
        for i, row in enumerate(own):
            e = [exp(scale * dot(row, other)) for other in others]
            fits = [j for j in range(len(others)) if groups[j] == groups[i]]
            total = total - sum(log(e[j] / sum(e)) for j in fits) / len(fits)
    return total / (2 * len(image))


def strongest(tokens, k):
    """The k largest of each channel: M vectors that are no tokens (eq. 2)."""
    channels = [sorted(values, reverse=True)[:k] for values in zip(*tokens, strict=True)]
    return [list(row) for row in zip(*channels, strict=True)]


def pair_average(ours, theirs):
    """Mean of the products of all pairs of selected vectors (eq. 4)."""
    products = [dot(u, v) for u in ours for v in theirs]
    return sum(products) / len(products)


def project(tokens, weight):
    """Rows of ``weight`` are output channels; no bias."""
    return [[dot(token, row) for row in weight] for token in tokens]


def mean_rows(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]
