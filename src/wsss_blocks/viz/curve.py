"""Line plots of training and of threshold curves."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from wsss_blocks._files import replaced
from wsss_blocks._optional import require
from wsss_blocks._validate import check_number, check_sequence

__all__ = ["curve_figure"]


def curve_figure(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    path: Path | str,
    x_label: str,
    y_label: str,
    title: str | None = None,
    mark_best: bool = False,
    marks: Mapping[str, float] | None = None,
) -> None:
    """Save a plot with one line per series.

    Args:
        series: x and y values by name; NaN leaves a gap.
        path: PNG file to write, under a temporary name first.
        x_label: text below the horizontal axis, with the unit.
        y_label: text beside the vertical axis, with the unit.
        title: text above the plot, as the line of a protocol.
        mark_best: mark the highest point of each line and write its coordinates.
        marks: x of vertical lines, by the text that the legend gives them.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is no series, x and y differ in length, or a mark is not finite.
        TypeError: x or y is not a sequence of numbers, or a mark no number.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     curve_figure(
        ...         {"CAM": ([0.2, 0.4, 0.6], [30.0, 45.0, 41.0])},
        ...         path=f"{folder}/sweep.png",
        ...         x_label="threshold",
        ...         y_label="mIoU (%)",
        ...         mark_best=True,
        ...     )
    """
    if not series:
        raise ValueError("series must hold at least one line, got none.")
    for name, (x, y) in series.items():
        check_sequence(f"series[{name!r}]", x)
        check_sequence(f"series[{name!r}]", y)
        for value in (*x, *y):
            if not isinstance(value, Tensor):
                check_number(f"series[{name!r}]", value)
        if len(x) != len(y) or not len(x):
            raise ValueError(
                f"series[{name!r}] must hold as many x as y values, got {len(x)} and {len(y)}."
            )
    marks = {} if marks is None else marks
    if not isinstance(marks, Mapping):
        raise TypeError(f"marks must be a mapping from texts to numbers, got {marks!r}.")
    for name, at in marks.items():
        check_number(f"marks[{name!r}]", at)
        if not math.isfinite(at):
            raise ValueError(f"marks[{name!r}] must be finite, got {at}.")
    # The Figure class alone: pyplot would change the caller's backend and keep every figure.
    figure = require("matplotlib.figure", extra="cli", what="curve_figure").Figure(
        figsize=(6.4, 4.0), layout="constrained"
    )
    axes = figure.add_subplot()
    for name, (x, y) in series.items():
        xs, ys = [float(v) for v in x], [float(v) for v in y]
        (line,) = axes.plot(xs, ys, label=name, linewidth=1.8)
        finite = [i for i, v in enumerate(ys) if v == v]
        if mark_best and finite:
            at = max(finite, key=lambda i: ys[i])
            axes.plot(xs[at], ys[at], "o", color=line.get_color())
            axes.annotate(
                f"{ys[at]:.2f} at {xs[at]:g}",
                (xs[at], ys[at]),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
            )
    for i, (name, at) in enumerate(marks.items()):
        style = ("--", ":", "-.")[i % 3]
        axes.axvline(float(at), color="0.35", linestyle=style, linewidth=1.4, label=name)
    axes.margins(y=0.12)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    if title:
        axes.set_title(title, fontsize=10, wrap=True)
    if len(series) > 1 or marks:
        axes.legend(frameon=False)
    with replaced(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
