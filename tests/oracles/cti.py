"""Heads, maps, token infusion, bank and losses of CTI, MCTformer(+): the spec in loops.

Everything takes nested lists of numbers, or of scalar tensors where a gradient is wanted.
"""

import math

import torch


def nested(x):
    """Nested lists of scalar tensors that keep the gradient."""
    return [nested(row) for row in x] if x.ndim else x


def stacked(x):
    """The tensor of nested lists."""
    if not isinstance(x, list):
        return torch.as_tensor(x, dtype=torch.float64)
    return torch.stack([stacked(row) for row in x])


def relu(x):
    return x if x > 0 else 0 * x


def exp(x):
    return x.exp() if isinstance(x, torch.Tensor) else math.exp(x)


def log(x):
    return x.log() if isinstance(x, torch.Tensor) else math.log(x)


def mean(values):
    return sum(values) / len(values)


def cells(plane):
    return [x for row in plane for x in row]


# --- heads -----------------------------------------------------------------------------------


def convolve(image, weight, bias):
    """One image (D, h, w), kernels (n, D, k, k), zero padding that keeps the size."""
    h, w, k = len(image[0]), len(image[0][0]), len(weight[0][0])
    maps = []
    for kernel, b in zip(weight, bias, strict=True):
        plane = []
        for y in range(h):
            row = []
            for x in range(w):
                score = b
                for channel, taps in zip(image, kernel, strict=True):
                    for dy in range(k):
                        for dx in range(k):
                            yy, xx = y + dy - k // 2, x + dx - k // 2
                            if 0 <= yy < h and 0 <= xx < w:
                                score = score + taps[dy][dx] * channel[yy][xx]
                row.append(score)
            plane.append(row)
        maps.append(plane)
    return maps


def patch_head(images, weight, bias, background, valid=None):
    """Logits of the classes (average of the raw scores) and all raw maps."""
    logits, cams = [], []
    for b, image in enumerate(images):
        maps = convolve(image, weight, bias)
        row = []
        for plane in maps[1:] if background else maps:
            inside = cells(valid[b]) if valid else [True] * len(cells(plane))
            kept = [x for x, ok in zip(cells(plane), inside, strict=True) if ok]
            row.append(mean(kept) if kept else 0.0)
        logits.append(row)
        cams.append(maps)
    return logits, cams


def token_logits(tokens, background):
    return [[mean(t) for t in (image[1:] if background else image)] for image in tokens]


def infuse(tokens, source, labels=None, weight=0.5, rescale=False):
    """Mix the last tokens of each image; ``source`` per image, maybe without a background token."""
    out = []
    for b, image in enumerate(tokens):
        given, row = source[b], []
        first = len(image) - len(given)
        for c, token in enumerate(image):
            if c < first:
                row.append(token)
                continue
            s = given[c - first]
            if labels is not None:
                y = labels[b]
                without_label = len(image) - len(y)  # the background token has no label
                if c >= without_label and not y[c - without_label] > 0:
                    row.append(token)
                    continue
            if rescale:
                theirs, ours = sum(v * v for v in s) ** 0.5, sum(v * v for v in token) ** 0.5
                s = [v * ours / theirs for v in s]
            row.append([(1 - weight) * t + weight * v for t, v in zip(token, s, strict=True)])
        out.append(row)
    return out


# --- maps ------------------------------------------------------------------------------------


def fuse(attention, cam, mode):
    """One image's maps."""
    out = []
    for a_plane, m_plane in zip(attention, cam, strict=True):
        plane = []
        for a_row, m_row in zip(a_plane, m_plane, strict=True):
            row = []
            for a, m in zip(a_row, m_row, strict=True):
                product = a * relu(m)
                row.append(
                    {
                        "product": product,
                        "sqrt": product**0.5 if product > 0 else 0 * product,
                        "attention": a,
                        "cam": relu(m),
                    }[mode]
                )
            plane.append(row)
        out.append(plane)
    return out


def foreground(cam, y):
    """One image: the largest score among its classes at each position."""
    h, w = len(cam[0]), len(cam[0][0])
    return [
        [max(plane[i][j] * y[c] for c, plane in enumerate(cam)) for j in range(w)] for i in range(h)
    ]


def propagate(affinity, plane):
    """Affinity (P, P) times the flattened plane."""
    values, width = cells(plane), len(plane[0])
    moved = [sum(a * v for a, v in zip(row, values, strict=True)) for row in affinity]
    return [moved[i : i + width] for i in range(0, len(moved), width)]


def scaled(plane, eps=1e-5):
    """ReLU, then ReLU(z - min - eps) / (max - min + eps)."""
    z = [[relu(x) for x in row] for row in plane]
    low, high = min(cells(z)), max(cells(z))
    return [[relu(x - low - eps) / (high - low + eps) for x in row] for row in z]


# --- bank ------------------------------------------------------------------------------------


def layer_norm(token):
    m = mean(token)
    variance = mean([(x - m) ** 2 for x in token])
    return [(x - m) / (variance + 1e-5) ** 0.5 for x in token]


class Bank:
    """A list per class."""

    def __init__(self, classes, size, normalize=True):
        self.lists = [[] for _ in range(classes)]
        self.size, self.normalize = size, normalize

    def push(self, tokens, labels):
        for image, y in zip(tokens, labels, strict=True):
            for c, token in enumerate(image):
                if y[c] > 0:
                    self.lists[c].append(layer_norm(token) if self.normalize else list(token))
                    self.lists[c] = self.lists[c][-self.size :]

    def prototypes(self, dim):
        return [
            [mean([t[d] for t in stored]) for d in range(dim)] if stored else [0.0] * dim
            for stored in self.lists
        ]


# --- losses ----------------------------------------------------------------------------------


def soft_margin(logits, labels):
    """Mean over images and classes."""
    terms = []
    for row, y_row in zip(logits, labels, strict=True):
        for x, y in zip(row, y_row, strict=True):
            terms.append(-(y * log(1 / (1 + exp(-x))) + (1 - y) * log(1 / (1 + exp(x)))))
    return mean(terms)


def background_consistency(foregrounds, backgrounds, labels=None, eps=1e-5):
    """Mean over images (with ``labels``: those that have a class) of the mean over positions."""
    images = []
    for b, (g, k) in enumerate(zip(foregrounds, backgrounds, strict=True)):
        if labels is not None and not any(y > 0 for y in labels[b]):
            continue
        pairs = zip(cells(scaled(g, eps)), cells(scaled(k, eps)), strict=True)
        images.append(mean([abs(1 - x - y) for x, y in pairs]))
    return mean(images) if images else 0.0


def cam_consistency(cams, others, labels=None, eps=1e-5):
    """Mean over the compared maps of the mean over positions."""
    maps = []
    for b, (image, other) in enumerate(zip(cams, others, strict=True)):
        for c, (m, n) in enumerate(zip(image, other, strict=True)):
            if labels is not None:
                background = len(image) - len(labels[b])
                if c >= background and not labels[b][c - background] > 0:
                    continue
            pairs = zip(cells(scaled(m, eps)), cells(scaled(n, eps)), strict=True)
            maps.append(mean([abs(x - y) for x, y in pairs]))
    return mean(maps) if maps else 0.0


def class_token_contrast(layers, labels):
    """Mean over layers and over present classes of the cross-entropy of a row of cosines."""
    terms = []
    for layer in layers:
        for image, y in zip(layer, labels, strict=True):
            for c, token in enumerate(image):
                if not y[c] > 0:
                    continue
                row = []
                for other in image:
                    dot = sum(a * b for a, b in zip(token, other, strict=True))
                    norms = sum(a * a for a in token) * sum(b * b for b in other)
                    row.append(dot / norms**0.5 if norms > 0 else 0.0)
                terms.append(log(sum(exp(s) for s in row)) - row[c])
    return mean(terms) if terms else 0.0


# --- one training step (spec 1.3 to 1.5) -----------------------------------------------------


def step(network, weight, bias, views, labels, bank, layers, detach_cam=False, mask_absent=False):
    """The four losses of one step.

    network(images, infuse) -> patches (B, D, h, w), class tokens and head-mean attention per
    block; ``layers`` names the block of the infusion and the sets of attention.
    """
    n = len(bias)
    y = labels.tolist()
    place = layers["infuse"]

    def run(images, change=None):
        out = network(images, change)
        logits, raw = patch_head(nested(out.patches), nested(weight), nested(bias), True)
        return out, logits, raw

    def summed(out, which, rows, columns):
        total = sum(out.attention[i] for i in which)
        return nested(total[:, rows, columns])

    def to_patches(out, which, size):
        grids = summed(out, which, slice(0, n), slice(n, None))
        return [
            [[row[i : i + size[1]] for i in range(0, len(row), size[1])] for row in image]
            for image in grids
        ]

    first, z_pat, raw = run(views[0])
    second, z_pat2, _ = run(views[1])
    size = tuple(first.patches.shape[2:])
    z_cls, z_cls2 = (token_logits(nested(o.tokens[-1]), True) for o in (first, second))
    classification = sum(soft_margin(z, y) for z in (z_cls, z_pat, z_cls2, z_pat2))

    cam = [[[[relu(v) for v in r] for r in plane] for plane in image] for image in raw]
    attention = to_patches(first, layers["background_attention"], size)
    affinity = summed(first, layers["affinity"], slice(n, None), slice(n, None))
    foregrounds, backgrounds = [], []
    for b, image in enumerate(cam):
        inside = [[[v.detach() for v in r] for r in p] for p in image] if detach_cam else image
        classes = fuse(attention[b][1:], inside[1:], "product")
        foregrounds.append(propagate(affinity[b], foreground(classes, y[b])))
        alone = fuse(attention[b][:1], image[:1], "product")[0]
        backgrounds.append(propagate(affinity[b], alone))
    background = background_consistency(foregrounds, backgrounds)

    given = nested(second.tokens[place])
    _, _, raw_intra = run(views[0], lambda t: stacked(infuse(nested(t), given)))
    intra = cam_consistency(cam, raw_intra, y if mask_absent else None)

    tokens = first.tokens[place][:, 1:].detach()
    bank.push(tokens.tolist(), y)
    prototypes = bank.prototypes(tokens.shape[2])

    def cross(t):
        ours = nested(t)
        others = [
            [
                prototypes[c] if y[b][c] > 0 else [v.detach() for v in ours[b][c + 1]]
                for c in range(n - 1)
            ]
            for b in range(len(ours))
        ]
        return stacked(infuse(ours, others, y if mask_absent else None))

    infused, _, raw_cross = run(views[0], cross)
    attention = to_patches(infused, layers["cross_attention"], size)
    fused = [fuse(attention[b], raw_cross[b], "product") for b in range(len(raw_cross))]
    across = cam_consistency(
        [image[1:] for image in cam], [image[1:] for image in fused], y if mask_absent else None
    )
    return classification, background, intra, across
