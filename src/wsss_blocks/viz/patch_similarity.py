"""What one patch, or one word, looks like to all patches of an image (SimSeg, CVPR 2023)."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._numerics import l2_normalize
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_images,
    check_int,
    check_same_device,
    check_sequence,
    check_shape,
)
from wsss_blocks.viz._checks import check_texts
from wsss_blocks.viz.grid import figure_grid
from wsss_blocks.viz.overlay import overlay_heatmap

__all__ = ["patch_similarity_figure"]

_MARK = (1.0, 0.0, 0.0)


def patch_similarity_figure(
    image: Tensor,
    patches: Tensor,
    *,
    path: Path | str,
    queries: Sequence[tuple[int, int]] = (),
    texts: Tensor | None = None,
    names: Sequence[str] = (),
    cell: int = 192,
) -> None:
    r"""Save maps of cosines: of some patches with all patches, and of texts with all patches.

    .. math::

        M_q(i) = \frac{F_q \cdot F_i}{\lVert F_q \rVert \lVert F_i \rVert}, \qquad
        M_c(i) = \frac{U_c \cdot F_i}{\lVert U_c \rVert \lVert F_i \rVert}

    Each map has a colour scale of its own, whose ends stand below it: cosines between patches are
    several times those with texts. The patch in question has a red frame.

    Reference:
        Yi et al., "A Simple Framework for Text-Supervised Semantic Segmentation", CVPR 2023,
        figure 10 (image-to-image and text-to-image).

    Args:
        image: ``(3, H, W)`` RGB in [0, 1].
        patches: ``(D, h, w)`` of that image, in the space of the texts.
        path: PNG file to write.
        queries: row and column of patches in the grid.
        texts: ``(M, D)`` rows, or None.
        names: M texts, for the titles.
        cell: longest side of an image in the figure.

    Raises:
        ImportError: pillow is not installed.
        TypeError: an input is not floating point.
        ValueError: a shape does not fit, a value is not finite, a query lies outside the grid, or
            there is neither query nor text.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     patch_similarity_figure(
        ...         torch.rand(3, 64, 64),
        ...         torch.randn(16, 4, 4),
        ...         path=f"{folder}/patches.png",
        ...         queries=[(0, 3)],
        ...         texts=torch.randn(2, 16),
        ...         names=["dog", "grass"],
        ...     )
    """
    check_shape("image", image, "3 H W")
    check_images("image", image[None])
    check_shape("patches", patches, "D h w")
    check_floating("patches", patches)
    check_finite("patches", patches)
    check_int("cell", cell, least=1)
    check_sequence("names", names)
    grid = (patches.shape[1], patches.shape[2])
    _check_queries(queries, grid)
    features = l2_normalize(patches.detach(), dim=0).cpu()
    rows = []
    if queries:
        points = torch.stack([features[:, y, x] for y, x in queries])
        maps = torch.einsum("md,dhw->mhw", points, features)
        rows.append((maps, [f"patch {y}, {x}" for y, x in queries], list(queries)))
    if texts is not None:
        check_shape("texts", texts, "M D", D=patches.shape[0])
        check_floating("texts", texts)
        check_finite("texts", texts)
        check_same_device("texts", texts, "patches", patches)
        check_texts("names", names, len(texts))
        bank = l2_normalize(texts.detach()).cpu().to(features.dtype)
        rows.append((torch.einsum("md,dhw->mhw", bank, features), list(names), []))
    if not rows:
        raise ValueError("queries must hold a patch where there are no texts, got none.")
    picture = image.detach().cpu().float().clamp(0, 1)
    cells, captions = [], []
    for maps, titles, places in rows:
        drawn, notes = [picture], [""]
        for k, (one, title) in enumerate(zip(maps, titles, strict=True)):
            heat = _heat(picture, one)
            drawn.append(_framed(heat, places[k], grid) if places else heat)
            notes.append(f"{title}: {float(one.min()):.2f} to {float(one.max()):.2f}")
        cells.append(drawn)
        captions.append(notes)
    labels = ["image to image"] * bool(queries) + ["text to image"] * (texts is not None)
    figure_grid(cells, path=path, row_labels=labels, captions=captions, cell=cell)


def _heat(picture: Tensor, values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    scaled = ((values - low) / (high - low).clamp_min(1e-6)).float()
    size = (picture.shape[1], picture.shape[2])
    large = F.interpolate(scaled[None, None], size=size, mode="bilinear", align_corners=False)
    return overlay_heatmap(picture, large[0, 0].clamp(0, 1), alpha=0.75)


def _framed(picture: Tensor, place: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Draw a frame around a patch."""
    height, width = picture.shape[1:]
    top, bottom = (height * i // grid[0] for i in (place[0], place[0] + 1))
    left, right = (width * i // grid[1] for i in (place[1], place[1] + 1))
    bottom, right = max(bottom, top + 1), max(right, left + 1)
    thick = max(1, min(height, width) // 96)
    framed = picture.clone()
    red = framed.new_tensor(_MARK)[:, None, None]
    framed[:, top:bottom, left:right] = red
    inner = (slice(top + thick, bottom - thick), slice(left + thick, right - thick))
    framed[(slice(None), *inner)] = picture[(slice(None), *inner)]
    return framed


def _check_queries(queries: Sequence[tuple[int, int]], grid: tuple[int, int]) -> None:
    check_sequence("queries", queries)
    for query in queries:
        check_sequence("queries", query)
        if len(query) != 2:
            raise ValueError(f"queries must hold a row and a column each, got {query!r}.")
        for value, side in zip(query, grid, strict=True):
            check_int("queries", value)
            if not 0 <= value < side:
                raise ValueError(f"queries must lie in the grid {grid}, got {tuple(query)}.")
