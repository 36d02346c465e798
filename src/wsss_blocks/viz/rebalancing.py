"""What class rebalancing does to a mask: weights, heat-maps and result (DHR, ECCV 2024, suppl.)."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._validate import check_int, check_sequence
from wsss_blocks.data.names import voc_palette
from wsss_blocks.viz._checks import (
    Images,
    check_batch,
    check_examples,
    check_unit_range,
    class_colors,
)
from wsss_blocks.viz.grid import figure_grid
from wsss_blocks.viz.overlay import overlay_heatmap, overlay_mask
from wsss_blocks.viz.palette import heat_colors

__all__ = ["rebalancing_figure"]

_HEAT = 0.85  # so much that colours can be read off the scale


def rebalancing_figure(
    images: Images,
    labels: Tensor,
    *,
    path: Path | str,
    names: Sequence[str],
    initial: Images,
    weights: Images,
    before: Images,
    after: Images,
    result: Images,
    truth: Images | None = None,
    palette: Tensor | None = None,
    ignore_index: int = 255,
    cell: int = 128,
) -> None:
    r"""Save one row per image and class: from the mask to patch weights, heat-maps, new mask.

    The columns are the image; the initial mask; :math:`W_c(p)`, the weight of the class in each
    patch; :math:`H_c(p)` of the features alone; :math:`H_c(p)` rebalanced; the resulting mask; and
    the truth. Image and masks stand in the first row of an image only. Weights are drawn patch by
    patch, heat-maps upsampled bilinearly, all on one colour scale from 0 to 1.

    A class of the image has a row if its weights are not all zero, and so does background. An image
    without any has one row without maps. Batches may also be lists, for images of different sizes.

    Reference:
        Jo et al., "DHR: Dual Features-Driven Hierarchical Rebalancing in Inter- and Intra-Class
        Regions for Weakly-Supervised Semantic Segmentation", ECCV 2024, supplement, Figs. A (class-
        level average pooling) and B (heat-maps), https://arxiv.org/abs/2404.00380

    Args:
        images: ``(B, 3, H, W)`` RGB in [0, 1].
        labels: ``(B, K)`` multi-hot.
        path: PNG file to write.
        names: C = K + 1 class names, background first.
        initial: ``(B, H, W)`` class ids, the masks that the features are pooled with.
        weights: ``(B, C, h, w)`` in [0, 1], as from
            :func:`~wsss_blocks.pooling.patch_class_weights`.
        before: ``(B, C, h, w)`` in [0, 1], as from :func:`~wsss_blocks.refine.class_heatmaps`.
        after: ``(B, C, h, w)`` in [0, 1], as ``heatmaps`` of
            :class:`~wsss_blocks.refine.RebalancedMask`.
        result: ``(B, H, W)`` class ids.
        truth: ``(B, H, W)`` class ids.
        palette: ``(n, 3)`` integers in 0..255 with n >= C, default ``voc_palette()``.
        ignore_index: id of ignored pixels in the masks, drawn in its own colour of the palette or,
            if it has none, in that of VOC.
        cell: longest side of an image in the figure.

    Raises:
        ImportError: pillow is not installed.
        ValueError: a shape, device or id is wrong, images or scores are not finite, scores are not
            in [0, 1], or ``palette`` lacks a colour.
        TypeError: a dtype is wrong, or an argument is no batch.

    Example:
        >>> import tempfile, torch
        >>> from wsss_blocks.pooling import patch_class_weights
        >>> mask = torch.zeros(1, 32, 32, dtype=torch.int64)
        >>> mask[:, 8:24, 8:24] = 2
        >>> weights = patch_class_weights(mask, size=(4, 4), num_classes=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rebalancing_figure(
        ...         torch.rand(1, 3, 32, 32),
        ...         torch.tensor([[0.0, 1.0]]),
        ...         path=f"{folder}/rebalancing.png",
        ...         names=["background", "cat", "dog"],
        ...         initial=mask,
        ...         weights=weights,
        ...         before=torch.rand(1, 3, 8, 8),
        ...         after=torch.rand(1, 3, 8, 8),
        ...         result=mask,
        ...     )
    """
    check_examples(images, labels, names)
    if len(images) == 0:
        raise ValueError("images must hold at least one image, got none.")
    check_int("cell", cell, least=1)
    check_int("ignore_index", ignore_index)
    classes = len(names)
    check_batch("images", images, "3 H W", images)
    scores = {"weights": weights, "before": before, "after": after}
    for name, batch in scores.items():
        check_sequence(name, batch)
        check_batch(name, batch, "C h w", images, C=classes)
        check_unit_range(name, batch)
    masks = {"initial": initial, "result": result}
    if truth is not None:
        masks["truth"] = truth
    for name, batch in masks.items():
        check_sequence(name, batch)
        check_batch(name, batch, "H W", images, num_classes=classes, ignore_index=ignore_index)
    colors = _colors(palette, classes, ignore_index)

    rows: list[list[Tensor | None]] = []
    row_labels: list[str] = []
    shown: set[int] = set()
    for i, image in enumerate(images):
        tinted = []
        for batch in masks.values():
            mask = batch[i].long().masked_fill(batch[i] == ignore_index, classes)
            tinted.append(overlay_mask(image, mask, palette=colors, alpha=0.75))
            shown |= set(mask.flatten().tolist())
        if rows:  # a low empty row sets images apart
            rows.append([])
            row_labels.append("")
        taking_part = _taking_part(weights[i], labels[i])
        row_labels += [names[k] for k in taking_part] or ["(none)"]
        maps: list[list[Tensor | None]] = [
            [
                _heat(image, weights[i][k], "nearest-exact"),
                _heat(image, before[i][k], "bilinear"),
                _heat(image, after[i][k], "bilinear"),
            ]
            for k in taking_part
        ] or [[None] * 3]
        rows.append([image, tinted[0], *maps[0], *tinted[1:]])
        rows += [[None, None, *heats] for heats in maps[1:]]
    steps = [j / 4 for j in range(5)]
    scale = (255 * heat_colors(torch.tensor([steps]))[:, 0].T).int().tolist()
    legend = {f"score {step:.2f}": color for step, color in zip(steps, scale, strict=True)}
    tints = [*names, "ignored"]
    legend |= {tints[k]: colors[k].tolist() for k in sorted(shown) if k}
    figure_grid(
        rows,
        path=path,
        titles=[
            *("image", "initial mask", "patch weights (A)", "features alone (B)", "rebalanced (B)"),
            *("result", "truth")[: len(masks) - 1],
        ],
        row_labels=row_labels,
        legend=legend,
        cell=cell,
    )


def _colors(palette: Tensor | None, classes: int, ignore_index: int) -> Tensor:
    """Take the colours of the classes and, after them, that of ignored pixels."""
    colors = class_colors(palette, classes)
    ignored = colors[ignore_index] if 0 <= ignore_index < len(colors) else voc_palette()[-1].long()
    return torch.cat([colors[:classes], ignored[None]])


def _taking_part(weights: Tensor, labels: Tensor) -> list[int]:
    weighty = (weights > 0).flatten(1).any(1).tolist()
    allowed = [True, *(labels > 0).tolist()]
    return [k for k, both in enumerate(zip(weighty, allowed, strict=True)) if all(both)]


def _heat(image: Tensor, scores: Tensor, mode: str) -> Tensor:
    size = (image.shape[1], image.shape[2])
    grid = scores.detach().to(image.device).float()[None, None]
    return overlay_heatmap(image, F.interpolate(grid, size=size, mode=mode)[0, 0], alpha=_HEAT)
