"""Class rebalancing as DHR describes it: one image, one patch, one class and one group at a time.

The equations with the readings of ``ClassRebalancer``: area weights, components as groups, twenty
Sinkhorn iterations. Cosines are broadcast, as the released code does them.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["published"]


@torch.no_grad()
def published(
    cam: Tensor,
    mask: Tensor,
    labels: Tensor,
    uss: Tensor,
    wss: Sequence[Tensor],
    *,
    threshold: float = 0.8,
    ignore_index: int = 255,
) -> tuple[Tensor, Tensor]:
    """Return masks ``(B, H, W)``, whose sides are multiples of those of ``wss``, and heat-maps."""
    masks, maps = [], []
    for b in range(len(mask)):
        features = uss[b], [f[b] for f in wss]
        found = _image(cam[b], mask[b], labels[b], *features, threshold, ignore_index)
        masks.append(found[0])
        maps.append(found[1])
    return torch.stack(masks), torch.stack(maps)


def _image(
    cam: Tensor,
    mask: Tensor,
    labels: Tensor,
    uss: Tensor,
    wss: list[Tensor],
    threshold: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    size = (int(mask.shape[0]), int(mask.shape[1]))
    grid = (int(wss[0].shape[1]), int(wss[0].shape[2]))
    present = [k for k in range(len(labels)) if labels[k] > 0]
    maps = [cam[k].relu() / cam[k].relu().max().clamp_min(1e-5) for k in present]
    if present:
        maps = [a * f for a, f in zip(maps, _transport(maps), strict=True)]
        maps = [1 - torch.stack(maps).amax(0), *maps]
        best = _resize(torch.stack(maps), size).argmax(0)
        ids = torch.tensor([0, *(k + 1 for k in present)], device=mask.device)
        mask = torch.where(best > 0, ids[best], mask)
    uss = _resize(uss, grid)

    pixels, weights = mask.cpu().numpy(), {}
    high, wide = size[0] // grid[0], size[1] // grid[1]
    for i in range(grid[0]):
        for j in range(grid[1]):
            window = pixels[i * high : (i + 1) * high, j * wide : (j + 1) * wide]
            for label, votes in zip(*np.unique(window, return_counts=True), strict=True):
                if label != ignore_index:
                    weights.setdefault(int(label), []).append((i, j, votes / (high * wide)))
    classes = sorted(c for c in weights if c == 0 or labels[c - 1] > 0)
    every = uss.new_zeros(len(labels) + 1, *grid)
    if not classes:
        return torch.full_like(mask, ignore_index), every

    vectors = [_centroid(uss, weights[c]) for c in classes]
    heat = [_heatmap(uss, v) for v in vectors]
    found = [[_heatmap(f, _centroid(f, weights[c])) for c in classes] for f in wss]
    guide = [_min_max(torch.stack(maps).mean(0)) for maps in zip(*found, strict=True)]
    for group in _components(vectors, threshold):
        for i, factor in zip(group, _transport([guide[i] for i in group]), strict=True):
            heat[i] = heat[i] * factor
    heat = [_min_max(h * f) for h, f in zip(heat, _transport(heat), strict=True)]
    best = _resize(torch.stack(heat), size).argmax(0)
    every[classes] = torch.stack(heat)
    return torch.tensor(classes, device=mask.device)[best], every


def _centroid(features: Tensor, patches: list[tuple[int, int, float]]) -> Tensor:
    summed = torch.stack([features[:, i, j] * w for i, j, w in patches]).sum(0)
    return summed / sum(w for _, _, w in patches)


def _heatmap(features: Tensor, centroid: Tensor) -> Tensor:
    return _min_max(F.cosine_similarity(features, centroid[:, None, None], dim=0))


def _min_max(x: Tensor) -> Tensor:
    spread = x.max() - x.min()
    return (x - x.min()) / spread if spread > 1e-5 else torch.zeros_like(x)


def _components(vectors: list[Tensor], threshold: float) -> list[list[int]]:
    left, groups = set(range(len(vectors))), []
    while left:
        group, waiting = set(), [min(left)]
        while waiting:
            i = waiting.pop()
            group.add(i)
            waiting += [
                j
                for j in left - group
                if float(F.cosine_similarity(vectors[i], vectors[j], dim=0)) > threshold
            ]
        left -= group
        if len(group) > 1:
            groups.append(sorted(group))
    return groups


def _transport(maps: list[Tensor], reg: float = 0.1, num_iters: int = 20) -> list[Tensor]:
    """Scale the plan of each class to [0, 1]; ones for a class alone."""
    if len(maps) < 2:
        return [torch.ones_like(m) for m in maps]
    kernel = ((torch.stack([m.flatten() for m in maps], 1) - 1) / reg).exp()
    cells, classes = kernel.shape
    c = kernel.new_ones(classes)
    for _ in range(num_iters):
        r = (1 / cells) / (kernel @ c)
        c = (1 / classes) / (kernel.T @ r)
    factors = []
    for plan in (r[:, None] * kernel * c).unbind(1):
        spread = torch.maximum(plan.max() - plan.min(), 1e-3 * plan.max())
        factors.append((1 - (plan.max() - plan) / spread).view_as(maps[0]))
    return factors


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
