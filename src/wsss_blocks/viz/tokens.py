"""Class tokens of many images, projected to the plane layer by layer (CTI, CVPR 2024)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wsss_blocks._files import replaced
from wsss_blocks._optional import require
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_int,
    check_integer,
    check_positive,
    check_sequence,
    check_shape,
)
from wsss_blocks.viz._checks import check_texts, class_colors

__all__ = ["class_token_figure"]


def class_token_figure(
    tokens: Mapping[str, Tensor],
    classes: Tensor,
    *,
    path: Path | str,
    names: Sequence[str],
    perplexity: float = 30.0,
    seed: int = 0,
    palette: Tensor | None = None,
    columns: int = 4,
) -> None:
    """Save one panel per layer: the t-SNE embedding of its class tokens, coloured by class.

    Where the tokens of one class lie apart from those of the others, they stand for what the images
    of the class share.

    Reference:
        "Class Tokens Infusion for Weakly Supervised Semantic Segmentation" (CTI), CVPR 2024,
        supplement; van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008. The
        embedding is scikit-learn's.

    Args:
        tokens: title of the panel -> ``(M, D)`` tokens of classes that their images show.
        classes: ``(M,)`` class of each token, an index into ``names``.
        path: PNG file to write, under a temporary name first.
        names: of the classes.
        perplexity: of t-SNE; smaller where there are few tokens.
        seed: of t-SNE.
        palette: ``(K + 1, 3)`` uint8 with the background first; VOC's by default.
        columns: panels side by side, at most.

    Raises:
        ImportError: matplotlib or scikit-learn is not installed.
        ValueError: there is no panel or column, less than three tokens, or a shape, class or
            colour does not fit.
        TypeError: tokens are not floating-point, or classes or ``palette`` no integers.

    Example:
        >>> import tempfile
        >>> tokens, classes = torch.randn(12, 8), torch.arange(12) % 2
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     class_token_figure(
        ...         {"block 1": tokens}, classes, path=f"{folder}/t.png", names=["cat", "dog"]
        ...     )
    """
    check_shape("classes", classes, "M")
    check_integer("classes", classes)
    check_sequence("names", names)
    check_texts("names", names, len(names))
    check_positive("perplexity", perplexity)
    check_int("seed", seed, least=0)
    check_int("columns", columns, least=1)
    colours = class_colors(palette, len(names) + 1)[1:].double() / 255
    count = len(classes)
    if not isinstance(tokens, Mapping):
        raise TypeError(f"tokens must be a mapping of tensors, got {type(tokens).__name__}.")
    if not tokens or count < 3:
        raise ValueError(
            f"tokens must hold a panel of at least three tokens, got {len(tokens)} of {count}."
        )
    shown = sorted(set(classes.tolist()))
    if not 0 <= shown[0] <= shown[-1] < len(names):
        raise ValueError(f"classes must be in [0, {len(names)}), got {shown}.")
    for title, each in tokens.items():
        check_shape(f"tokens[{title!r}]", each, "M D", M=count)
        check_floating(f"tokens[{title!r}]", each)
        check_finite(f"tokens[{title!r}]", each)
    tsne = require("sklearn.manifold", extra="examples", what="class_token_figure").TSNE
    library = require("matplotlib.figure", extra="cli", what="class_token_figure")

    columns = min(columns, len(tokens))
    rows = -(-len(tokens) // columns)
    figure = library.Figure(figsize=(3 * columns, 3 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    options = {"perplexity": min(perplexity, (count - 1) / 3), "random_state": seed}
    for panel, (title, each) in zip(panels, tokens.items(), strict=False):
        points = _scaled(each)
        plane = tsne(**options).fit_transform(points) if points.any() else points[:, :2]
        for index in shown:
            chosen = (classes == index).cpu().numpy()
            dots = {"color": colours[index].tolist(), "label": names[index], "s": 12}
            panel.scatter(plane[chosen, 0], plane[chosen, 1], linewidths=0, **dots)
        panel.set(title=title, xticks=[], yticks=[])
    for panel in panels[len(tokens) :]:
        panel.axis("off")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 2 * columns))
    with replaced(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _scaled(tokens: Tensor) -> NDArray[np.float64]:
    """Scale tokens into [-1, 1], the first at 0: t-SNE squares distances and divides by spreads.

    Equal tokens are exactly 0: their spread is none, which crashes scikit-learn 1.9's t-SNE.
    """
    points = tokens.detach().cpu().double()
    points = F.pad(points, (0, max(0, 2 - points.shape[1])))  # it starts from two components
    points = points - points[:1]
    return np.asarray(points / points.abs().max().clamp_min(torch.finfo(points.dtype).tiny))
