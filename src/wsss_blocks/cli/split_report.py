"""What an evaluation leaves for people: a page with its best and worst images, and a list."""

import csv
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from wsss_blocks._files import replaced
from wsss_blocks.cli.page import Picture, write_page
from wsss_blocks.metrics import EvaluationProtocol, SplitScores

__all__ = ["write_split_report"]


def write_split_report(
    output: Path,
    scores: SplitScores,
    protocol: EvaluationProtocol,
    *,
    title: str,
    picture: Callable[[str, str], Picture],
    palette: Tensor,
    run: Mapping[str, object],
    count: int = 6,
) -> None:
    """Write ``report.html``, one page without anything else, and ``images.csv``, worst image first.

    Args:
        output: folder.
        scores: of the split.
        protocol: of the scores.
        title: heading of the page.
        picture: id and caption -> what the page shows; called for the images shown alone.
        palette: ``(n, 3)`` uint8, the colour of each class id.
        run: facts of the run, as :func:`~wsss_blocks.metrics.read_metrics` returns them.
        count: how many of the worst images are shown, and of the best.
    """
    ranked = sorted((i for i in scores.images if not math.isnan(i.miou)), key=lambda i: i.miou)
    chosen = ranked if len(ranked) <= 2 * count else [*ranked[:count], *ranked[-count:]]
    write_page(
        output / "report.html",
        title=title,
        scores=scores.summary(),
        table=scores.per_class(),
        protocol=protocol,
        pictures=[picture(i.id, f"mIoU {100 * i.miou:.2f} of this image") for i in chosen],
        names=scores.regions.names,
        palette=palette,
        run=run,
    )
    rows = [["id", "mIoU in per cent"], *([i.id, f"{100 * i.miou:.2f}"] for i in ranked)]
    with (
        replaced(output / "images.csv") as path,
        path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows(rows)
