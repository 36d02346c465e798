"""Score what a system makes of its training images: the masks that it learns from."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from wsss_blocks.data import WeakDataset
from wsss_blocks.distributed import sum_over_ranks
from wsss_blocks.metrics import EvaluationProtocol, SplitEvaluator, evaluate_masks

__all__ = ["score_train_masks"]


def score_train_masks(
    masks: Mapping[str, Callable[[Mapping[str, Any]], Tensor]],
    train: WeakDataset,
    *,
    protocol: EvaluationProtocol,
) -> tuple[dict[str, float], dict[str, EvaluationProtocol]]:
    """Compare several kinds of masks of training images with their ground truth.

    Pixels that a mask leaves undecided (255) are left out of its score.

    Args:
        masks: name -> ``sample -> (H, W)`` ids at the size of the sample's mask.
        train: training images with labels and masks.
        protocol: how the masks are made; split, number of images and what undecided pixels mean
            are put in.

    Returns:
        Results, and their protocols. For each name the mIoU ``NAME_miou``, the share of labelled
        pixels that it decides ``NAME_decided``, and the mIoU over the images of at least two
        classes ``NAME_multi_miou`` (left out where no pixel of such an image is decided).

    Example:
        >>> from wsss_blocks.data import Scenes
        >>> train = Scenes(size=5, with_masks=True)
        >>> line = {"scales": (1.0,), "flip": False, "refiner": "none", "labels_used": True}
        >>> protocol = EvaluationProtocol(dataset="scenes", split="val", num_images=200, **line)
        >>> results, _ = score_train_masks({"true": lambda s: s["mask"]}, train, protocol=protocol)
        >>> results
        {'true_miou': 1.0, 'true_decided': 1.0, 'true_multi_miou': 1.0}
    """
    whole = replace(
        protocol,
        threshold=None,
        threshold_source=None,
        split=f"train (first {len(train)}), decided pixels",
        num_images=len(train),
        labels_used=True,
        undecided="ignored",
    )
    results: dict[str, float] = {}
    protocols: dict[str, EvaluationProtocol] = {}
    for name, predict in masks.items():
        scores, images = _scores(predict, train)
        of_several = f"{whole.split}, images of at least two classes"
        several = replace(whole, split=of_several, num_images=images)
        for what, value in scores.items():
            results[f"{name}_{what}"] = value
            protocols[f"{name}_{what}"] = several if what == "multi_miou" else whole
    return results, protocols


def _scores(
    predict: Callable[[Mapping[str, Any]], Tensor], train: WeakDataset
) -> tuple[dict[str, float], int]:
    """Return the scores, and the number of images of at least two classes."""
    classes, labelled = len(train.names) + 1, torch.zeros((), dtype=torch.int64)
    several = SplitEvaluator(classes, undecided="ignored")

    def counted(sample: Mapping[str, Any]) -> Tensor:
        truth = sample["mask"]
        found = predict(sample).to(truth.device)
        labelled.add_((truth != 255).sum().to(labelled.device))
        if int((sample["labels"] > 0).sum()) > 1:
            several.update(sample["id"], found, truth)
        return found

    evaluator = evaluate_masks(counted, train, num_classes=classes)
    decided, every = int(evaluator.regions.counts.sum()), int(sum_over_ranks(labelled))
    scores = {"miou": evaluator.compute().miou, "decided": decided / max(1, every)}
    merged = several.all_reduce()
    if int(merged.regions.counts.sum()):
        scores["multi_miou"] = merged.compute().miou
    return scores, len(merged.images)
