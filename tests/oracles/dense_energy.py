"""A Gaussian kernel on cell means, and the dense CRF energy of soft labels, by loops over pixels.

Tang et al., "On Regularized Losses for Weakly-supervised CNN Segmentation", ECCV 2018.
"""

import math

from oracles.crf import gauss_matrix


def cell_messages(features, values, cell, valid=None):
    """K v for each row of values, with each pixel j moved to the mean of its cell."""
    n = len(features)
    valid = [True] * n if valid is None else valid
    members = {}
    for j in range(n):
        if valid[j]:
            members.setdefault(tuple(math.floor(x / cell) for x in features[j]), []).append(j)
    out = [[0.0] * n for _ in values]
    for pixels in members.values():
        mean = [sum(features[j][a] for j in pixels) / len(pixels) for a in range(len(features[0]))]
        for i in range(n):
            far = sum((a - b) ** 2 for a, b in zip(features[i], mean, strict=True))
            for row, value in zip(out, values, strict=True):
                row[i] += math.exp(-far / 2) * sum(value[j] for j in pixels)
    return out


def bilinear(plane, height, width):
    """Samples at pixel centres (align_corners=False), weights clamped at the border."""
    rows, columns = len(plane), len(plane[0])

    def place(index, count, size):
        at = max((index + 0.5) * count / size - 0.5, 0.0)
        low = min(math.floor(at), count - 1)
        return low, min(low + 1, count - 1), at - low

    out = []
    for y in range(height):
        a, b, fy = place(y, rows, height)
        line = []
        for x in range(width):
            c, d, fx = place(x, columns, width)
            above = (1 - fx) * plane[a][c] + fx * plane[a][d]
            below = (1 - fx) * plane[b][c] + fx * plane[b][d]
            line.append((1 - fy) * above + fy * below)
        out.append(line)
    return out


def softmax(planes):
    height, width = len(planes[0]), len(planes[0][0])
    out = [[[0.0] * width for _ in range(height)] for _ in planes]
    for y in range(height):
        for x in range(width):
            scores = [p[y][x] for p in planes]
            e = [math.exp(s - max(scores)) for s in scores]
            for c in range(len(planes)):
                out[c][y][x] = e[c] / sum(e)
    return out


def soft_labels(logits, size, scale):
    """Probabilities (C, h, w) of one image on the grid of the energy."""
    full = softmax([bilinear(p, *size) for p in logits])
    height, width = (max(1, math.floor(side * scale)) for side in size)
    return [bilinear(p, height, width) for p in full]


def energy(image, probs, mask=None, box=None, sigma_rgb=15.0, sigma_xy=100.0, scale=0.5):
    """-S^T (gate A S) of one image and the gradient that goes to S, -2 gate A S."""
    rows, columns = len(image[0]), len(image[0][0])
    classes, height, width = len(probs), len(probs[0]), len(probs[0][0])
    features, soft, gate = [], [], []
    for y in range(height):
        for x in range(width):
            # nearest: the pixel in whose upper left corner the cell begins
            row, column = y * rows // height, x * columns // width
            colours = [255 * image[ch][row][column] / sigma_rgb for ch in range(3)]
            features.append([x / (sigma_xy * scale), y / (sigma_xy * scale), *colours])
            inside = 1.0
            if box is not None:
                inside = float(box[0] <= row < box[2] and box[1] <= column < box[3])
            soft.append([inside * probs[c][y][x] for c in range(classes)])
            most = max(probs[c][y][x] for c in range(classes))
            unknown = mask is None or mask[row][column] == 255
            gate.append(1.0 if unknown else max(inside - most, 0.0))
            gate[-1] *= inside
    pairs = gauss_matrix(features)
    total = 0.0
    gradient = [[[0.0] * width for _ in range(height)] for _ in range(classes)]
    for i in range(len(features)):
        for c in range(classes):
            message = gate[i] * sum(pairs[i][j] * soft[j][c] for j in range(len(features)))
            total -= soft[i][c] * message
            gradient[c][i // width][i % width] = -2 * message
    return total, gradient
