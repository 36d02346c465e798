"""Loop-level transcriptions of pixel-adaptive refinement and the labels made with it."""

import math

import torch
from torch import Tensor


def offsets_oracle(dilations: tuple[int, ...]) -> list[tuple[int, int]]:
    """List the eight neighbours of each ring, centre excluded."""
    return [
        (dy * d, dx * d) for d in dilations for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx
    ]


def _clamp(i: int, n: int) -> int:
    return max(0, min(n - 1, i))


def _std(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def softmax_oracle(scores: list[float]) -> list[float]:
    top = max(scores)
    exps = [math.exp(s - top) for s in scores]
    return [e / sum(exps) for e in exps]


def position_weights_oracle(dilations: tuple[int, ...], scale: float = 0.3) -> list[float]:
    """softmax_j of -(d_ij / (std(d) + 1e-8) / scale)^2 with d = dilation * (1 or sqrt 2)."""
    distances = [math.sqrt(dy * dy + dx * dx) for dy, dx in offsets_oracle(dilations)]
    std = _std(distances)
    return softmax_oracle([-((d / (std + 1e-8) / scale) ** 2) for d in distances])


def affinity_oracle(
    image: list,
    y: int,
    x: int,
    dilations: tuple[int, ...],
    scale: float,
    position_weight: float,
    kernel: str,
) -> list[float]:
    """Weights of the neighbours of one pixel; ``image`` is a nested list (3, H, W)."""
    height, width = len(image[0]), len(image[0][0])
    offsets = offsets_oracle(dilations)
    scores = [0.0] * len(offsets)
    for plane in image:
        near = [plane[_clamp(y + dy, height)][_clamp(x + dx, width)] for dy, dx in offsets]
        centre = plane[y][x]
        if kernel == "par":
            sigma = _std(near)
            terms = [(abs(centre - n) / (sigma + 1e-8) / scale) ** 2 for n in near]
        else:
            sigma = _std(near + [centre] * len(dilations))
            terms = [abs(centre - n) / (1e-8 + scale * sigma) for n in near]
        scores = [s - t / len(image) for s, t in zip(scores, terms, strict=True)]
    colour = softmax_oracle(scores)
    position = position_weights_oracle(dilations, scale)
    return [c + position_weight * p for c, p in zip(colour, position, strict=True)]


def resize_oracle(plane: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """Bilinear resize of one plane (h, w), pixel by pixel."""
    if tuple(plane.shape) == size:
        return plane.clone()
    out = torch.zeros(size, dtype=torch.float64)
    for y in range(size[0]):
        for x in range(size[1]):
            taps = []
            for i, n_out, n_in in ((y, size[0], plane.shape[0]), (x, size[1], plane.shape[1])):
                if align_corners:
                    t = i * (n_in - 1) / (n_out - 1) if n_out > 1 else 0.0
                else:
                    t = max(0.0, (i + 0.5) * n_in / n_out - 0.5)
                lower = min(int(t), n_in - 1)
                taps.append((lower, min(lower + 1, n_in - 1), t - lower))
            (y0, y1, fy), (x0, x1, fx) = taps
            out[y, x] = (
                plane[y0, x0] * (1 - fy) * (1 - fx)
                + plane[y0, x1] * (1 - fy) * fx
                + plane[y1, x0] * fy * (1 - fx)
                + plane[y1, x1] * fy * fx
            )
    return out


def par_oracle(
    images: Tensor,
    maps: Tensor,
    *,
    dilations: tuple[int, ...],
    iterations: int,
    scale: float = 0.3,
    position_weight: float = 0.01,
    kernel: str = "par",
) -> Tensor:
    """images (B, 3, H, W), maps (B, C, h, w) -> (B, C, H, W)."""
    batch, _, height, width = images.shape
    out = torch.zeros(batch, maps.shape[1], height, width, dtype=torch.float64)
    offsets = offsets_oracle(dilations)
    for b in range(batch):
        image = images[b].tolist()
        weights = [
            [
                affinity_oracle(image, y, x, dilations, scale, position_weight, kernel)
                for x in range(width)
            ]
            for y in range(height)
        ]
        for c in range(maps.shape[1]):
            plane = resize_oracle(maps[b, c], (height, width), align_corners=True).tolist()
            for _ in range(iterations):
                plane = [
                    [
                        sum(
                            w * plane[_clamp(y + dy, height)][_clamp(x + dx, width)]
                            for w, (dy, dx) in zip(weights[y][x], offsets, strict=True)
                        )
                        for x in range(width)
                    ]
                    for y in range(height)
                ]
            out[b, c] = torch.tensor(plane, dtype=torch.float64)
    return out


def add_background_oracle(cam: Tensor, *, mode: str, value: list[float]) -> Tensor:
    """Background channel first; ``value`` has one entry per image."""
    batch, classes, height, width = cam.shape
    maps = torch.zeros(batch, classes + 1, height, width, dtype=torch.float64)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                scores = [float(cam[b, c, y, x]) for c in range(classes)]
                if mode == "constant":
                    background = value[b]
                else:
                    background = max(0.0, 1 - max(scores)) ** value[b]
                maps[b, :, y, x] = torch.tensor([background, *scores], dtype=torch.float64)
    return maps


def no_refiner_oracle(size: tuple[int, int], maps: Tensor, labels: Tensor | None) -> Tensor:
    """Bilinear resize of the present channels; the rest is zero."""
    out = torch.zeros(*maps.shape[:2], *size, dtype=torch.float64)
    for b in range(maps.shape[0]):
        for c in range(maps.shape[1]):
            if c == 0 or labels is None or labels[b, c - 1] > 0:
                out[b, c] = resize_oracle(maps[b, c], size, align_corners=False)
    return out


def par_refiner_oracle(
    images: Tensor,
    maps: Tensor,
    labels: Tensor | None,
    *,
    downsample: int,
    softmax: bool,
    dilations: tuple[int, ...],
    iterations: int,
    scale: float = 0.3,
    position_weight: float = 0.01,
    kernel: str = "par",
) -> Tensor:
    """ToCo's recipe, image by image and over the present channels only."""
    batch, channels = maps.shape[:2]
    height, width = images.shape[-2:]
    work = (max(1, height // downsample), max(1, width // downsample))
    out = torch.zeros(batch, channels, height, width, dtype=torch.float64)
    for b in range(batch):
        kept = [c for c in range(channels) if c == 0 or labels is None or labels[b, c - 1] > 0]
        image = torch.stack([resize_oracle(p, work, align_corners=False) for p in images[b]])
        small = torch.stack([resize_oracle(maps[b, c], work, align_corners=False) for c in kept])
        if softmax:
            for y in range(work[0]):
                for x in range(work[1]):
                    probs = softmax_oracle(small[:, y, x].tolist())
                    small[:, y, x] = torch.tensor(probs, dtype=torch.float64)
        refined = par_oracle(
            image[None],
            small[None],
            dilations=dilations,
            iterations=iterations,
            scale=scale,
            position_weight=position_weight,
            kernel=kernel,
        )[0]
        for i, c in enumerate(kept):
            out[b, c] = resize_oracle(refined[i], (height, width), align_corners=False)
    return out


def label_rule_oracle(
    high_maps: Tensor, low_maps: Tensor, box: list[list[int]] | None, ignore_index: int
) -> Tensor:
    """Combine maps (B, K+1, H, W) refined with the high and with the low background."""
    batch, channels, height, width = high_maps.shape
    out = torch.zeros(batch, height, width, dtype=torch.int64)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                winners = []
                for maps in (high_maps, low_maps):
                    best = 0
                    for c in range(1, channels):
                        if maps[b, c, y, x] > maps[b, best, y, x]:
                            best = c
                    winners.append(best)
                high, low = winners
                if high != 0:
                    label = high
                elif low == 0:
                    label = 0
                else:
                    label = ignore_index
                if box is not None:
                    top, left, bottom, right = box[b]
                    if not (top <= y < bottom and left <= x < right):
                        label = ignore_index
                out[b, y, x] = label
    return out
