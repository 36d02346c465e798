"""Whole-split evaluation: maps or masks of each sample, scored at the size of its ground truth."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from wsss_blocks._validate import check_int, check_integer, check_shape
from wsss_blocks.distributed import rank, world_size
from wsss_blocks.metrics.protocol import EvaluationProtocol
from wsss_blocks.metrics.split import SplitEvaluator
from wsss_blocks.metrics.sweep import ThresholdSweep

__all__ = ["ScoredMaps", "evaluate_masks", "score_maps", "sweep_maps"]

_Sample = Mapping[str, Any]


class _Samples(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


def sweep_maps(
    maps_fn: Callable[[Tensor, Tensor], Mapping[str, Tensor]],
    samples: _Samples,
    *,
    num_classes: int,
    device: torch.device | str = "cpu",
) -> dict[str, ThresholdSweep]:
    """Score one or several kinds of class maps on every threshold, sharing the forward passes.

    Each process of a process group takes every ``world_size``-th sample, and the counts are summed.

    Args:
        maps_fn: ``(images (1, 3, H, W), labels (1, K)) -> {name: cam (1, K, h, w)}``.
        samples: data set (or list) of dicts with ``image`` (3, H, W), ``labels`` (K,) and ``mask``
            (H', W').
        num_classes: C = K + 1, counting background.
        device: where ``maps_fn`` wants its arguments.

    Returns:
        A :class:`ThresholdSweep` for each name.

    Raises:
        ValueError: there are fewer samples than processes, or one lacks its mask or has another
            shape.
        TypeError: a mask does not hold integers.

    Example:
        >>> sample = {"image": torch.eye(4).expand(3, 4, 4), "labels": torch.ones(1)}
        >>> sample["mask"] = (sample["image"][0] > 0.5).long()
        >>> sweeps = sweep_maps(lambda x, y: {"red": x[:, :1]}, [sample], num_classes=2)
        >>> round(sweeps["red"].compute().best, 3)
        1.0
    """
    check_int("num_classes", num_classes, least=2)
    sweeps: dict[str, ThresholdSweep] = {}
    with torch.no_grad():
        for sample in _share(samples):
            check_shape("image", sample["image"], "3 H W")
            check_shape("labels", sample["labels"], "K", K=num_classes - 1)
            image = sample["image"][None].to(device)
            labels, mask = sample["labels"][None].to(device), _mask(sample)[None].to(device)
            for name, maps in maps_fn(image, labels).items():
                sweep = sweeps.setdefault(name, ThresholdSweep(num_classes))
                sweep.update(maps, labels, mask)
    return {name: sweep.all_reduce() for name, sweep in sweeps.items()}


class ScoredMaps(NamedTuple):
    """mIoU of class maps and how it was measured.

    Attributes:
        miou: fraction by name.
        protocol: by name, with the threshold and where it comes from.
        curves: (thresholds, mIoU on the scored samples) by name.
    """

    miou: dict[str, float]
    protocol: dict[str, EvaluationProtocol]
    curves: dict[str, tuple[list[float], list[float]]]


def score_maps(
    maps_fn: Callable[[Tensor, Tensor], Mapping[str, Tensor]],
    samples: _Samples,
    *,
    protocol: EvaluationProtocol,
    num_classes: int,
    chosen_on: _Samples | None = None,
    device: torch.device | str = "cpu",
) -> ScoredMaps:
    """Score class maps at thresholds that the scored samples did not choose.

    Choosing a background threshold reads masks. It is done on ``chosen_on``, which should be
    training images; without them the threshold of ``protocol`` is used. The protocols returned
    say which.

    Args:
        maps_fn: as for :func:`sweep_maps`; it sees the image labels.
        samples: scored; dicts with ``image``, ``labels`` and ``mask``.
        protocol: what is common to all names; its ``threshold`` is the one used when
            ``chosen_on`` is None.
        num_classes: C = K + 1, counting background.
        chosen_on: samples whose masks choose a threshold for each name.
        device: where ``maps_fn`` wants its arguments.

    Returns:
        Results by name.

    Raises:
        ValueError: there are fewer samples than processes, one lacks its mask or has another
            shape, or no threshold is to be had.
        TypeError: a mask does not hold integers.

    Example:
        >>> image = torch.linspace(0, 1, 16).view(1, 4, 4).expand(3, 4, 4)
        >>> sample = {"image": image, "labels": torch.ones(1), "mask": (image[0] > 0.5).long()}
        >>> protocol = EvaluationProtocol(
        ...     dataset="ramp",
        ...     split="val",
        ...     num_images=1,
        ...     scales=(1,),
        ...     flip=False,
        ...     refiner="none",
        ...     labels_used=True,
        ... )
        >>> scored = score_maps(
        ...     lambda x, y: {"red": x[:, :1]},
        ...     [sample],
        ...     protocol=protocol,
        ...     num_classes=2,
        ...     chosen_on=[sample],
        ... )
        >>> scored.miou["red"], scored.protocol["red"].threshold
        (1.0, 0.47)
    """
    scored = sweep_maps(maps_fn, samples, num_classes=num_classes, device=device)
    if chosen_on is not None:
        chosen = sweep_maps(maps_fn, chosen_on, num_classes=num_classes, device=device)
        source = f"masks of {len(chosen_on)} training images"
        thresholds = {name: sweep.compute().best_threshold for name, sweep in chosen.items()}
    elif isinstance(protocol.threshold, float):
        source = str(protocol.threshold_source)
        thresholds = dict.fromkeys(scored, protocol.threshold)
    else:
        raise ValueError("protocol must have a threshold where chosen_on is None.")
    results = ScoredMaps({}, {}, {})
    for name, sweep in scored.items():
        result, threshold = sweep.compute(), thresholds[name]
        nearest = int((result.thresholds - threshold).abs().argmin())
        results.miou[name] = float(result.curve[nearest])
        results.curves[name] = (result.thresholds.tolist(), result.curve.tolist())
        results.protocol[name] = replace(
            protocol, threshold=float(result.thresholds[nearest]), threshold_source=source
        )
    return results


def evaluate_masks(
    predict_fn: Callable[[_Sample], Tensor],
    samples: _Samples,
    *,
    num_classes: int,
    names: tuple[str, ...] | None = None,
) -> SplitEvaluator:
    """Score predicted masks; the function sees the whole sample: the protocol says what it uses.

    Predicted pixels with the ignore value are left out of the score: the pseudo-labels that
    a decoder is taught can be judged on what they decide. Each process of a process group takes
    every ``world_size``-th sample, and the counts are summed.

    Args:
        predict_fn: ``sample -> (H', W')`` ids at the size of ``sample["mask"]``.
        samples: data set (or list) of dicts with ``mask``, ``id`` and what ``predict_fn`` wants.
        num_classes: C = K + 1, counting background.
        names: of the classes with background, for tables.

    Returns:
        The evaluator, counted over all processes.

    Raises:
        ValueError: there are fewer samples than processes, or one lacks its mask or has another
            shape.
        TypeError: a mask does not hold integers.

    Example:
        >>> sample = {"image": torch.rand(3, 4, 4), "mask": torch.eye(4).long()}
        >>> evaluate_masks(lambda s: s["mask"], [sample], num_classes=2).compute().miou
        1.0
    """
    evaluator = SplitEvaluator(num_classes, names=names, undecided="ignored")
    with torch.no_grad():
        for position, sample in enumerate(_share(samples)):
            target, predicted = _mask(sample), predict_fn(sample)
            size = dict(zip("HW", target.shape, strict=True))
            check_shape("the result of predict_fn (pred)", predicted, "H W", **size)
            check_integer("the result of predict_fn (pred)", predicted)
            name = str(sample.get("id", rank() + position * world_size()))
            evaluator.update(name, predicted.to(target.device), target)
    return evaluator.all_reduce()


def _mask(sample: _Sample) -> Tensor:
    if "mask" not in sample:
        raise ValueError(
            f"samples must have a mask, got {sorted(sample)}: open the data set with masks."
        )
    mask: Tensor = sample["mask"]
    check_shape("mask", mask, "H W")
    check_integer("mask", mask)
    return mask


def _share(samples: _Samples) -> Iterator[_Sample]:
    if len(samples) < world_size():
        raise ValueError(
            f"samples must hold at least one for each of {world_size()} processes, "
            f"got {len(samples)}."
        )
    return (samples[i] for i in range(rank(), len(samples), world_size()))
