"""A threshold sweep for people: the thresholds that are marked, a table, JSON and a picture."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from wsss_blocks.cam import mixture_threshold, otsu_threshold
from wsss_blocks.metrics import EvaluationProtocol, SweepResult, write_metrics
from wsss_blocks.viz import curve_figure

__all__ = ["Choice", "choose", "report", "write"]

ORACLE = """\
The best threshold was chosen on the masks that it is scored on, which makes its mIoU an oracle's.
Choose on training images, and report other images at that threshold."""


class Choice(NamedTuple):
    """A threshold of the sweep and the mIoU there, which is a fraction."""

    threshold: float
    miou: float
    source: str


class _OfClass(NamedTuple):
    """IoU at the best threshold of all, and at the best of this class; NaN if not counted."""

    iou: float
    own_threshold: float
    own_iou: float


def choose(result: SweepResult, scores: Tensor, *, split: str) -> dict[str, Choice]:
    """Pick the best threshold, and those that the scores alone suggest, on the sweep's grid."""
    found = {"best": result.best_threshold}
    for name, method in (("otsu", otsu_threshold), ("mixture", mixture_threshold)):
        try:
            found[name] = method(scores)
        except ImportError as error:
            print(f"wsss: left out: {error}", file=sys.stderr)
    choices = {}
    for name, threshold in found.items():
        at = _nearest(result, threshold)
        source = f"{name} of the scores, without masks"
        if name == "best":
            source = f"the scored masks of {split} (an oracle)"
        choices[name] = Choice(float(result.thresholds[at]), float(result.curve[at]), source)
    return choices


def report(result: SweepResult, choices: Mapping[str, Choice], names: Sequence[str]) -> str:
    """Return tables of the choices and of the classes, in per cent."""
    lines = ["threshold    mIoU  chosen by"]
    lines += [f"{c.threshold:9.2f} {_shown(c.miou)}  {c.source}" for c in choices.values()]
    width = max(map(len, names))
    lines += ["", f"{'class':{width}}     IoU  at its own best threshold"]
    for name, one in zip(names, _classes(result), strict=True):
        own = (
            "" if math.isnan(one.own_iou) else f" {_shown(one.own_iou)}  at {one.own_threshold:.2f}"
        )
        lines.append(f"{name:{width}} {_shown(one.iou)}{own}")
    return "\n".join([*lines, "", ORACLE])


def write(
    output: Path,
    result: SweepResult,
    choices: Mapping[str, Choice],
    names: Sequence[str],
    *,
    protocol: EvaluationProtocol,
    facts: Mapping[str, object],
) -> None:
    """Write ``sweep.json``, as ``write_metrics`` does, and ``sweep.png``."""
    classes = {
        name: {
            "iou": _per_cent(one.iou),
            "own_threshold": None if math.isnan(one.own_iou) else one.own_threshold,
            "iou_at_own_threshold": _per_cent(one.own_iou),
        }
        for name, one in zip(names, _classes(result), strict=True)
    }
    curve = {
        "thresholds": result.thresholds.tolist(),
        "miou": [_per_cent(value) for value in result.curve.tolist()],
        "classes": classes,
    }
    write_metrics(
        output / "sweep.json",
        {f"cam_{name}_miou": choice.miou for name, choice in choices.items()},
        {
            f"cam_{name}_miou": replace(protocol, threshold=c.threshold, threshold_source=c.source)
            for name, c in choices.items()
        },
        extra={"sweep": {**curve, **facts}},
    )
    curve_figure(
        {"class maps": (result.thresholds.tolist(), (100 * result.curve).tolist())},
        path=output / "sweep.png",
        x_label="background threshold",
        y_label="mIoU (%)",
        title=protocol.describe(),
        mark_best=True,
        marks={
            f"{name}: {100 * choice.miou:.2f} at {choice.threshold:g}": choice.threshold
            for name, choice in choices.items()
            if name != "best"
        },
    )


def _nearest(result: SweepResult, threshold: float) -> int:
    return int((result.thresholds - threshold).abs().argmin())


def _classes(result: SweepResult) -> list[_OfClass]:
    own = result.iou.nan_to_num(-1.0).argmax(0)
    return [
        _OfClass(*map(float, values))
        for values in zip(
            result.iou[_nearest(result, result.best_threshold)],
            result.thresholds[own],
            result.iou.gather(0, own[None])[0],
            strict=True,
        )
    ]


def _shown(fraction: float) -> str:
    return "      -" if math.isnan(fraction) else f"{100 * fraction:7.2f}"


def _per_cent(fraction: float) -> float | None:
    return None if math.isnan(fraction) else round(100 * fraction, 4)
