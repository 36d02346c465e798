"""Similarity of image patches to texts, one map per text (DIAL, ECCV 2024, suppl. Figs. 7-10)."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_int,
    check_number,
    check_same_device,
    check_sequence,
    check_shape,
)
from wsss_blocks.viz._checks import check_texts
from wsss_blocks.viz.grid import figure_grid
from wsss_blocks.viz.overlay import overlay_heatmap
from wsss_blocks.viz.palette import heat_colors

__all__ = ["similarity_figure"]


def similarity_figure(
    images: Tensor,
    similarity: Tensor,
    *,
    path: Path | str,
    names: Sequence[str],
    limits: tuple[float, float] | None = None,
    row_labels: Sequence[str] | None = None,
    cell: int = 160,
) -> None:
    r"""Save one row per image: the image, then its map for each text, all on one colour scale.

    .. math:: M_c(i) = s(v_i, t_c)

    upsampled bilinearly. One scale for the whole figure keeps the maps comparable: a background
    text that beats every class shows. Below each map stand its own smallest and largest value.

    Reference:
        "DIAL: Dense Image-text ALignment for Weakly Supervised Semantic Segmentation", supplement
        Figs. 7, 9 and 10, https://arxiv.org/abs/2409.15801

    Args:
        images: ``(B, 3, H, W)`` RGB in [0, 1].
        similarity: ``(B, M, h, w)`` scores of M texts; background texts are texts like others.
        path: PNG file to write.
        names: the M texts.
        limits: values painted with the first and the last colour, default those of the data.
        row_labels: one per image.
        cell: longest side of an image in the figure.

    Raises:
        ImportError: pillow is not installed.
        TypeError: ``images`` or ``similarity`` are not floating point.
        ValueError: a shape is wrong, values are not finite, or ``limits`` do not ascend.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     similarity_figure(
        ...         torch.rand(1, 3, 32, 32),
        ...         torch.rand(1, 2, 4, 4),
        ...         path=f"{folder}/similarity.png",
        ...         names=["cat", "background"],
        ...     )
    """
    check_shape("images", images, "B 3 H W")
    check_floating("images", images)
    check_finite("images", images)
    check_sequence("names", names)
    check_texts("names", names, len(names))
    check_int("cell", cell, least=1)
    check_shape("similarity", similarity, "B M h w", B=len(images), M=len(names))
    check_floating("similarity", similarity)
    check_finite("similarity", similarity)
    check_same_device("similarity", similarity, "images", images)
    scores = similarity.detach().float()
    if limits is None:
        low, high = float(scores.min()), float(scores.max())
        high = high if high > low else low + 1
    else:
        check_sequence("limits", limits)
        if len(limits) != 2:
            raise ValueError(f"limits must be (low, high), got {limits!r}.")
        check_number("limits", limits[0])
        check_number("limits", limits[1])
        low, high = limits
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"limits must ascend, got {limits}.")
    size = (images.shape[2], images.shape[3])
    large = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
    rows, captions = [], []
    for image, maps, raw in zip(images, large, scores, strict=True):
        heats = [overlay_heatmap(image, (m - low) / (high - low), alpha=0.75) for m in maps]
        rows.append([image, *heats])
        captions.append(["", *(f"{float(m.min()):.2f} to {float(m.max()):.2f}" for m in raw)])
    steps = [i / 4 for i in range(5)]
    colors = heat_colors(scores.new_tensor([steps]))[:, 0].T
    figure_grid(
        rows,
        path=path,
        titles=["image", *names],
        row_labels=row_labels,
        captions=captions,
        legend={
            f"{low + s * (high - low):.3f}": (255 * color).int().tolist()
            for s, color in zip(steps, colors, strict=True)
        },
        cell=cell,
    )
