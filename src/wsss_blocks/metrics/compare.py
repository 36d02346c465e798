"""Two files of results side by side, if they were measured alike."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from wsss_blocks.metrics.protocol import EvaluationProtocol
from wsss_blocks.metrics.record import RecordedMetrics

__all__ = ["MetricDifference", "compare_metrics"]


class MetricDifference(NamedTuple):
    """A result of two runs, as fractions; NaN where undefined.

    Attributes:
        name: as in :class:`RecordedMetrics`.
        old: None where only the new run has it.
        new: None where only the old run has it.
        interval: of the change, where both runs have bootstrap replicates of the same images.
        level: of the interval, as 0.95.
    """

    name: str
    old: float | None
    new: float | None
    interval: tuple[float, float] | None = None
    level: float | None = None

    @property
    def change(self) -> float | None:
        """New minus old; None where one of them is missing."""
        return None if self.old is None or self.new is None else self.new - self.old


def compare_metrics(old: RecordedMetrics, new: RecordedMetrics) -> list[MetricDifference]:
    """Compare two runs result by result; refuse if what they share was measured differently.

    Where both files carry replicates of a bootstrap over the same images (``run["bootstrap"]``:
    name -> level, low, high and replicates, in per cent; what else stands there, as a seed, must be
    equal), the change gets an interval from the differences of the replicates: two runs that err on
    the same images differ more surely than their own intervals suggest.

    Args:
        old: a run, from :func:`read_metrics`.
        new: another one.

    Returns:
        One entry per result, in the order of the old run; results of only one run are among them.

    Raises:
        ValueError: a field of the protocol of a shared result differs, or no result is shared.
        TypeError: an argument is no :class:`RecordedMetrics`.

    Example:
        >>> protocol = EvaluationProtocol(
        ...     dataset="scenes",
        ...     split="val",
        ...     num_images=2,
        ...     scales=(1.0,),
        ...     flip=False,
        ...     refiner="none",
        ...     labels_used=False,
        ... )
        >>> runs = [RecordedMetrics({"seg": x}, {"seg": protocol}, {}) for x in (0.5, 0.625)]
        >>> [(d.name, d.change) for d in compare_metrics(*runs)]
        [('seg', 0.125)]
    """
    for name, value in (("old", old), ("new", new)):
        if not isinstance(value, RecordedMetrics):
            raise TypeError(f"{name} must be what read_metrics returns, got {type(value)}.")
    if not old.results.keys() & new.results.keys():
        raise ValueError(
            f"old and new must share a result, got {list(old.results)} and {list(new.results)}."
        )
    _check_protocols(old, new)
    found = []
    for name in dict.fromkeys((*old.results, *new.results)):
        level, interval = _paired_interval(name, old.run, new.run)
        found.append(
            MetricDifference(
                name, old.results.get(name), new.results.get(name), interval=interval, level=level
            )
        )
    return found


def _check_protocols(old: RecordedMetrics, new: RecordedMetrics) -> None:
    lines: list[str] = []
    for name in old.protocol:
        if name in new.protocol and old.protocol[name] != new.protocol[name]:
            lines += _differences(name, old.protocol[name], new.protocol[name])
    if lines:
        raise ValueError(
            "old and new must be measured by the same protocol to be compared, got\n"
            + "\n".join(dict.fromkeys(lines))
        )


def _differences(name: str, old: EvaluationProtocol, new: EvaluationProtocol) -> list[str]:
    before, after = old.to_dict(), new.to_dict()
    return [
        f"  {name}: {field} {before[field]!r} (old) and {after[field]!r} (new)"
        for field in before
        if before[field] != after[field]
    ]


def _paired_interval(
    name: str, old: Mapping[str, object], new: Mapping[str, object]
) -> tuple[float | None, tuple[float, float] | None]:
    """Return the level and interval of the change, if the replicates drew the same images."""
    before, after = _bootstrap(name, old), _bootstrap(name, new)
    own = {"low", "high", "replicates"}
    if before is None or after is None or len(before["replicates"]) != len(after["replicates"]):
        return None, None
    if {k: v for k, v in before.items() if k not in own} != {
        k: v for k, v in after.items() if k not in own
    }:
        return None, None
    first, second = (np.array(x["replicates"], dtype=np.float64) for x in (before, after))
    changes = (second - first) / 100
    if np.isnan(changes).all():
        return None, None
    level = float(before["level"])
    low, high = np.nanquantile(changes, [(1 - level) / 2, (1 + level) / 2])
    return level, (float(low), float(high))


def _bootstrap(name: str, run: Mapping[str, object]) -> dict[str, Any] | None:
    """Find the bootstrap of a result; that of an evaluator's scores is one of their mIoU."""
    table = run.get("bootstrap")
    if not isinstance(table, Mapping):
        return None
    found = table.get(name, table.get(name.removesuffix("/miou")))
    if not isinstance(found, dict) or not found.get("replicates") or "level" not in found:
        return None
    return found
