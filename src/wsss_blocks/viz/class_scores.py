"""How the images of a data set score for each class name: what a threshold would drop."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from wsss_blocks._files import replaced
from wsss_blocks._optional import require
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_int,
    check_labels,
    check_sequence,
    check_shape,
    check_tensor,
)
from wsss_blocks.viz._checks import check_texts

__all__ = ["class_score_figure"]

_COLUMNS = 4


def class_score_figure(
    scores: Tensor,
    labels: Tensor | None = None,
    *,
    names: Sequence[str],
    path: Path | str,
    thresholds: Tensor | None = None,
    bins: int = 24,
) -> None:
    """Save one histogram per class of its scores over the images, all on one axis.

    With labels, images that show the class and images that do not are drawn apart: a class whose
    two histograms lie on each other cannot be told by its name, and one that lies far left of the
    others (SimSeg's "person") is dropped by any threshold that they share. Half of ``thresholds``
    lie in the grey band, a quarter on either side of it.

    Reference:
        Yi et al., "A Simple Framework for Text-Supervised Semantic Segmentation", CVPR 2023,
        failure cases: "person" at 0.15 beside "horse" at 0.25.

    Args:
        scores: ``(N, C)`` of N images and C names.
        labels: ``(N, C)`` multi-hot, which classes each image shows; None where nobody knows.
        names: the C names.
        path: PNG file to write, under a temporary name first.
        thresholds: ``(N,)`` what a class had to reach in each image.
        bins: of each histogram.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: scores are not floating point, or names no strings.
        ValueError: a shape does not fit, there is no image, or a value is not finite.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     class_score_figure(
        ...         torch.rand(9, 2),
        ...         torch.eye(2).repeat(5, 1)[:9],
        ...         names=["horse", "person"],
        ...         path=f"{folder}/scores.png",
        ...     )
    """
    check_sequence("names", names)
    check_texts("names", names, len(names))
    check_shape("scores", scores, "N C", C=len(names))
    check_floating("scores", scores)
    check_finite("scores", scores)
    check_int("bins", bins, least=1)
    values = scores.detach().cpu().float()
    if labels is not None:
        check_tensor("labels", labels)
        check_labels(labels, batch=len(scores), num_classes=len(names), device=labels.device)
    if thresholds is not None:
        check_shape("thresholds", thresholds, "N", N=len(scores))
        check_floating("thresholds", thresholds)
        check_finite("thresholds", thresholds)
    present = None if labels is None else labels.detach().cpu() > 0
    low, high = float(values.min()), float(values.max())
    high = high if high > low else low + 1e-3
    edges = torch.linspace(low, high, bins + 1).tolist()
    quarters = None
    if thresholds is not None:
        level = thresholds.detach().cpu().float()
        quarters = torch.quantile(level, torch.tensor([0.25, 0.75])).tolist()
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    width, height = 2.6 * columns, 1.5 * rows + 0.5
    # The Figure class alone: pyplot would change the caller's backend and keep every figure.
    figure = require("matplotlib.figure", extra="cli", what="class_score_figure").Figure(
        figsize=(width, height)
    )
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    # Inches, not a constrained layout, which takes a minute for a hundred classes.
    figure.subplots_adjust(
        left=0.8 / width, right=1 - 0.1 / width, bottom=0.6 / height, top=1 - 0.3 / height,
        wspace=0.25, hspace=0.35,
    )  # fmt: skip
    for k, axes in enumerate(grid.flatten()):
        if k >= len(names):
            axes.set_visible(False)
            continue
        axes.set_title(names[k], fontsize=8)
        axes.tick_params(labelsize=7, labelbottom=k + columns >= len(names))
        axes.margins(y=0.3)
        if quarters is not None:
            axes.axvspan(*quarters, color="0.85")
        if present is None:
            counts = values[:, k].histc(bins, min=low, max=high)
            axes.stairs(counts.tolist(), edges, fill=True, color="tab:blue")
            continue
        for shown, color, name in ((False, "tab:gray", "absent"), (True, "tab:blue", "present")):
            chosen = values[present[:, k] == shown, k]
            if len(chosen):
                # Shares, not counts: most classes are absent from nearly all images.
                shares = chosen.histc(bins, min=low, max=high) / len(chosen)
                label = f"{name} ({len(chosen)})"
                axes.stairs(shares.tolist(), edges, fill=True, color=color, alpha=0.6, label=label)
        axes.legend(fontsize=6, frameon=False, loc="upper right")
    figure.supxlabel("score of image and name", fontsize=8)
    figure.supylabel("images" if present is None else "share of images", fontsize=8)
    with replaced(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
