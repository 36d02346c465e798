"""Files of results: each number in per cent, with its protocol, the run and the hardware."""

import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from wsss_blocks import __version__
from wsss_blocks._files import replaced
from wsss_blocks.metrics.bootstrap import Interval
from wsss_blocks.metrics.evaluator import SegmentationScores
from wsss_blocks.metrics.protocol import EvaluationProtocol
from wsss_blocks.metrics.split import SplitScores

__all__ = ["RecordedMetrics", "hardware", "read_metrics", "write_metrics"]


class RecordedMetrics(NamedTuple):
    """A results file, read back.

    Attributes:
        results: fractions by name; the scores of an evaluator are ``name/miou``, ``name/mfpr``,
            ``name/mfnr``, ``name/pixel_accuracy`` and ``name/iou/class``; those of a split also
            ``name/boundary_iou`` and, by class, ``precision``, ``recall`` and ``boundary``. NaN
            where undefined.
        protocol: the protocol of each result that was written.
        run: seed, command, date, version, hardware, the ``bootstrap`` of each split's scores, and
            what the writer added.
    """

    results: dict[str, float]
    protocol: dict[str, EvaluationProtocol]
    run: dict[str, object]


def hardware() -> dict[str, object]:
    """Name what this process computes on: CPU, GPU, threads and versions.

    Returns:
        Plain values, to be written beside each number.

    Example:
        >>> sorted(hardware())
        ['cores', 'cpu', 'gpu', 'platform', 'python', 'threads', 'torch']
    """
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.system(),
    }


def write_metrics(
    path: Path | str,
    results: Mapping[str, float | SegmentationScores | SplitScores],
    protocol: EvaluationProtocol | Mapping[str, EvaluationProtocol],
    *,
    seed: int | None = None,
    command: str | None = None,
    extra: Mapping[str, object] | None = None,
) -> None:
    """Write results with the protocol that each of them needs to mean anything.

    Args:
        path: JSON file; written under a temporary name and renamed.
        results: fractions, or the scores of an evaluator; written in per cent.
        protocol: one for all results, or one per name in ``results``.
        seed: seed of the run.
        command: default the command line of this process.
        extra: anything JSON can hold that is no fraction, as times and counts.

    Raises:
        TypeError: ``protocol`` or a result has another type.
        ValueError: a result is not in [0, 1], has no protocol, or a protocol no result.

    Example:
        >>> import tempfile
        >>> protocol = EvaluationProtocol(
        ...     dataset="scenes",
        ...     split="val",
        ...     num_images=2,
        ...     scales=(1.0,),
        ...     flip=False,
        ...     refiner="none",
        ...     labels_used=False,
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_metrics(f"{folder}/metrics.json", {"segmentation": 0.625}, protocol)
        ...     read_metrics(f"{folder}/metrics.json").results
        {'segmentation': 0.625}
    """
    if not isinstance(results, Mapping):
        raise TypeError(f"results must be a mapping from names to numbers, got {results!r}.")
    protocols = _one_each(results, protocol)
    content: dict[str, Any] = {
        "unit": "per cent",
        "results": {name: _in_per_cent(name, value) for name, value in results.items()},
        "protocol": {name: {"line": p.describe(), **p.to_dict()} for name, p in protocols.items()},
        "run": {
            "seed": seed,
            "command": shlex.join(sys.argv) if command is None else command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "wsss_blocks": __version__,
            "commit": _commit(),
            "hardware": hardware(),
            **(extra or {}),
        },
    }
    bootstrap = {
        name: _interval(value.interval)
        for name, value in results.items()
        if isinstance(value, SplitScores) and value.interval is not None
    }
    if bootstrap:
        content["run"] = {**content["run"], "bootstrap": bootstrap}
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with replaced(path) as temporary:
        temporary.write_text(text)


def read_metrics(path: Path | str) -> RecordedMetrics:
    """Read a file of ``write_metrics`` back, as fractions.

    Args:
        path: JSON file.

    Returns:
        Results, protocols and the facts of the run.

    Raises:
        ValueError: the file is not one of ``write_metrics``.
    """
    try:
        content = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} must be a JSON file of write_metrics, got: {error}") from error
    if not isinstance(content, dict) or content.get("unit") != "per cent":
        raise ValueError(f"{path} must be a file written by write_metrics, got another one.")
    protocols = {
        name: EvaluationProtocol.from_dict({k: v for k, v in p.items() if k != "line"})
        for name, p in content["protocol"].items()
    }
    return RecordedMetrics(_flat(content["results"]), protocols, content["run"])


def _one_each(
    results: Mapping[str, object],
    protocol: EvaluationProtocol | Mapping[str, EvaluationProtocol],
) -> dict[str, EvaluationProtocol]:
    if isinstance(protocol, EvaluationProtocol):
        return dict.fromkeys(results, protocol)
    if not isinstance(protocol, Mapping) or not all(
        isinstance(p, EvaluationProtocol) for p in protocol.values()
    ):
        raise TypeError(
            "protocol must be an EvaluationProtocol or a mapping of them, "
            f"got {type(protocol).__name__}: a number without its protocol is not written."
        )
    if set(results) != set(protocol):
        raise ValueError(
            f"protocol must name the results {sorted(results)}, got {sorted(protocol)}."
        )
    return dict(protocol)


def _interval(interval: Interval) -> dict[str, object]:
    return {
        "level": interval.level,
        "low": _rounded(interval.low),
        "high": _rounded(interval.high),
        "replicates": [_rounded(value) for value in interval.replicates.tolist()],
    }


def _in_per_cent(name: str, value: float | SegmentationScores | SplitScores) -> object:
    if isinstance(value, SplitScores):
        scores = {k: _rounded(v) for k, v in value.summary().items()}
        rows = value.per_class()
        heads = {head: head.removesuffix("_iou") for head in rows[0] if head != "class"}
        return scores | {
            short: {str(row["class"]): _rounded(float(row[head])) for row in rows}
            for head, short in heads.items()
        }
    if isinstance(value, SegmentationScores):
        summary = {k: _rounded(v) for k, v in value.summary().items()}
        return {**summary, "iou": {k: _rounded(v) for k, v in value.per_class().items()}}
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"results[{name!r}] must be a number or scores, got {type(value)}.")
    if not math.isnan(value) and not 0 <= value <= 1:
        raise ValueError(f"results[{name!r}] must be a fraction in [0, 1], got {value}.")
    return _rounded(value)


def _rounded(fraction: float) -> float | None:
    return None if math.isnan(fraction) else round(100 * fraction, 4)


def _flat(results: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = math.nan if value is None else float(str(value)) / 100
    return flat


def _commit() -> str | None:
    """Name the commit of the clone that this library is imported from, None without one."""
    clone = Path(__file__).resolve().parents[3]
    if not (clone / ".git").exists():
        return None
    command = ["git", "-C", str(clone), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
