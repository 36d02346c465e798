"""Loop-level transcriptions of the decoders (DIAL/ToCo system spec, sections 3.7 and 3.9)."""

import math

import torch

from oracles.cam import combine, mirror, resize, scaled


def conv(x, weight, dilation):
    """Bias-free convolution with zero padding that keeps the grid."""
    B, D, h, w = x.shape
    out_dim, k = weight.shape[0], weight.shape[-1]
    xs, ws = x.tolist(), weight.tolist()
    out = torch.zeros(B, out_dim, h, w, dtype=torch.float64)
    for b in range(B):
        for o in range(out_dim):
            for i in range(h):
                for j in range(w):
                    total = 0.0
                    for di in range(k):
                        for dj in range(k):
                            y, z = i + (di - k // 2) * dilation, j + (dj - k // 2) * dilation
                            if 0 <= y < h and 0 <= z < w:
                                total += sum(ws[o][d][di][dj] * xs[b][d][y][z] for d in range(D))
                    out[b, o, i, j] = total
    return out


def rectify(x):
    """ReLU."""
    return combine([x, torch.zeros_like(x)], "max")


def image_norm(x, gain, shift, eps):
    """Standardise over channels and positions of one image, then scale each channel."""
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        values = x[b].flatten().tolist()
        mean = sum(values) / len(values)
        var = sum((v - mean) ** 2 for v in values) / len(values)
        for c in range(x.shape[1]):
            out[b, c] = (x[b, c] - mean) / math.sqrt(var + eps) * gain[c] + shift[c]
    return out


def large_fov(features, params, dilation, skip=None):
    """3x3 dilated, ReLU, 3x3 dilated, ReLU, 1x1; with a skip: resize, concatenate, 3x3, ReLU."""
    x = rectify(conv(features, params["conv1.weight"], dilation))
    x = rectify(conv(x, params["conv2.weight"], dilation))
    if skip is not None:
        fine = conv(skip, params["skip_proj.weight"], 1)
        fine = image_norm(fine, params["skip_norm.weight"], params["skip_norm.bias"], 1e-5)
        x = torch.cat([resize(x, tuple(skip.shape[-2:])), rectify(fine)], dim=1)
        x = rectify(conv(x, params["fuse.weight"], 1))
    return conv(x, params["classifier.weight"], 1)


def deeplab_v2(features, params, rates):
    """The sum of one 3x3 convolution with bias for each dilation."""
    total = 0
    for place, rate in enumerate(rates):
        bias = params[f"branches.{place}.bias"]
        total = total + conv(features, params[f"branches.{place}.weight"], rate)
        total = total + bias[None, :, None, None]
    return total


def softmax(x):
    """Softmax over channels, position by position."""
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                e = [math.exp(v) for v in x[b, :, i, j].tolist()]
                for c, v in enumerate(e):
                    out[b, c, i, j] = v / sum(e)
    return out


def multi_scale_logits(
    seg_fn, images, scales, flip, flip_reduce, scale_reduce, activation=None, size=None
):
    """Spec 3.9: reduce over flip on the scale's own grid, resize, reduce over scales."""
    per_scale = []
    for s in scales:
        x = scaled(images, s)
        views = [seg_fn(x)] + ([mirror(seg_fn(mirror(x)))] if flip else [])
        if activation == "softmax":
            views = [softmax(v) for v in views]
        per_scale.append(combine(views, flip_reduce) if flip else views[0])
    if size is None:
        size = max((tuple(m.shape[-2:]) for m in per_scale), key=lambda g: g[0] * g[1])
    return combine([resize(m, size) for m in per_scale], scale_reduce)
