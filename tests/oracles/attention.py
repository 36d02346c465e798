"""Attention with explicit loops over images, layers, heads, tokens and classes."""

import math

import torch


def attention_row(q, k, scale):
    """Softmax over all keys for one query: ``q`` (d), ``k`` (N, d) -> list of N numbers."""
    logits = [scale * sum(float(a) * float(b) for a, b in zip(q, key, strict=True)) for key in k]
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]


def class_attention(layers, count, grid, reduce="sum"):
    """Rows of the first ``count`` tokens, columns of the last h * w; ``layers``: q, k, scale."""
    batch, heads, tokens, _ = layers[0][0].shape
    height, width = grid
    out = torch.zeros(batch, count, height, width, dtype=torch.float64)
    for q, k, scale in layers:
        for b in range(batch):
            for c in range(count):
                for head in range(heads):
                    row = attention_row(q[b, head, c], k[b, head], scale)
                    for i in range(height):
                        for j in range(width):
                            at = tokens - height * width + i * width + j
                            out[b, c, i, j] += row[at] / heads
    return out if reduce == "sum" else out / len(layers)


def affinity_refined(maps, layers, reduce="sum"):
    """Explicit matrix of the patches, mean over heads, sum over layers, times the maps."""
    batch, channels, height, width = maps.shape
    patches = height * width
    out = torch.zeros(batch, channels, height, width, dtype=torch.float64)
    for b in range(batch):
        matrix = [[0.0] * patches for _ in range(patches)]
        for q, k, scale in layers:
            heads, tokens = q.shape[1:3]
            first = tokens - patches
            for head in range(heads):
                for i in range(patches):
                    row = attention_row(q[b, head, first + i], k[b, head], scale)
                    for j in range(patches):
                        matrix[i][j] += row[first + j] / heads
        for c in range(channels):
            for i in range(patches):
                for j in range(patches):
                    value = float(maps[b, c, j // width, j % width])
                    out[b, c, i // width, i % width] += matrix[i][j] * value
    return out if reduce == "sum" else out / len(layers)


def class_tokens(shared, own, background, position, layers):
    """CTI's tokens one number at a time; ``layers`` are the perceptron's two (weight, bias)."""
    (w1, b1), (w2, b2) = layers
    count, dim = position.shape
    hidden = [
        max(0.0, float(b1[i]) + sum(float(w1[i, j]) * float(shared[j]) for j in range(dim)))
        for i in range(len(b1))
    ]
    out = torch.zeros(count, dim, dtype=torch.float64)
    for c in range(count):
        base = background if own and c == 0 else shared
        for d in range(dim):
            row = c * dim + d
            made = float(b2[row]) + sum(float(w2[row, i]) * hidden[i] for i in range(len(hidden)))
            out[c, d] = made + float(base[d]) + float(position[c, d])
    return out
