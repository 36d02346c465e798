"""Segmentation scores of one batch against numpy, torch and torchmetrics.

Run ``python -m benchmarks.bench_evaluator [--quick] [--output DIR]``.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks._harness import Candidate, Options, compare, run
from benchmarks.baselines import evaluator as baseline
from wsss_blocks.cam import cam_to_label
from wsss_blocks.metrics import SegmentationEvaluator, ThresholdSweep

TORCHMETRICS, NUMPY = "torchmetrics", "numpy bincount per image"


def cases(options: Options) -> Iterator[dict[str, Any]]:
    batch, side = (2, 64) if options.quick else (16, 448)
    for device in options.devices:
        for classes in (21, 81):
            yield confusion(options, device, batch, side, classes)
        yield confusion(options, device, batch, side, 21, cell=side // 8)
    # All thresholds in one pass against one evaluation per threshold: per image, as in evaluation.
    for device in options.devices:
        yield sweep(options, device, 64 if options.quick else 375)


def confusion(
    options: Options, device: str, batch: int, side: int, classes: int, *, cell: int = 1
) -> dict[str, Any]:
    """Compare on blocks with ignored pixels all over, or on masks of square regions."""
    pred, target = (
        m[:, ::cell, ::cell].repeat_interleave(cell, 1).repeat_interleave(cell, 2).contiguous()
        for m in masks(batch, side, classes, device)
    )
    wide = pred.long(), target.long()

    def ours(p: Tensor, t: Tensor) -> Tensor:
        evaluator = SegmentationEvaluator(classes)
        evaluator.update(p, t)
        return evaluator.counts

    return compare(
        f"confusion matrix, B{batch} {side}x{side}, {classes} classes"
        + ("" if cell == 1 else f", regions of {cell}x{cell}"),
        {
            TORCHMETRICS: torchmetrics_confusion(classes, *wide),
            NUMPY: partial(baseline.published, pred, target, num_classes=classes),
            "torch bincount": partial(baseline.best, pred, target, num_classes=classes),
            "ours, int64": lambda: ours(*wide),
            "ours, uint8": lambda: ours(pred, target),
        },
        reference="ours, uint8",
        options=options,
        device=device,
        bars={TORCHMETRICS: 4.0, NUMPY: 1.8},
        tolerance=0,
    )


def sweep(options: Options, device: str, side: int) -> dict[str, Any]:
    classes = 21
    _, target = masks(1, side, classes, device)
    g = torch.Generator().manual_seed(1)
    cam = torch.randn(1, classes - 1, 28, 28, generator=g).to(device)
    labels = torch.zeros(1, classes - 1, device=device)
    labels[0, [2, 7]] = 1
    ours = ThresholdSweep(classes, thresholds=[t / 25 for t in range(25)])

    def one_pass() -> Tensor:
        ours.reset()
        ours.update(cam, labels, target)
        return ours.compute().curve

    def one_by_one() -> Tensor:
        curve = []
        for threshold in ours.thresholds.tolist():
            evaluator = SegmentationEvaluator(classes)
            label = cam_to_label(
                cam, labels, size=(side, side), threshold=threshold, dtype=torch.uint8
            )
            evaluator.update(label, target)
            curve.append(evaluator.compute().miou)
        return torch.tensor(curve, dtype=torch.float64)

    return compare(
        f"25 thresholds of one CAM, {side}x{side}, 20 classes, 2 present",
        {"cam_to_label and evaluator, 25 times": one_by_one, "ours": one_pass},
        reference="ours",
        options=options,
        device=device,
        tolerance=1e-4,
    )


def masks(batch: int, side: int, classes: int, device: str) -> tuple[Tensor, Tensor]:
    """Blocks of one class, as masks have, with ignored pixels in the target."""
    g = torch.Generator().manual_seed(0)

    def blocks(step: int) -> Tensor:
        n = -(-side // step)
        ids = torch.randint(0, classes, (batch, n, n), generator=g, dtype=torch.uint8)
        large = ids.repeat_interleave(step, 1).repeat_interleave(step, 2)
        return large[:, :side, :side].contiguous()

    pred, target = blocks(16), blocks(32)
    target[torch.rand(target.shape, generator=g) < 0.05] = 255
    return pred.to(device), target.to(device)


def torchmetrics_confusion(classes: int, pred: Tensor, target: Tensor) -> Candidate | None:
    try:
        from torchmetrics.classification import MulticlassJaccardIndex
    except ImportError:
        return None

    def update() -> Tensor:
        metric = MulticlassJaccardIndex(
            classes, ignore_index=255, average="none", validate_args=False
        ).to(pred.device)
        metric.update(pred, target)
        return metric.confmat

    return update


if __name__ == "__main__":
    run("bench_evaluator", cases)
