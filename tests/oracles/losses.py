"""Losses as the specs write them, with explicit loops over Python numbers."""

import math

import torch


def exact(value):
    """A float64 tensor, so that comparisons lose no digits."""
    return torch.tensor(value, dtype=torch.float64)


def cosine(a, b):
    a, b = a.tolist(), b.tolist()
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b)))


def unit(x):
    norm = math.sqrt(sum(float(v) ** 2 for v in x))
    return x / norm


def multi_label_soft_margin(logits, labels):
    """Per image: mean over classes of -[y log sigmoid(x) + (1 - y) log(1 - sigmoid(x))]."""
    rows = []
    for x_row, y_row in zip(logits.tolist(), labels.tolist(), strict=True):
        terms = []
        for x, y in zip(x_row, y_row, strict=True):
            p = 1 / (1 + math.exp(-x))
            terms.append(-(y * math.log(p) + (1 - y) * math.log(1 - p)))
        rows.append(sum(terms) / len(terms))
    return exact(rows)


def _attract(s, similarity):
    if similarity == "clamp":
        return -math.log(min(max(s, 1e-4), 1 - 1e-4))
    if similarity == "shifted":
        return -math.log(min(max((1 + s) / 2, 1e-4), 1 - 1e-4))
    return -math.log(s) if s >= 0.1 else -math.log(0.1) + (0.1 - s) / 0.1


def _repel(s, similarity):
    if similarity == "clamp":
        return -math.log(1 - min(max(s, 1e-4), 1 - 1e-4))
    if similarity == "shifted":
        return -math.log(1 - min(max((1 + s) / 2, 1e-4), 1 - 1e-4))
    s = max(s, 0.0)
    return -math.log(1 - s) if s <= 0.9 else -math.log(0.1) + (s - 0.9) / 0.1


def global_implicit_alignment(token, labels, class_text, background_text, similarity, per_class):
    """Per image: L_im, zero without any class; ``per_class`` "sum" or "mean"."""
    rows = []
    for v, y in zip(token, labels.tolist(), strict=True):
        present = [c for c, value in enumerate(y) if value > 0]
        if not present:
            rows.append(0.0)
            continue
        loss = sum(_attract(cosine(v, class_text[c]), similarity) for c in present)
        if per_class == "mean":
            loss /= len(present)
        if len(background_text):
            loss += _repel(max(cosine(v, t) for t in background_text), similarity)
        rows.append(loss)
    return exact(rows)


def cross_contrastive(
    features,
    mask,
    labels,
    class_text,
    background_text,
    temperature=1.0,
    background_weight=1e-3,
    variant="background",
    pool="region",
    ignore_index=255,
):
    """Mean over images with a foreground region of L_v2t + L_t2v + lambda L_bg."""
    tau, lam = temperature, background_weight
    K = len(class_text)

    def e(similarity):
        return math.exp(similarity / tau)

    def e_background(v):
        return sum(e(cosine(v, t)) for t in background_text) / len(background_text)

    images = []
    for feature, grid, y in zip(features, mask.tolist(), labels.tolist(), strict=True):
        tokens = {c: [] for c in range(K + 1)}
        for i, row in enumerate(grid):
            for j, c in enumerate(row):
                if c != ignore_index and (c == 0 or y[c - 1] > 0):
                    tokens[c].append(unit(feature[:, i, j]))
        tokens = {c: t for c, t in tokens.items() if t}
        if pool == "region":
            tokens = {c: [sum(t) / len(t)] for c, t in tokens.items()}
        images.append(tokens)

    def e_region(c, tokens):
        return sum(e(cosine(class_text[c - 1], v)) for v in tokens[0]) / len(tokens[0])

    losses = []
    for tokens in images:
        present = [c for c in tokens if c > 0]
        if not present:
            continue
        v2t = t2v = 0.0
        for c in present:
            from_image = from_text = 0.0
            for v in tokens[c]:
                hit = e(cosine(v, class_text[c - 1]))
                negative = e_background(v)
                if variant == "classes":
                    negative += sum(
                        e(cosine(v, class_text[k - 1])) for k in range(1, K + 1) if k != c
                    )
                if variant == "denominator":
                    negative *= lam
                from_image -= math.log(hit / (hit + negative))
                if variant == "batch":
                    negative = sum(e_region(c, other) for other in images if 0 in other)
                else:
                    negative = e_region(c, tokens) if 0 in tokens else 0.0
                if variant == "denominator":
                    negative *= lam
                from_text -= math.log(hit / (hit + negative))
            v2t += from_image / len(tokens[c]) / len(present)
            t2v += from_text / len(tokens[c]) / len(present)
        background = 0.0
        for v in tokens.get(0, []):
            hit = e_background(v)
            rivals = sum(e(cosine(v, class_text[c - 1])) for c in present)
            background -= math.log(hit / (hit + rivals)) / len(tokens[0])
        losses.append(v2t + t2v + (1.0 if variant == "denominator" else lam) * background)
    return exact(sum(losses) / len(losses) if losses else 0.0)


def patch_token_contrast(features, mask, ignore_index=255):
    """0.5 (1 - mean over positive pairs of S) + 0.5 mean over negative pairs of S; S = |cos|."""
    positive, negative = [], []
    for feature, grid in zip(features, mask, strict=True):
        tokens = [t for row in feature.permute(1, 2, 0) for t in row]
        ids = grid.flatten().tolist()
        for i in range(len(ids)):
            for j in range(len(ids)):
                if i == j or ignore_index in (ids[i], ids[j]):
                    continue
                similarity = abs(cosine(tokens[i], tokens[j]))
                (positive if ids[i] == ids[j] else negative).append(similarity)
    loss = 0.0
    if positive:
        loss += 0.5 * (1 - sum(positive) / len(positive))
    if negative:
        loss += 0.5 * sum(negative) / len(negative)
    return exact(loss)


def _upsample(plane, H, W):
    # bilinear, align_corners=False: sample centres, source coordinates clamped at 0
    h, w = len(plane), len(plane[0])
    rows = []
    for i in range(H):
        y = max((i + 0.5) * h / H - 0.5, 0.0)
        y0 = int(y)
        y1 = min(y0 + 1, h - 1)
        row = []
        for j in range(W):
            x = max((j + 0.5) * w / W - 0.5, 0.0)
            x0 = int(x)
            x1 = min(x0 + 1, w - 1)
            top = plane[y0][x0] * (1 - (x - x0)) + plane[y0][x1] * (x - x0)
            bottom = plane[y1][x0] * (1 - (x - x0)) + plane[y1][x1] * (x - x0)
            row.append(top * (1 - (y - y0)) + bottom * (y - y0))
        rows.append(row)
    return rows


def balanced_segmentation(logits, mask, ignore_index=255):
    """0.5 CE over background pixels + 0.5 CE over foreground pixels, each a mean or nothing."""
    background, foreground = [], []
    for planes, grid in zip(logits.tolist(), mask.tolist(), strict=True):
        H, W = len(grid), len(grid[0])
        planes = [_upsample(p, H, W) for p in planes]
        for i in range(H):
            for j in range(W):
                c = grid[i][j]
                if c == ignore_index:
                    continue
                scores = [p[i][j] for p in planes]
                ce = math.log(sum(math.exp(s) for s in scores)) - scores[c]
                (background if c == 0 else foreground).append(ce)
    loss = 0.0
    for group in (background, foreground):
        if group:
            loss += 0.5 * sum(group) / len(group)
    return exact(loss)


def segmentation(logits, mask, ignore_index=255):
    """Mean CE over the pixels that have a label, or nothing."""
    terms = []
    for planes, grid in zip(logits.tolist(), mask.tolist(), strict=True):
        H, W = len(grid), len(grid[0])
        planes = [_upsample(p, H, W) for p in planes]
        for i in range(H):
            for j in range(W):
                if grid[i][j] != ignore_index:
                    scores = [p[i][j] for p in planes]
                    terms.append(math.log(sum(math.exp(s) for s in scores)) - scores[grid[i][j]])
    return exact(sum(terms) / len(terms) if terms else 0.0)


def crop_token_contrast(tokens, targets, positive, temperature):
    """Each positive crop against the negative ones, seen from each global view of its image."""
    loss = 0.0
    for crops, views, kinds in zip(tokens, targets, positive.tolist(), strict=True):
        terms = []
        for view in views:
            grown = [math.exp(cosine(view, crop) / temperature) for crop in crops]
            others = sum(g for g, kind in zip(grown, kinds, strict=True) if not kind)
            terms += [-math.log(g / (g + others)) for g, k in zip(grown, kinds, strict=True) if k]
        loss += sum(terms) / len(terms) if terms else 0.0
    return exact(loss / max(len(tokens), 1))
