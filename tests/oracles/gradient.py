"""Gradient CAMs, one backward per image and class, and the softmax of CLIP-ES, in loops."""

import math

import torch


def gradient_cam(scores, tap, labels, mode, grid, relu):
    """L^c(p) = ReLU sum_d weight_d(p) A_d(p); tokens have their first ones cut off."""
    B, K = scores.shape
    h, w = grid
    out = torch.zeros(B, K, h, w, dtype=torch.float64)
    for b in range(B):
        activation = _map(tap[b], h, w)
        for c in range(K):
            if labels[b, c] == 0:
                continue
            (gradient,) = torch.autograd.grad(scores[b, c], tap, retain_graph=True)
            gradient = _map(gradient[b], h, w)
            for i in range(h):
                for j in range(w):
                    total = 0.0
                    for a, g in zip(activation, gradient, strict=True):
                        total += _weight(g, i, j, mode) * a[i][j]
                    out[b, c, i, j] = max(total, 0.0) if relu else total
    return out


def _map(x, h, w):
    """Turn (D, h, w), or tokens (P + h * w, D), into D lists of rows."""
    if x.ndim == 3:
        return x.tolist()
    rows = x.tolist()[x.shape[0] - h * w :]
    return [[[rows[i * w + j][d] for j in range(w)] for i in range(h)] for d in range(x.shape[1])]


def _weight(g, i, j, mode):
    if mode == "gradcam":
        return sum(sum(row) for row in g) / (len(g) * len(g[0]))
    return max(g[i][j], 0.0) if mode == "layercam" else g[i][j]


def present_softmax_scores(logits, labels, background):
    """exp(y_c) over the sum of exp of present classes and background words."""
    B, K = logits.shape
    out = torch.zeros(B, K, dtype=torch.float64)
    for b in range(B):
        words = [] if background is None else background[b].tolist()
        values = logits[b].tolist()
        rivals = words + [values[k] for k in range(K) if labels[b, k] > 0]
        for c in range(K):
            if labels[b, c] > 0:
                out[b, c] = 1 / sum(math.exp(y - values[c]) for y in rivals)
    return out
