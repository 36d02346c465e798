"""``wsss compare``: two runs side by side, if they were measured alike."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from wsss_blocks.metrics import MetricDifference

__all__ = ["compare"]


def compare(
    old: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OLD")]],
    new: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="NEW")]],
) -> int:
    """Compare the results of two runs, unless their protocols differ.

    Prints each result of two metrics.json files (or sweep.json files) in per cent, with the change;
    where both runs have a bootstrap over the same images, with an interval of the change. Runs that
    were measured by different protocols (other images, scales, CRF, threshold, ...) are refused,
    and the fields that differ are listed: their numbers cannot be compared.

        wsss compare runs/baseline/metrics.json runs/mine/metrics.json

    Exit code 0: compared; 2: refused.

    Args:
        old: the metrics.json to compare with.
        new: the metrics.json of the other run.
    """
    from wsss_blocks.metrics import compare_metrics, read_metrics

    runs = read_metrics(old), read_metrics(new)
    found = compare_metrics(*runs)
    for name, protocol in runs[0].protocol.items():
        if name in runs[1].protocol:
            print(f"{name}: {protocol.describe()}")
    print(f"\nold: {old}\nnew: {new}\n\n{_table([d for d in found if d.change is not None])}")
    for which, path in (("old", old), ("new", new)):
        only = [d.name for d in found if d.change is None and getattr(d, which) is not None]
        if only:
            print(f"\nonly in {path}: {', '.join(only)}")
    return 0


def _table(differences: "list[MetricDifference]") -> str:
    rows = [["per cent", "old", "new", "change", "interval of the change"]]
    for d in differences:
        interval = ""
        if d.interval is not None and d.level is not None:
            low, high = (_shown(x, "+") for x in d.interval)
            interval = f"{low} to {high} ({100 * d.level:g}%)"
        rows.append([d.name, _shown(d.old), _shown(d.new), _shown(d.change, "+"), interval])
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [f"{cell:>{w}}" for cell, w in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:{widths[0]}}", *cells]).rstrip())
    return "\n".join(lines)


def _shown(fraction: float | None, sign: str = "") -> str:
    if fraction is None or fraction != fraction:
        return "-"
    return f"{100 * fraction:{sign}.2f}"
