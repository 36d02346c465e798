"""Class rebalancing without a CRF against the loop over images, patches, classes and groups.

Run ``python -m benchmarks.bench_rebalance [--quick] [--output DIR]``.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._harness import Options, compare, mismatch_share, run
from benchmarks.baselines import rebalance_loop
from wsss_blocks.refine import ClassRebalancer

LOOP = "loop over images, patches and classes"
NOTE = (
    "Bound by reading C4 and C5: one product for the centroids, one for the heat-maps, one pass "
    "for the norms, one for the check of finite values (CPU only)."
)


def cases(options: Options) -> Iterator[dict[str, Any]]:
    batch, classes, image, cam, uss, wss, dims = (
        (2, 5, 64, 4, 10, 8, (8, 16, 24))
        if options.quick
        else (4, 20, 512, 32, 74, 64, (90, 1024, 2048))  # the loop takes 12 s for 16 images
    )
    for device in options.devices:
        for alike in (False, True):
            call = problem(batch, classes, image, cam, uss, wss, dims, alike=alike, device=device)
            yield compare(
                f"B{batch} K{classes} mask {image}x{image}, USS {dims[0]} at {uss}x{uss}, "
                f"C4 {dims[1]} and C5 {dims[2]} at {wss}x{wss}, "
                f"{'most' if alike else 'few'} classes alike",
                {
                    LOOP: partial(rebalance_loop.published, *call[1:]),
                    "ours": partial(rebalanced, *call),
                },
                reference="ours",
                options=options,
                device=device,
                bars={LOOP: 12},
                difference=mismatch_share,
                tolerance=1e-5,
                note=NOTE,
            )


def rebalanced(*call: Any) -> Tensor:
    return ClassRebalancer()(*call).mask


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
        return (known + noise).contiguous().to(device)

    share = F.adaptive_avg_pool2d(F.one_hot(mask, classes + 1).movedim(3, 1).float(), cam)[:, 1:]
    scores = share + 0.3 * torch.randn(share.shape, generator=g)
    images = torch.rand(batch, 3, image, image, generator=g)
    narrow, wide = features(dims[0], uss), tuple(features(dim, wss) for dim in dims[1:])
    mask[torch.rand(mask.shape, generator=g) < 0.05] = 255
    return (
        images.to(device),
        scores.to(device),
        mask.to(device),
        labels.to(device),
        narrow,
        wide,
    )


if __name__ == "__main__":
    run("bench_rebalance", cases)
