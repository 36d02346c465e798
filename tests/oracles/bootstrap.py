"""Resampled scores, one image and one replicate at a time."""

import hashlib
import math


def poisson(share):
    """The smallest n whose Poisson(1) distribution function reaches ``share``."""
    n, below = 0, math.exp(-1)
    while below < share:
        n += 1
        below += math.exp(-1) / math.factorial(n)
    return n


def weight(name, seed, replicate):
    """How often a replicate draws an image: 16 bits of a hash of the image's name."""
    stream = hashlib.shake_128(f"{seed}/{name}".encode()).digest(2 * (replicate + 1))
    number = stream[2 * replicate] + 256 * stream[2 * replicate + 1]
    return poisson((number + 0.5) / 65536)


def counts(images, replicates, seed, classes):
    """``images``: (name, confusion as nested lists) -> [replicate][both, target, pred][class]."""
    table = [[[0] * classes for _ in range(3)] for _ in range(replicates)]
    for name, confusion in images:
        for r in range(replicates):
            times = weight(name, seed, r)
            for c in range(classes):
                table[r][0][c] += times * confusion[c][c]
                table[r][1][c] += times * sum(confusion[c])
                table[r][2][c] += times * sum(row[c] for row in confusion)
    return table


def miou(both, target, pred, absent):
    found = []
    for b, t, p in zip(both, target, pred, strict=True):
        if (t > 0) if absent == "target" else (t + p - b > 0):
            found.append(b / (t + p - b))
    return sum(found) / len(found) if found else math.nan
