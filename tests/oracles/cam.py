"""Loop-level transcriptions of the CAM blocks (DIAL/ToCo system spec, sections 1.3, 3.3, 3.4)."""

import math
from fractions import Fraction

import torch


def bilinear(plane, size):
    """Resize one plane (list of rows), align_corners=False, borders clamped."""
    h, w = len(plane), len(plane[0])
    out = []
    for i in range(size[0]):
        y = max((i + 0.5) * h / size[0] - 0.5, 0.0)
        y0 = min(math.floor(y), h - 1)
        y1, fy = min(y0 + 1, h - 1), y - y0
        row = []
        for j in range(size[1]):
            x = max((j + 0.5) * w / size[1] - 0.5, 0.0)
            x0 = min(math.floor(x), w - 1)
            x1, fx = min(x0 + 1, w - 1), x - x0
            top = plane[y0][x0] + fx * (plane[y0][x1] - plane[y0][x0])
            bottom = plane[y1][x0] + fx * (plane[y1][x1] - plane[y1][x0])
            row.append(top + fy * (bottom - top))
        out.append(row)
    return out


def resize(x, size):
    """Resize every plane of (B, C, h, w)."""
    return torch.tensor(
        [[bilinear(plane, size) for plane in image] for image in x.tolist()], dtype=torch.float64
    ).reshape(x.shape[0], x.shape[1], *size)


def class_weight_cam(features, weight):
    """A^c(i) = w_c . z_i."""
    B, D, h, w = features.shape
    f, rows = features.tolist(), weight.reshape(weight.shape[0], D).tolist()
    out = torch.zeros(B, len(rows), h, w, dtype=torch.float64)
    for b in range(B):
        for c, row in enumerate(rows):
            for i in range(h):
                for j in range(w):
                    out[b, c, i, j] = sum(row[d] * f[b][d][i][j] for d in range(D))
    return out


def _cosine(a, b):
    na, nb = math.sqrt(sum(x * x for x in a)), math.sqrt(sum(x * x for x in b))
    if na == 0 or nb == 0:
        return 0.0
    return sum(x * y for x, y in zip(a, b, strict=True)) / (na * nb)


def similarity_cam(features, text, background, mode, temperature):
    """Score each patch against each class name: cosine, margin to the background, softmax."""
    B, D, h, w = features.shape
    f, names = features.tolist(), text.tolist()
    others = [] if background is None else background.tolist()
    out = torch.zeros(B, len(names), h, w, dtype=torch.float64)
    for b in range(B):
        for i in range(h):
            for j in range(w):
                v = [f[b][d][i][j] for d in range(D)]
                s = [_cosine(v, t) for t in names]
                r = [_cosine(v, t) for t in others]
                for c in range(len(names)):
                    if mode == "cosine":
                        out[b, c, i, j] = s[c]
                    elif mode == "margin":
                        out[b, c, i, j] = s[c] - max(r)
                    else:
                        total = sum(math.exp(u / temperature) for u in s + r)
                        out[b, c, i, j] = math.exp(s[c] / temperature) / total
    return out


def normalize_cam(cam, mode, relu, scope, valid, eps):
    """Scale each map (or each image's maps together) by its extremes over valid positions."""
    B, K, h, w = cam.shape
    x = cam.tolist()
    out = torch.zeros(B, K, h, w, dtype=torch.float64)
    for b in range(B):
        places = [
            (i, j) for i in range(h) for j in range(w) if valid is None or bool(valid[b, i, j])
        ]
        value = {
            (c, i, j): max(x[b][c][i][j], 0.0) if relu else x[b][c][i][j]
            for c in range(K)
            for i, j in places
        }
        for c in range(K):
            group = range(K) if scope == "image" else [c]
            seen = [value[g, i, j] for g in group for i, j in places]
            for i, j in places:
                low, high, v = min(seen), max(seen), value[c, i, j]
                if mode == "minmax":
                    out[b, c, i, j] = (v - low) / (high - low + eps)
                elif mode == "max":
                    out[b, c, i, j] = v / max(high, eps)
                else:
                    out[b, c, i, j] = max(v - low - eps, 0.0) / (high - low + eps)
    return out


def _reduce(values, how):
    if how == "max":
        return max(values)
    return sum(values) / (len(values) if how == "mean" else 1)


def combine(tensors, how):
    """Reduce same-shaped tensors position by position."""
    shape = tensors[0].shape
    flat = [t.flatten().tolist() for t in tensors]
    return torch.tensor(
        [_reduce(v, how) for v in zip(*flat, strict=True)], dtype=torch.float64
    ).reshape(shape)


def mirror(x):
    """Reverse the columns."""
    out = x.clone()
    for j in range(x.shape[-1]):
        out[..., j] = x[..., x.shape[-1] - 1 - j]
    return out


def scaled(images, s):
    """Resize images by a factor, sides rounded half up, at least one pixel."""
    h, w = images.shape[-2:]
    size = max(1, math.floor(h * s + 0.5)), max(1, math.floor(w * s + 0.5))
    return images if size == (h, w) else resize(images, size)


def multi_scale_cam(
    cam_fn, images, scales, flip, flip_reduce, relu, scale_reduce, labels=None, size=None
):
    """Spec 3.3 without its normalisation: upsample, reduce over flip, ReLU, reduce over scales."""
    raw = []
    for s in scales:
        x = scaled(images, s)
        raw.append([cam_fn(x), cam_fn(mirror(x))] if flip else [cam_fn(x)])
    if size is None:
        size = max((tuple(maps[0].shape[-2:]) for maps in raw), key=lambda g: g[0] * g[1])
    per_scale = []
    for maps in raw:
        views = [resize(maps[0], size)]
        if flip:
            views.append(mirror(resize(maps[1], size)))
        fused = combine(views, flip_reduce)
        if relu:
            fused = combine([fused, torch.zeros_like(fused)], "max")
        per_scale.append(fused)
    cam = combine(per_scale, scale_reduce)
    if labels is not None:
        for b in range(cam.shape[0]):
            for c in range(cam.shape[1]):
                if labels[b, c] == 0:
                    cam[b, c] = 0.0
    return cam


def cam_to_label(
    cam,
    labels,
    size,
    threshold=0.5,
    background_power=None,
    box=None,
    relu=True,
    normalize="minmax",
    ignore_index=255,
):
    """Spec 3.4 pixel by pixel; `threshold` is None, a number, a pair, or one of these per image.

    Returns the labels, and how far the scores of each pixel are from another decision.
    """
    B, C = cam.shape[:2]
    x = resize(cam, size).tolist()
    first = 1 if threshold is None else 0
    out = torch.zeros(B, *size, dtype=torch.int64)
    margins = torch.zeros(B, *size, dtype=torch.float64)
    for b in range(B):
        planes = []
        for c in range(C):
            v = x[b][c]
            if relu:
                v = [[max(u, 0.0) for u in row] for row in v]
            if normalize == "minmax":
                low, high = min(map(min, v)), max(map(max, v))
                v = [[(u - low) / (high - low + 1e-5) for u in row] for row in v]
            planes.append(v)
        t = threshold[b] if isinstance(threshold, list) else threshold
        for i in range(size[0]):
            for j in range(size[1]):
                best, second, winner = -math.inf, -math.inf, 0
                for c in range(first, C):
                    if labels[b, c - first] > 0 and planes[c][i][j] > best:
                        best, second, winner = planes[c][i][j], best, c - first + 1
                    elif labels[b, c - first] > 0:
                        second = max(second, planes[c][i][j])
                if background_power is not None:
                    rest = max(1 - max(best, 0.0), 0.0) ** background_power
                    label = winner if best > rest else 0
                    margin = abs(best - rest)
                elif t is None:
                    label = winner if best > planes[0][i][j] else 0
                    margin = abs(best - planes[0][i][j])
                else:
                    low, high = t if isinstance(t, tuple) else (t, t)
                    margin = min(abs(best - low), abs(best - high))
                    label = 0 if best <= low else ignore_index if best <= high else winner
                if label == winner:  # which class it is matters only here
                    margin = min(margin, best - second) if winner else math.inf
                if box is not None:
                    top, left, bottom, right = box[b].tolist()
                    if not (top <= i < bottom and left <= j < right):
                        label, margin = ignore_index, math.inf
                out[b, i, j], margins[b, i, j] = label, margin
    return out, margins


def box_to_valid(box, image_size, size):
    """A cell is valid where its centre, in image pixels, lies inside the half-open box."""
    out = torch.zeros(box.shape[0], *size, dtype=torch.bool)
    for b, (top, left, bottom, right) in enumerate(box.tolist()):
        for i in range(size[0]):
            for j in range(size[1]):
                y = Fraction(2 * i + 1, 2) * Fraction(image_size[0], size[0])
                x = Fraction(2 * j + 1, 2) * Fraction(image_size[1], size[1])
                out[b, i, j] = top <= y < bottom and left <= x < right
    return out


def scale_box(box, image_size, size):
    """Count, per edge, the cells of the new grid whose centre lies before that edge."""
    out = torch.zeros(box.shape, dtype=torch.int64)
    for b, edges in enumerate(box.tolist()):
        for k, edge in enumerate(edges):
            old, new = image_size[k % 2], size[k % 2]
            out[b, k] = sum(Fraction(2 * i + 1, 2) * Fraction(old, new) < edge for i in range(new))
    return out


def crop_kind(mask, box, inside, share, ignore_index=255):
    """Sum what the pixels of a crop tell (0, 1, 2), padding included as 0: is it positive?"""
    top, left, bottom, right = box
    total = 0
    for i in range(top, bottom):
        for j in range(left, right):
            shown = inside[0] <= i < inside[2] and inside[1] <= j < inside[3]
            if shown and mask[i][j] != 0:
                total += 1 if mask[i][j] == ignore_index else 2
    return Fraction(total, (bottom - top) * (right - left)) > Fraction(str(share))


def crop_rank(mask, top, left, size, inside, ignore_index=255):
    """Rate a place: 2 in the box with a middle that is no object, 1 in the box, 0 elsewhere."""
    fits = inside[0] <= top and inside[1] <= left
    fits = fits and top + size <= inside[2] and left + size <= inside[3]
    middle = mask[top + size // 2][left + size // 2]
    return int(fits) + int(fits and middle in (0, ignore_index))
