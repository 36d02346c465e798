"""The model card of a shared network: each number with its protocol, nothing that is not known."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from wsss_blocks import __version__
from wsss_blocks.metrics import EvaluationProtocol, RecordedMetrics
from wsss_blocks.segmenters.loda import LoDAModel
from wsss_blocks.segmenters.segmenter import Segmenter

__all__ = ["model_card"]

_LISTED = 25  # more names than that are counted, and the first ones shown
_SEGMENT = """from wsss_blocks.segmenters import load_pretrained
segmenter = load_pretrained({name})
segmenter.segment("photo.jpg").save("mask.png")"""
_SEGMENT_BY_NAME = """from wsss_blocks.segmenters import load_pretrained_loda
from wsss_blocks.segmenters import ZeroShotSegmenter, zero_shot_bank
model = load_pretrained_loda({name})
bank = zero_shot_bank(model, ["dog", "grass"])
segmenter = ZeroShotSegmenter(model, bank, size={size}, sigma=None)
segmenter.segment("photo.jpg").save("mask.png")"""


def model_card(
    model: Segmenter | LoDAModel,
    *,
    name: str,
    license: str | None,
    datasets: Sequence[str],
    tags: Sequence[str],
    record: RecordedMetrics | None,
) -> str:
    """Return the text of a README.md: what the hub reads, then what people read."""
    from huggingface_hub import ModelCard, ModelCardData

    scored = [] if record is None else _scored(record)
    index = _model_index(scored)
    data = ModelCardData(
        license=license,
        library_name="wsss-blocks",
        pipeline_tag="image-segmentation",
        tags=list(tags),
        datasets=list(datasets) or None,
        model_name=name if index else None,
        eval_results=index or None,
    )
    parts = [
        f"# {_plain(name)}",
        *(_about_segmenter(model) if isinstance(model, Segmenter) else _about_loda(model)),
        f"Written by wsss-blocks {__version__}; loading the weights runs no code.",
        "## Use",
        f"```python\n{_usage(model, name)}\n```",
        "## What it learnt from",
        _learnt_from(model, datasets, record),
        "## Evaluation",
        *(["No measured number was given."] if record is None else _evaluation(scored, record)),
        "## Licence",
        f"{'No licence was stated' if license is None else _plain(license)}.",
    ]
    body = "\n\n".join(parts)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def _about_segmenter(model: Segmenter) -> list[str]:
    recipe = _recipe(getattr(model.network, "recipe", {}))
    seen = "as it is" if model.size is None else f"squeezed into {model.size} x {model.size} pixels"
    facts = {
        "Network": f"{recipe}; {_parameters(model)} parameters.",
        "Input": f"an RGB image of any size, shown to the network {seen}.",
        "Output": "the class of each pixel at the size of the image; 0 is background.",
        _counted(model.names): f"{_listed(model.names)}.",
        "Protocol in the file, by which it segments": f"{_plain(model.protocol.describe())}.",
    }
    return ["Image in, mask out: a network for semantic segmentation.", _bullets(facts)]


def _about_loda(model: LoDAModel) -> list[str]:
    seen = "as it is" if model.size is None else f"squeezed into {model.size} x {model.size} pixels"
    facts = {
        "Model": f"{_recipe(model.recipe or {})}; {_parameters(model)} parameters.",
        "Input": f"an RGB image of any size, shown to the model {seen}, and names of classes.",
        "Output": "the name, of those that were given, of each pixel, or background.",
    }
    return ["Images and texts in one space: it segments by class names alone.", _bullets(facts)]


def _usage(model: Segmenter | LoDAModel, name: str) -> str:
    if isinstance(model, Segmenter):
        return _SEGMENT.format(name=json.dumps(name))
    return _SEGMENT_BY_NAME.format(name=json.dumps(name), size=model.size)


def _learnt_from(
    model: Segmenter | LoDAModel, datasets: Sequence[str], record: RecordedMetrics | None
) -> str:
    facts = {"Data, as stated by the author": _plain(", ".join(datasets))} if datasets else {}
    if record is not None and record.run.get("supervision") is not None:
        facts["Supervision, as recorded"] = _plain(record.run["supervision"])
    texts = {model.protocol.text} if isinstance(model, Segmenter) else set()
    texts |= {p.text for p in record.protocol.values()} if record is not None else set()
    if known := sorted(text for text in texts if text is not None):
        facts["Texts, as recorded"] = _plain(", ".join(known))
    return _bullets(facts) if facts else "Not stated."


def _scored(record: RecordedMetrics) -> list[tuple[str, float, EvaluationProtocol]]:
    """Each number but those of single classes and copies, with its protocol."""
    rows = []
    for name, value in record.results.items():
        owners = [p for p in record.protocol if f"{name}/".startswith(f"{p}/")]
        if not owners:
            raise ValueError(f"{name!r} has no protocol: a number is not written without.")
        owner = max(owners, key=len)
        own = record.protocol[owner]
        copied = name.removesuffix("/miou") + "_miou"  # evaluate_system writes both
        if record.results.get(copied) == value and record.protocol.get(copied) == own:
            continue
        if "/" not in name.removeprefix(owner).removeprefix("/"):
            rows.append((name, value, own))
    return rows


def _model_index(scored: Sequence[tuple[str, float, EvaluationProtocol]]) -> list[Any]:
    """What leaderboards read: mIoU without image labels alone, with the protocol beside."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=protocol.dataset,
            dataset_name=protocol.dataset,
            dataset_split=protocol.split,
            metric_type="mean_iou",
            metric_name=f"{name}, per cent",
            metric_value=round(100 * value, 4),
            metric_args={"protocol": protocol.describe()},
        )
        for name, value, protocol in scored
        if name.endswith("miou") and not protocol.labels_used and not math.isnan(value)
    ]


def _evaluation(
    scored: Sequence[tuple[str, float, EvaluationProtocol]], record: RecordedMetrics
) -> list[str]:
    intervals: Any = record.run.get("bootstrap") or {}
    table = ["| result | per cent | protocol |", "| --- | --- | --- |"]
    for name, value, protocol in scored:
        shown = "undefined" if math.isnan(value) else f"{100 * value:.2f}"
        found = intervals.get(name.removesuffix("/miou").removesuffix("_miou"))
        if found and found["low"] is not None and name.endswith("miou"):
            shown += f" ({100 * found['level']:g} % interval {found['low']:g} to {found['high']:g})"
        table.append(f"| {_plain(name)} | {shown} | {_plain(protocol.describe())} |")
    notes = "All that was measured, class by class too, is in `metrics.json` beside this card."
    if any(protocol.labels_used for _, _, protocol in scored):
        notes += (
            " Where image labels were USED, class maps or pseudo-labels were scored with them: "
            "such a number does not say how well this model does without labels."
        )
    return ["\n".join(table), notes, _bullets(_run(record.run))]


def _run(run: Mapping[str, object]) -> dict[str, str]:
    found = run.get("hardware")
    hardware = found if isinstance(found, Mapping) else {}
    facts = {
        "Seed": run.get("seeds", run.get("seed")),
        "Commit": run.get("commit"),
        "wsss-blocks": run.get("wsss_blocks"),
        "Hardware": ", ".join(f"{k} {v}" for k, v in hardware.items() if v is not None) or None,
        "Supervision": run.get("supervision"),
        "Date": run.get("date"),
        "Command": run.get("command"),
    }
    return {k: "not recorded" if v is None else _plain(v) for k, v in facts.items()}


def _recipe(recipe: Mapping[str, object]) -> str:
    """One line; long lists are counted and files named without their folders."""
    facts = [
        f"{key} {f'of {len(value)}' if isinstance(value, list) and len(value) > 5 else value}"
        for key, value in recipe.items()
        if key not in ("kind", "vocabulary") and value not in (None, [], "")
    ]
    return _plain(f"{recipe.get('kind')} ({', '.join(facts)})")


def _parameters(model: Segmenter | LoDAModel) -> str:
    return f"{sum(p.numel() for p in model.parameters()):,}"


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)} class{'' if len(names) == 1 else 'es'} beside background"


def _listed(names: Sequence[str]) -> str:
    if len(names) <= _LISTED:
        return _plain(", ".join(names))
    return _plain(", ".join(names[:10])) + f" and {len(names) - 10} more (`segmenter.names`)"


def _bullets(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- **{key}**: {value}" for key, value in facts.items())


def _plain(value: object) -> str:
    """Text on one line that Markdown and its tables take as it is."""
    text = " ".join(str(value).split())
    for sign in "\\`*|<":
        text = text.replace(sign, f"\\{sign}")
    return text
