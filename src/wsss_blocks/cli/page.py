"""One HTML file of an evaluation: scores with their protocol, classes, best and worst images."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from torch import Tensor

from wsss_blocks._files import replaced
from wsss_blocks._validate import check_shape
from wsss_blocks.cli._page_pictures import Picture, legend, picture
from wsss_blocks.cli._page_style import STYLE
from wsss_blocks.data import voc_palette
from wsss_blocks.metrics import EvaluationProtocol

__all__ = ["Picture", "write_page"]

_TITLES = {
    "miou": "mIoU",
    "mfpr": "mFPR",
    "mfnr": "mFNR",
    "iou": "IoU",
    "boundary_iou": "boundary IoU",
}


def write_page(
    path: Path | str,
    *,
    title: str,
    scores: Mapping[str, float],
    table: Sequence[Mapping[str, object]],
    protocol: EvaluationProtocol,
    pictures: Sequence[Picture],
    names: Sequence[str],
    palette: Tensor,
    run: Mapping[str, object],
) -> None:
    """Write an evaluation as one HTML file that needs nothing else, not even a network.

    Pictures are scaled to at most 320 pixels and stand in the file. It has no script, follows the
    reader's dark or light setting, and shows every field of the protocol.

    Args:
        path: HTML file; written under a temporary name and renamed.
        title: heading.
        scores: fractions by name, as ``miou``.
        table: a row for each class, in the order of the paper: column -> text or fraction.
        protocol: of all scores.
        pictures: for instance the best and the worst images.
        names: C class names, background first.
        palette: ``(n, 3)`` uint8, the colour of each class id.
        run: facts as :func:`~wsss_blocks.metrics.read_metrics` returns them; a ``bootstrap`` among
            them becomes the interval of the mIoU.

    Raises:
        ValueError: an image and its masks differ in size, or an id is not in [0, 255].
        TypeError: ``protocol`` is no protocol.
        ImportError: pillow is not installed.

    Example:
        >>> import tempfile, torch
        >>> from wsss_blocks.data import voc_palette
        >>> protocol = EvaluationProtocol(
        ...     dataset="pets",
        ...     split="val",
        ...     num_images=1,
        ...     scales=(1.0,),
        ...     flip=False,
        ...     refiner="none",
        ...     labels_used=False,
        ... )
        >>> mask = torch.eye(8, dtype=torch.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_page(
        ...         f"{folder}/page.html",
        ...         title="pets",
        ...         scores={"miou": 0.5},
        ...         table=[{"class": "cat", "iou": 0.5}],
        ...         protocol=protocol,
        ...         names=("none", "cat"),
        ...         pictures=[Picture("7", "mIoU 50.00", None, mask, mask)],
        ...         palette=voc_palette(),
        ...         run={},
        ...     )
        ...     page = Path(f"{folder}/page.html").read_text()
        >>> "mIoU" in page, "http" in page
        (True, False)
    """
    if not isinstance(protocol, EvaluationProtocol):
        raise TypeError(f"protocol must be an EvaluationProtocol, got {type(protocol).__name__}.")
    check_shape("palette", palette, "n 3")
    colors = voc_palette().numpy().copy()
    colors[: len(palette)] = palette[:256].cpu().numpy()
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="line">{escape(protocol.describe())}</p>',
        _tiles(scores, run),
        _classes(table) if table else "",
        legend(pictures, names, colors) if pictures else "",
        *(picture(one, colors, ignore_index=protocol.ignore_index) for one in pictures),
        _facts("Protocol", protocol.to_dict()),
        _facts("Run", {k: v for k, v in run.items() if k != "bootstrap"}) if run else "",
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )
    with replaced(path) as temporary:
        # File names may hold bytes that are no text.
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def _tiles(scores: Mapping[str, float], run: Mapping[str, object]) -> str:
    tiles = []
    for name, value in scores.items():
        low_high = _interval(name, run)
        note = f"<small>{escape(low_high)}</small>" if low_high else ""
        tiles.append(f"<div><dt>{_title(name)}</dt><dd>{_number(value)}{note}</dd></div>")
    return f'<dl class="tiles">{"".join(tiles)}</dl>\n<p class="unit">All scores in per cent.</p>'


def _interval(name: str, run: Mapping[str, object]) -> str:
    """Name the interval of a mIoU: that of its result, or the only one that there is."""
    table = run.get("bootstrap")
    if not isinstance(table, Mapping) or name.rpartition("/")[2] != "miou":
        return ""
    one = table.get(name.removesuffix("/miou"))
    if one is None and name == "miou" and len(table) == 1:
        (one,) = table.values()
    if not isinstance(one, Mapping) or None in (one.get("low"), one.get("high")):
        return ""
    return f"{one['low']:.2f} to {one['high']:.2f} ({100 * one['level']:g}% of resamplings)"


def _classes(table: Sequence[Mapping[str, object]]) -> str:
    heads = list(table[0])
    barred = next((h for h in heads if isinstance(table[0][h], float)), None)
    rows = []
    for row in table:
        cells = []
        for head in heads:
            value = row[head]
            if not isinstance(value, float):
                cells.append(f'<th scope="row">{escape(str(value))}</th>')
            elif head == barred and not math.isnan(value):
                share = min(max(100 * value, 0), 100)
                cells.append(f'<td class="bar" style="--v:{share:.2f}%">{_number(value)}</td>')
            else:
                cells.append(f"<td>{_number(value)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    top = "".join(f'<th scope="col">{_title(head)}</th>' for head in heads)
    body = "\n".join(rows)
    return (
        '<h2>Classes</h2>\n<div class="wide"><table class="classes">\n'
        f"<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _facts(title: str, facts: Mapping[str, object]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(_plain(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f'<h2>{title}</h2>\n<div class="wide"><table class="facts">\n{rows}\n</table></div>'


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not given" if value is None else str(value)


def _title(name: str) -> str:
    head, _, last = name.rpartition("/")
    shown = _TITLES.get(last, last.replace("_", " "))
    return escape(f"{head} {shown}" if head else shown)


def _number(fraction: float) -> str:
    return "&ndash;" if math.isnan(fraction) else f"{100 * fraction:.2f}"
