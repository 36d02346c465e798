"""The figure of a weakly supervised run: image, CAM, pseudo-label, prediction, truth."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._validate import check_int
from wsss_blocks.cam.normalize import normalize_cam
from wsss_blocks.data.names import voc_palette
from wsss_blocks.viz._checks import Images, check_batch, check_examples
from wsss_blocks.viz.grid import figure_grid
from wsss_blocks.viz.overlay import overlay_heatmap, overlay_mask

__all__ = ["segmentation_figure"]


def segmentation_figure(
    images: Images,
    labels: Tensor,
    *,
    path: Path | str,
    names: Sequence[str],
    cam: Images | None = None,
    pseudo_label: Images | None = None,
    prediction: Images | None = None,
    truth: Images | None = None,
    palette: Tensor | None = None,
    ignore_index: int = 255,
    cell: int = 192,
) -> None:
    """Save one row per image: the image, its CAM and its masks, with the classes as text.

    The CAM column shows the maximum over the classes of the image, each normalised to [0, 1].
    Batches may also be lists, for images of different sizes.

    Args:
        images: ``(B, 3, H, W)`` RGB in [0, 1].
        labels: ``(B, K)`` multi-hot.
        path: PNG file to write.
        names: C = K + 1 class names, background first.
        cam: ``(B, K, h, w)`` raw or normalised scores.
        pseudo_label: ``(B, H, W)`` class ids.
        prediction: ``(B, H, W)`` class ids.
        truth: ``(B, H, W)`` class ids.
        palette: ``(n, 3)`` uint8, default ``voc_palette()``.
        ignore_index: id of ignored pixels in the masks.
        cell: longest side of an image in the figure.

    Raises:
        ImportError: pillow is not installed.
        ValueError: a shape or id is wrong, images or ``cam`` are not finite, or ``names`` has
            another length than K + 1.
        TypeError: a dtype is wrong.

    Example:
        >>> import tempfile, torch
        >>> images, labels = torch.rand(2, 3, 32, 32), torch.eye(2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     segmentation_figure(
        ...         images,
        ...         labels,
        ...         path=f"{folder}/figure.png",
        ...         names=["background", "cat", "dog"],
        ...         cam=torch.rand(2, 2, 4, 4),
        ...         truth=torch.randint(0, 3, (2, 32, 32)),
        ...     )
    """
    check_examples(images, labels, names)
    check_int("cell", cell, least=1)
    check_int("ignore_index", ignore_index)
    colors = voc_palette() if palette is None else palette
    masks = {
        title: mask
        for title, mask in (
            ("pseudo-label", pseudo_label),
            ("prediction", prediction),
            ("truth", truth),
        )
        if mask is not None
    }
    check_batch("images", images, "3 H W", images)
    check_batch("cam", cam, "K h w", images, K=len(names) - 1)
    for name, batch in (
        ("pseudo_label", pseudo_label),
        ("prediction", prediction),
        ("truth", truth),
    ):
        check_batch(name, batch, "H W", images)
    rows, shown = [], {0}
    for i, image in enumerate(images):
        row = [image]
        if cam is not None:
            row.append(overlay_heatmap(image, _strongest(cam[i], labels[i], image)))
        for mask in masks.values():
            row.append(overlay_mask(image, mask[i], palette=colors, alpha=0.75))
            shown |= set(mask[i].flatten().tolist())
        rows.append(row)
    named = {k: names[k] if k < len(names) else f"id {k}" for k in shown if k != ignore_index}
    legend = {name: colors[k].tolist() for k, name in sorted(named.items()) if k}
    if ignore_index in shown:
        legend["ignored"] = colors[ignore_index].tolist()
    figure_grid(
        rows,
        path=path,
        titles=["image", *(["CAM"] if cam is not None else []), *masks],
        row_labels=[_present(row, names) for row in labels],
        legend=legend,
        cell=cell,
    )


def _strongest(cam: Tensor, labels: Tensor, image: Tensor) -> Tensor:
    scores = normalize_cam(cam[None].detach().to(image.device))
    scores = (scores * (labels > 0).to(scores)[None, :, None, None]).amax(1, keepdim=True)
    size = (image.shape[1], image.shape[2])
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)[0, 0]


def _present(labels: Tensor, names: Sequence[str]) -> str:
    ids = torch.nonzero(labels > 0).flatten().tolist()
    return ", ".join(names[k + 1] for k in ids) or "(none)"
