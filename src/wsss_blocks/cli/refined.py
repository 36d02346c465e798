"""Scores behind a dense CRF: of class maps, and of the decoder before and after it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._numerics import first_argmax
from wsss_blocks.cam import normalize_cam
from wsss_blocks.data import WeakDataset
from wsss_blocks.metrics import EvaluationProtocol, SplitScores, evaluate_masks
from wsss_blocks.refine import DenseCRF, NoRefiner, Refiner, add_background
from wsss_blocks.segmenters import Segmenter

__all__ = ["Refine", "Score", "score_behind_crf", "score_refined_logits", "score_refined_maps"]

Refine = Literal["none", "par", "crf"]
Score = tuple[SplitScores, EvaluationProtocol]

_LEAST = 0.05  # probability that a class must have somewhere to take part
_Maps = Callable[[Tensor, Tensor], Mapping[str, Tensor]]


def score_behind_crf(
    class_maps: _Maps,
    logits: Callable[[Tensor], Tensor] | None,
    val: WeakDataset,
    *,
    maps_protocols: Mapping[str, EvaluationProtocol],
    protocol: EvaluationProtocol,
    crf: DenseCRF | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Score]:
    """Score class maps and decoder behind a dense CRF.

    A decoder with several views is also scored with one.

    Args:
        class_maps: images ``(1, 3, H, W)``, labels ``(1, K)`` -> raw maps ``(1, K, h, w)`` by
            name.
        logits: images -> ``(1, K+1, h, w)``, or None.
        val: scored, with masks.
        maps_protocols: of the maps before refinement by name, with their thresholds.
        protocol: of the decoder.
        crf: None takes DeepLab's constants, which ToCo uses at test time.
        device: where the functions want their arguments.

    Returns:
        ``NAME_crf_miou`` for each map, ``seg_crf_miou`` and, for a
        :class:`~wsss_blocks.segmenters.Segmenter` with scales or mirror images, ``seg_raw_miou``.
    """
    crf = crf or DenseCRF.preset("deeplab")
    on = {"device": device}
    behind = score_refined_maps(class_maps, crf, val, protocols=maps_protocols, **on)
    found = {f"{name}_crf_miou": score for name, score in behind.items()}
    if logits is not None:
        found["seg_crf_miou"] = score_refined_logits(logits, crf, val, protocol=protocol, **on)
    if (raw := _single_view(logits)) is not None:
        once = replace(protocol, scales=(1.0,), flip=False)
        scores, _ = score_refined_logits(raw, NoRefiner(), val, protocol=once, **on)
        found["seg_raw_miou"] = scores, once
    return found


def score_refined_maps(
    class_maps: _Maps,
    refiner: Refiner,
    val: WeakDataset,
    *,
    protocols: Mapping[str, EvaluationProtocol],
    device: torch.device | str = "cpu",
) -> dict[str, Score]:
    """Score class maps behind a refiner in which background competes.

    The level of the background is the threshold of the map before refinement: the refiner decides
    at the size of the image, and the strongest of its channels is the prediction.

    Args:
        class_maps: images ``(1, 3, H, W)``, labels ``(1, K)`` -> raw maps ``(1, K, h, w)`` by
            name.
        refiner: takes scores of background and classes, as a dense CRF.
        val: scored, with masks.
        protocols: of the maps before refinement, by name, with their thresholds.
        device: where the functions want their arguments.

    Returns:
        Scores and their protocol by name.
    """

    def predict(name: str, level: float, sample: Mapping[str, Any]) -> Tensor:
        images, labels = (sample[k][None].to(device) for k in ("image", "labels"))
        cam = normalize_cam(class_maps(images, labels)[name])
        refined = refiner(images, add_background(cam, value=level), labels=labels)
        return first_argmax(refined, 1)[0]

    found = {}
    for name, protocol in protocols.items():
        level = protocol.threshold
        assert isinstance(level, float)
        evaluator = evaluate_masks(
            partial(predict, name, level), val, num_classes=len(val.names) + 1
        )
        found[name] = evaluator.compute(), replace(protocol, refiner=str(refiner))
    return found


def score_refined_logits(
    logits: Callable[[Tensor], Tensor],
    refiner: Refiner,
    val: WeakDataset,
    *,
    protocol: EvaluationProtocol,
    device: torch.device | str = "cpu",
) -> Score:
    """Score a decoder's probabilities behind a refiner, without image labels.

    Classes that have a probability of 0.05 nowhere in the image are left out, as if a label said
    that they are absent: they win nowhere, and the rest is several times faster.

    Args:
        logits: images ``(1, 3, H, W)`` -> ``(1, K+1, h, w)``.
        refiner: takes probabilities.
        val: scored, with masks.
        protocol: of the decoder alone.
        device: where the functions want their arguments.

    Returns:
        Scores and their protocol.
    """

    def predict(sample: Mapping[str, Any]) -> Tensor:
        images = sample["image"][None].to(device)
        size = (images.shape[-2], images.shape[-1])
        scores = F.interpolate(logits(images).float(), size, mode="bilinear", align_corners=False)
        probabilities = scores.softmax(1)
        likely = (probabilities[:, 1:].amax((2, 3)) >= _LEAST).to(probabilities.dtype)
        return first_argmax(refiner(images, probabilities, labels=likely), 1)[0]

    classes = ("background", *val.names)
    scores = evaluate_masks(predict, val, num_classes=len(classes), names=classes).compute()
    what = f"{refiner} over classes with a probability of {_LEAST} somewhere"
    return scores, replace(protocol, refiner=what)


def _single_view(logits: object) -> Segmenter | None:
    """Return a segmenter that looks once, at scale 1; None for what looks so already or cannot."""
    if not isinstance(logits, Segmenter):
        return None
    if logits.protocol.scales == (1.0,) and not logits.protocol.flip:
        return None
    protocol = replace(logits.protocol, scales=(1.0,), flip=False)
    return Segmenter(logits.network, names=logits.names, protocol=protocol, size=logits.size)
