"""Class rebalancing without a CRF against the loop over images, patches, classes and groups.

Run ``python -m benchmarks.bench_rebalance [--quick] [--output DIR]``.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._harness import Options, compare, max_difference, mismatch_share, run
from benchmarks.baselines import rebalance_loop
from wsss_blocks.refine import ClassRebalancer

LOOP = "loop over images, patches and classes"
NOTE = (
    "Half of the time goes into reading C4 and C5 twice: for the centroids, and for the heat-maps, "
    "the norms and the check of finite values. The rest are passes over masks and coarse maps."
)
# Scaling to [0, 1] and exp(S / 0.1) magnify what rounding does to cosines, in the loop as well: its
# heat-maps in float32 are 1e-5 off those in float64.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-5}

Result = tuple[Tensor, Tensor]
"""Masks and heat-maps."""


def cases(options: Options) -> Iterator[dict[str, Any]]:
    batch, large, classes, image, cam, uss, wss, dims = (
        (2, 3, 5, 64, 4, 10, 8, (8, 16, 24))
        if options.quick
        else (4, 16, 20, 512, 32, 74, 64, (90, 1024, 2048))
    )
    for device in options.devices:
        for images, dtype, alike in (
            (batch, torch.float32, False),
            (batch, torch.float32, True),
            (batch, torch.float64, True),
            (large, torch.float32, False),
            (large, torch.float32, True),
        ):
            call = problem(
                images, classes, image, cam, uss, wss, dims, alike=alike, device=device, dtype=dtype
            )
            yield compare(
                f"B{images} K{classes} mask {image}x{image}, USS {dims[0]} at {uss}x{uss}, "
                f"C4 {dims[1]} and C5 {dims[2]} at {wss}x{wss}, "
                f"{'most' if alike else 'few'} classes alike"
                f"{', float64' if dtype == torch.float64 else ''}",
                {
                    LOOP: partial(rebalance_loop.published, *call[1:]),
                    "ours": partial(rebalanced, *call),
                },
                reference="ours",
                options=options,
                device=device,
                bars={LOOP: 12},
                difference=difference,
                tolerance=TOLERANCE[dtype],
                note=NOTE,
            )


def rebalanced(*call: Any) -> Result:
    found = ClassRebalancer()(*call)
    assert found.heatmaps is not None
    return found.mask, found.heatmaps


def difference(found: Result, ours: Result) -> float:
    """Compare heat-maps; masks may differ in 1e-5 of the pixels, where our maps are level."""
    (mask, maps), (own_mask, own_maps) = found, ours
    share = mismatch_share(mask, own_mask)
    if share > 1e-5:
        raise AssertionError(f"{share:.2g} of the pixels have another class.")
    largest = max_difference(maps, own_maps)
    for b in (mask != own_mask).flatten(1).any(1).nonzero().flatten().tolist():
        size = (mask.shape[1], mask.shape[2])
        score = F.interpolate(own_maps[b : b + 1], size=size, mode="bilinear", align_corners=False)
        best, other = (score[0].gather(0, m[b : b + 1]) for m in (own_mask, mask))
        largest = max(largest, max_difference(best, other))
    return largest


def problem(
    batch: int,
    classes: int,
    image: int,
    cam: int,
    uss: int,
    wss: int,
    dims: tuple[int, int, int],
    *,
    alike: bool,
    device: str,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """Blobs of 1 to 5 classes and background, features that know them, CAMs around a part."""
    g = torch.Generator().manual_seed(0)
    labels = torch.zeros(batch, classes)
    score = torch.full((batch, classes + 1, image, image), -torch.inf)
    score[:, 0] = 0.8
    for b in range(batch):
        chosen = torch.randperm(classes, generator=g)[: 1 + b % 5]
        labels[b, chosen] = 1
        for k in chosen.tolist():
            noise = torch.randn(1, 1, 5, 5, generator=g)
            score[b, k + 1] = F.interpolate(noise, size=(image, image), mode="bicubic")[0, 0]
    mask = score.argmax(1)

    def features(dim: int, side: int) -> Tensor:
        shared = torch.randn(1, dim, generator=g)
        own = (0.3 if alike else 3.0) * torch.randn(classes + 1, dim, generator=g)
        ids = F.interpolate(mask[:, None].float(), size=(side, side))[:, 0].long()
        known = (shared + own)[ids].movedim(3, 1)
        noise = torch.randn(batch, dim, 1, side, generator=g) * torch.rand(side, 1, generator=g)
        return (known + noise).contiguous().to(device, dtype)

    share = F.adaptive_avg_pool2d(F.one_hot(mask, classes + 1).movedim(3, 1).float(), cam)[:, 1:]
    scores = share + 0.3 * torch.randn(share.shape, generator=g)
    images = torch.rand(batch, 3, image, image, generator=g)
    narrow, wide = features(dims[0], uss), tuple(features(dim, wss) for dim in dims[1:])
    mask[torch.rand(mask.shape, generator=g) < 0.05] = 255
    return (
        images.to(device, dtype),
        scores.to(device, dtype),
        mask.to(device),
        labels.to(device),
        narrow,
        wide,
    )


if __name__ == "__main__":
    run("bench_rebalance", cases)
