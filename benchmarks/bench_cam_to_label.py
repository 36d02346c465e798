"""CAM to pseudo-label against the eager chain of the same formula.

Run ``python -m benchmarks.bench_cam_to_label [--quick] [--output DIR]``.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks._harness import Options, compare, mismatch_share, run
from benchmarks.baselines import cam_to_label_eager
from wsss_blocks.cam import cam_to_label

THRESHOLD = (0.35, 0.55)
EAGER, LEAN = "eager chain", "lean eager (in place)"
# name, batch, classes, mean number of present classes (None: all of them), lowest accepted ratios
CASES: tuple[tuple[str, int, int, float | None, dict[str, float]], ...] = (
    ("B4 K20, 1.6 present", 4, 20, 1.6, {}),
    ("B16 K20, 1.6 present", 16, 20, 1.6, {EAGER: 15, LEAN: 8}),
    ("B4 K80, 2.9 present", 4, 80, 2.9, {}),
    ("B16 K80, 2.9 present", 16, 80, 2.9, {EAGER: 40, LEAN: 20}),
    ("B4 K20, all present", 4, 20, None, {}),
    ("B16 K20, all present", 16, 20, None, {EAGER: 2.5, LEAN: 1.5}),
)


def cases(options: Options) -> Iterator[dict[str, Any]]:
    source, side = (7, 64) if options.quick else (28, 448)
    for device in options.devices:
        for name, batch, classes, present, bars in CASES:
            cam, labels = problem(batch, classes, present, source, device)
            settings: dict[str, Any] = {"size": (side, side), "threshold": THRESHOLD}
            ours = partial(cam_to_label, cam, labels, **settings)
            yield compare(
                f"{name}, {source}x{source} to {side}x{side}",
                {
                    EAGER: partial(cam_to_label_eager.published, cam, labels, **settings),
                    LEAN: partial(cam_to_label_eager.lean, cam, labels, **settings),
                    "ours, int64": ours,
                    "ours, uint8": partial(ours, dtype=torch.uint8),
                },
                reference="ours, uint8",
                options=options,
                device=device,
                bars=bars,
                memory_bars={EAGER: 1 / 10} if bars else None,
                difference=mismatch_share,
                tolerance=1e-4,
            )


def problem(
    batch: int, classes: int, present: float | None, source: int, device: str
) -> tuple[Tensor, Tensor]:
    """Maps with negative and positive scores; at least one class per image."""
    g = torch.Generator().manual_seed(0)
    cam = torch.randn(batch, classes, source, source, generator=g)
    labels = torch.ones(batch, classes)
    if present is not None:
        more = torch.rand(batch, classes, generator=g) < (present - 1) / (classes - 1)
        first = torch.randint(0, classes, (batch, 1), generator=g)
        labels = more.float().scatter(1, first, 1.0)
    return cam.to(device), labels.to(device)


if __name__ == "__main__":
    run("bench_cam_to_label", cases)
