"""Figures of a transformer with class tokens: what they stand for, and maps side by side."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks.cam import normalize_cam
from wsss_blocks.cli.whole import whole_image
from wsss_blocks.data import WeakDataset
from wsss_blocks.distributed import rank
from wsss_blocks.viz import class_token_figure, figure_grid, overlay_heatmap

__all__ = ["draw_class_tokens", "draw_maps"]


@torch.no_grad()
def draw_class_tokens(
    path: Path,
    class_tokens: Callable[[Tensor], Mapping[str, Tensor]],
    samples: WeakDataset,
    *,
    images: int = 200,
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
    stride = max(1, len(samples) // images)
    rows: dict[str, list[Tensor]] = {}
    classes = []
    for index in range(0, len(samples), stride)[:images]:
        sample = samples[index]
        present = (sample["labels"] > 0).nonzero().flatten()
        classes.append(present)
        for title, tokens in class_tokens(sample["image"][None].to(device)).items():
            rows.setdefault(title, []).append(tokens[0, present.to(tokens.device)].float().cpu())
    shown = torch.cat(classes)
    if len(shown) >= 3:
        panels = {title: torch.cat(found) for title, found in rows.items()}
        class_token_figure(panels, shown, path=path, names=samples.names)


@torch.no_grad()
def draw_maps(
    path: Path,
    maps: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
    samples: WeakDataset,
    *,
    images: int = 6,
    size: int | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Draw images, spread over the samples, and beside each its maps, each to its own range.

    In a process group only the first process draws.

    Args:
        path: PNG file to write.
        maps: batch of one (:func:`whole_image`) -> title of a column -> ``(1, 1, h, w)``.
        samples: with ``image`` and ``labels``.
        images: how many are drawn.
        size: side of the square that ``maps`` sees; None shows it the image as it is.
        device: where ``maps`` wants its argument.

    Raises:
        ImportError: pillow is not installed.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.data import Scenes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "maps.png"
        ...     draw_maps(path, lambda batch: {"red": batch["image"][:, :1]}, Scenes("val", size=3))
        ...     path.is_file()
        True
    """
    if rank() != 0:
        return
    stride, rows, titles = max(1, len(samples) // images), [], ["image"]
    for index in range(0, len(samples), stride)[:images]:
        batch = whole_image(samples[index], size=size, device=device)
        image = batch["image"][0].cpu()
        found, shape = maps(batch), (image.shape[-2], image.shape[-1])
        heat = [
            F.interpolate(normalize_cam(x.cpu()), shape, mode="bilinear") for x in found.values()
        ]
        rows.append([image, *(overlay_heatmap(image, x[0, 0]) for x in heat)])
        titles = ["image", *found]
    figure_grid(rows, path=path, titles=titles)
