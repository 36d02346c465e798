"""The figure that shows whether class tokens stand for their classes."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks.cli._spread import spread
from wsss_blocks.data import WeakDataset
from wsss_blocks.distributed import rank
from wsss_blocks.viz import class_token_figure

__all__ = ["draw_class_tokens"]


@torch.no_grad()
def draw_class_tokens(
    path: Path,
    class_tokens: Callable[[Tensor], Mapping[str, Tensor]],
    samples: WeakDataset,
    *,
    images: int = 200,
    size: int | None = None,
    columns: int = 4,
    device: torch.device | str = "cpu",
) -> None:
    """Draw the t-SNE embedding of the class tokens of many images, layer by layer.

    Tokens of the classes that an image shows are taken, from images spread over the samples. With
    less than three of them nothing is drawn. In a process group only the first process draws.

    Reference:
        "Class Tokens Infusion for Weakly Supervised Semantic Segmentation" (CTI), CVPR 2024,
        supplement.

    Args:
        path: PNG file to write.
        class_tokens: images ``(1, 3, H, W)`` -> title of a panel -> ``(1, K, D)``.
        samples: with ``image`` and ``labels``.
        images: at most so many.
        size: side of the square that images are squeezed into; None takes them as they are.
        columns: panels side by side, at most.
        device: where ``class_tokens`` wants its argument.

    Raises:
        ImportError: matplotlib or scikit-learn is not installed.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.data import Scenes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "tokens.png"
        ...     draw_class_tokens(
        ...         path,
        ...         lambda x: {"pixels": x.flatten(2)[:, :1].expand(1, 10, -1)},
        ...         Scenes("val", size=6),
        ...     )
        ...     path.is_file()
        True
    """
    if rank() != 0:
        return
    rows: dict[str, list[Tensor]] = {}
    classes = []
    for sample in map(samples.__getitem__, spread(len(samples), images)):
        present = (sample["labels"] > 0).nonzero().flatten()
        classes.append(present)
        image = sample["image"][None].to(device)
        if size is not None:
            image = F.interpolate(image, (size, size), mode="bilinear", align_corners=False)
        for title, tokens in class_tokens(image).items():
            rows.setdefault(title, []).append(tokens[0, present.to(tokens.device)].float().cpu())
    shown = torch.cat(classes)
    if len(shown) >= 3:
        panels = {title: torch.cat(found) for title, found in rows.items()}
        class_token_figure(panels, shown, path=path, names=samples.names, columns=columns)
