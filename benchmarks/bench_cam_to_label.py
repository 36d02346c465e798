"""CAM to pseudo-label against the eager chain of the same formula.

Run ``python -m benchmarks.bench_cam_to_label [--quick] [--output DIR]``.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks._harness import Options, compare, mismatch_share, run
from benchmarks.baselines.label_eager import label_eager, label_lean
from wsss_blocks.cam import cam_to_label

THRESHOLD = (0.35, 0.55)
# name, batch, classes, mean number of present classes (None: all of them), lowest accepted ratio
CASES = (
    ("B4 K20, 1.6 present", 4, 20, 1.6, 15.0),
    ("B16 K20, 1.6 present", 16, 20, 1.6, 15.0),
    ("B4 K80, 2.9 present", 4, 80, 2.9, 40.0),
    ("B16 K80, 2.9 present", 16, 80, 2.9, 40.0),
    ("B4 K20, all present", 4, 20, None, 2.5),
)


def cases(options: Options) -> Iterator[dict[str, Any]]:
    source, side = (7, 64) if options.quick else (28, 448)
    for device in options.devices:
        for name, batch, classes, present, bar in CASES:
            cam, labels = problem(batch, classes, present, source, device)
            settings: dict[str, Any] = {"size": (side, side), "threshold": THRESHOLD}

            def eager(c: Tensor = cam, y: Tensor = labels, s: dict[str, Any] = settings) -> Tensor:
                return label_eager(c, y, **s)

            def lean(c: Tensor = cam, y: Tensor = labels, s: dict[str, Any] = settings) -> Tensor:
                return label_lean(c, y, **s)

            def ours(c: Tensor = cam, y: Tensor = labels, s: dict[str, Any] = settings) -> Tensor:
                return cam_to_label(c, y, dtype=torch.uint8, **s)

            yield compare(
                f"{name}, {source}x{source} to {side}x{side}",
                {"eager chain": eager, "lean eager (in place)": lean, "ours, uint8": ours},
                reference="ours, uint8",
                options=options,
                device=device,
                bars={"eager chain": bar},
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
