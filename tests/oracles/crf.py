"""Mean field in a dense CRF by loops over pixels, and a permutohedral lattice kept in a dict.

Krähenbühl and Koltun, NeurIPS 2011 (algorithm 1, Potts, both normalisations of their code set to
symmetric); Adams, Baek and Davis, Eurographics 2010 (splat, blur, slice), with the tie rule of
equal remainders: the earlier coordinate counts as the larger.
"""

import math


def gauss_matrix(features):
    """K[i][j] = exp(-|f_i - f_j|^2 / 2)."""
    return [
        [math.exp(-sum((a - b) ** 2 for a, b in zip(f, g, strict=True)) / 2) for g in features]
        for f in features
    ]


def cell_matrix(features, valid=None):
    """Each pixel meets, instead of another, the mean of the unit cube that the other is in."""
    cubes = {}
    for i, f in enumerate(features):
        if valid is None or valid[i]:
            cubes.setdefault(tuple(math.floor(x) for x in f), []).append(f)
    means = {
        cube: [sum(xs) / len(members) for xs in zip(*members, strict=True)]
        for cube, members in cubes.items()
    }
    centres = [means.get(tuple(math.floor(x) for x in f), f) for f in features]
    return [
        [math.exp(-sum((a - b) ** 2 for a, b in zip(f, c, strict=True)) / 2) for c in centres]
        for f in features
    ]


def lattice_matrix(features):
    """The matrix that filtering on the lattice multiplies with, one unit vector at a time."""
    n, d = len(features), len(features[0])
    corners = [_corners(f) for f in features]
    vertices = {key for c in corners for key, _ in c}
    columns = []
    for source in range(n):
        value = dict.fromkeys(vertices, 0.0)
        for key, weight in corners[source]:
            value[key] += weight
        for axis in range(d + 1):
            value = {
                key: v
                + 0.5 * (value.get(_step(key, axis, 1), 0) + value.get(_step(key, axis, -1), 0))
                for key, v in value.items()
            }
        alpha = 1 / (1 + 2**-d)
        columns.append([sum(alpha * w * value[key] for key, w in c) for c in corners])
    return [[columns[j][i] for j in range(n)] for i in range(n)]


def _step(key, axis, sign):
    """The neighbour along an axis: -1 everywhere, + d there (or the opposite)."""
    return tuple(k + sign * (len(key) - 1 if i == axis else -1) for i, k in enumerate(key))


def _corners(feature):
    """The d + 1 corners (all d + 1 coordinates) of the simplex around a point, with weights."""
    d = len(feature)
    scaled = [
        f * math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2)) for i, f in enumerate(feature)
    ]
    point = [sum(scaled), *(sum(scaled[i:]) - i * scaled[i - 1] for i in range(1, d + 1))]
    base = [(d + 1) * round(x / (d + 1)) for x in point]
    order = sorted(range(d + 1), key=lambda i: (base[i] - point[i], i))
    excess = sum(base) // (d + 1)
    for _ in range(excess):
        order.insert(0, order.pop())
        base[order[0]] -= d + 1
    for _ in range(-excess):
        order.append(order.pop(0))
        base[order[-1]] += d + 1
    rest = [(x - b) / (d + 1) for x, b in zip(point, base, strict=True)]
    found = []
    for colour in range(d + 1):
        # The point of this colour: the coordinates of smallest remainder have stepped back.
        back = set(order[d + 1 - colour :])
        key = tuple(b + colour - (d + 1 if i in back else 0) for i, b in enumerate(base))
        if colour == 0:
            weight = 1 - (rest[order[0]] - rest[order[-1]])
        else:
            weight = rest[order[d - colour]] - rest[order[d + 1 - colour]]
        found.append((key, weight))
    return found


def mean_field(unary, matrices, iterations, valid=None):
    """Q[c][i] from U[c][i] and [(K, weight)], among the valid pixels."""
    classes, n = len(unary), len(unary[0])
    valid = [True] * n if valid is None else valid
    q = _softmax([[-u for u in row] for row in unary])
    sums = [[sum(k[i][j] for j in range(n) if valid[j]) for i in range(n)] for k, _ in matrices]
    for _ in range(iterations):
        scores = [[-unary[c][i] for i in range(n)] for c in range(classes)]
        for (k, weight), total in zip(matrices, sums, strict=True):
            for i in range(n):
                for j in range(n):
                    if valid[i] and valid[j]:
                        pair = weight * k[i][j] / math.sqrt(total[i] * total[j])
                        for c in range(classes):
                            scores[c][i] += pair * q[c][j]
        q = _softmax(scores)
    return q


def _softmax(scores):
    columns = []
    for column in zip(*scores, strict=True):
        top = max(column)
        e = [math.exp(x - top) for x in column]
        columns.append([x / sum(e) for x in e])
    return [list(row) for row in zip(*columns, strict=True)]


def dense_crf(image, probs, iterations, gaussian, bilateral, box=None, method="exact"):
    """One image (3, H, W) in [0, 1] and maps (C, H, W), as nested lists."""
    height, width = len(image[0]), len(image[0][0])
    pixels = [(y, x) for y in range(height) for x in range(width)]
    places = [(x / gaussian[0], y / gaussian[0]) for y, x in pixels]
    points = [
        (
            x / bilateral[0],
            y / bilateral[0],
            *(round(255 * image[ch][y][x]) / bilateral[1] for ch in range(3)),
        )
        for y, x in pixels
    ]
    unary = [[-math.log(min(max(m[y][x], 1e-5), 1)) for y, x in pixels] for m in probs]
    valid = None
    if box is not None:
        valid = [box[0] <= y < box[2] and box[1] <= x < box[3] for y, x in pixels]
    near = lattice_matrix(places) if method == "lattice" else gauss_matrix(places)
    if method == "cells":
        alike = cell_matrix(points, valid)
    else:
        alike = lattice_matrix(points) if method == "lattice" else gauss_matrix(points)
    kernels = [(near, gaussian[1]), (alike, bilateral[2])]
    q = mean_field(unary, kernels, iterations, valid)
    return [[row[y * width : (y + 1) * width] for y in range(height)] for row in q]
