"""Figures of image grids as PNG files: titles, row labels and a legend as readable text."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._files import replaced
from wsss_blocks._optional import require
from wsss_blocks._validate import check_int
from wsss_blocks.viz._checks import Color, check_grid

__all__ = ["figure_grid"]

_GAP = 6
_TEXT = 14


def figure_grid(
    rows: Sequence[Sequence[Tensor | None]],
    *,
    path: Path | str,
    titles: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    captions: Sequence[Sequence[str]] | None = None,
    legend: Mapping[str, Color] | None = None,
    cell: int = 192,
) -> None:
    """Save rows of images as one PNG.

    Args:
        rows: images ``(3, H, W)`` in [0, 1] of any sizes; None leaves a cell empty.
        path: file to write, under a temporary name first.
        titles: one per column.
        row_labels: one per row, written to its left; long ones are wrapped.
        captions: one per image, written below it.
        legend: colour in 0..255 of each name, written at the bottom.
        cell: longest side of an image in the figure. Small images are enlarged without smoothing,
            so that each of their pixels can be seen.

    Raises:
        ImportError: pillow is not installed.
        ValueError: an image has another shape or is not finite, or titles, labels, captions or
            colours do not fit.
        TypeError: an image is not floating point, or a text is none.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "grid.png"
        ...     figure_grid([[torch.rand(3, 32, 48)] * 2], path=path, titles=["one", "two"])
        ...     path.read_bytes()[1:4]
        b'PNG'
    """
    check_int("cell", cell, least=1)
    check_grid(rows, titles, row_labels, captions, legend)
    pil = _Pillow()
    cells = [[None if x is None else _fit(x, cell) for x in row] for row in rows]
    columns = max(len(row) for row in cells)
    widths = [
        max([x.shape[2] for row in cells if j < len(row) and (x := row[j]) is not None] + [8])
        for j in range(columns)
    ]
    if titles:
        widths = [max(w, pil.width(t)) for w, t in zip(widths, titles, strict=True)]
    labels = [pil.wrap(t, 140) for t in row_labels or []]
    margin = max([pil.width(text) for lines in labels for text in lines] + [-_GAP]) + 2 * _GAP
    line = _TEXT + 4
    least = [max(8, len(lines) * line * any(lines)) for lines in labels] or [8] * len(cells)
    heights = [
        max([x.shape[1] for x in row if x is not None] + [low])
        for row, low in zip(cells, least, strict=True)
    ]
    top = _GAP + (line if titles else 0)
    pitch = [h + _GAP + (line if captions else 0) for h in heights]
    width = margin + sum(w + _GAP for w in widths)
    chips = list(pil.flow(legend or {}, width - 2 * _GAP))
    below = (chips[-1][1] + 1) * line + _GAP if chips else 0

    canvas, draw = pil.canvas(width, top + sum(pitch) + below)
    lefts = [margin + sum(w + _GAP for w in widths[:j]) for j in range(columns)]
    for left, title in zip(lefts, titles or [], strict=False):
        pil.write(draw, (left, _GAP // 2), title)
    y = top
    for i, row in enumerate(cells):
        for k, text in enumerate(labels[i] if labels else []):
            pil.write(draw, (_GAP // 2, y + k * line), text)
        for j, image in enumerate(row):
            if image is not None:
                canvas.paste(pil.image(image), (lefts[j], y))
            if captions and captions[i][j]:
                pil.write(draw, (lefts[j], y + heights[i] + 1), captions[i][j])
        y += pitch[i]
    for left, k, name, color in chips:
        corner = (_GAP + left, y + k * line + 2)
        draw.rectangle(
            (*corner, corner[0] + 12, corner[1] + 12), fill=tuple(color), outline=(90, 90, 90)
        )
        pil.write(draw, (corner[0] + 18, corner[1] - 3), name)
    with replaced(path) as temporary:
        canvas.save(temporary, format="PNG")


class _Pillow:
    """The few calls to pillow: text is measured in its own TrueType font."""

    def __init__(self) -> None:
        self.image_module: ModuleType = require("PIL.Image", extra="cli", what="figure_grid")
        self.draw_module: ModuleType = require("PIL.ImageDraw", extra="cli", what="figure_grid")
        fonts = require("PIL.ImageFont", extra="cli", what="figure_grid")
        self.font = fonts.load_default(size=_TEXT)

    def width(self, text: str) -> int:
        length: float = self.font.getlength(text)
        return math.ceil(length)

    def wrap(self, text: str, limit: int) -> list[str]:
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and self.width(longer) > limit:
                lines.append(word)
            else:
                lines[-1] = longer
        return lines

    def flow(
        self, legend: Mapping[str, Color], limit: int
    ) -> Iterator[tuple[int, int, str, Color]]:
        x = line = 0
        for name, color in legend.items():
            step = self.width(name) + 32
            if x and x + step > limit:
                x, line = 0, line + 1
            yield x, line, name, color
            x += step

    def canvas(self, width: int, height: int) -> tuple[Any, Any]:
        canvas = self.image_module.new("RGB", (width, height), (255, 255, 255))
        return canvas, self.draw_module.Draw(canvas)

    def image(self, image: Tensor) -> Any:
        levels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
        return self.image_module.fromarray(levels.contiguous().numpy())

    def write(self, draw: Any, at: tuple[int, int], text: str) -> None:
        draw.text(at, text, fill=(0, 0, 0), font=self.font)


def _fit(image: Tensor, cell: int) -> Tensor:
    height, width = image.shape[1:]
    longest = max(height, width)
    size = (max(1, round(height * cell / longest)), max(1, round(width * cell / longest)))
    batch = image.detach().cpu().float()[None]
    if longest > cell:
        return F.interpolate(batch, size=size, mode="bilinear", antialias=True)[0]
    return F.interpolate(batch, size=size, mode="nearest-exact")[0]
