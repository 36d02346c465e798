"""Softmax regression with LARS, number by number."""

import math


def rate(step, total, warmup):
    if step < warmup:
        return step / warmup
    return (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def gradients(weight, bias, rows, labels):
    classes, dim = len(weight), len(weight[0])
    gw = [[0.0] * dim for _ in range(classes)]
    gb = [0.0] * classes
    for x, y in zip(rows, labels, strict=True):
        z = [
            sum(w * v for w, v in zip(weight[c], x, strict=True)) + bias[c] for c in range(classes)
        ]
        top = max(z)
        e = [math.exp(v - top) for v in z]
        for c in range(classes):
            d = (e[c] / sum(e) - (c == y)) / len(rows)
            gb[c] += d
            for j in range(dim):
                gw[c][j] += d * x[j]
    return gw, gb


def norm(rows):
    return math.sqrt(sum(v * v for row in rows for v in row))


def train(weight, bias, batches, *, lr, epochs_of_batches, warmup, momentum):
    """``batches`` of (rows, labels) in the order of the steps."""
    total = len(batches)
    mw = [[0.0] * len(weight[0]) for _ in weight]
    mb = [0.0] * len(bias)
    for step, (rows, labels) in enumerate(batches):
        gw, gb = gradients(weight, bias, rows, labels)
        trust = 1e-3 * norm(weight) / norm(gw)
        eta = lr * rate(step, total, warmup * epochs_of_batches)
        for c in range(len(weight)):
            mb[c] = momentum * mb[c] + gb[c]
            for j in range(len(weight[0])):
                mw[c][j] = momentum * mw[c][j] + trust * gw[c][j]
        for c in range(len(weight)):
            bias[c] -= eta * mb[c]
            for j in range(len(weight[0])):
                weight[c][j] -= eta * mw[c][j]
    return weight, bias
