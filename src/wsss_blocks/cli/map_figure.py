"""Maps of any kind beside their images."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks.cam import normalize_cam
from wsss_blocks.cli._spread import spread
from wsss_blocks.cli.whole import whole_image
from wsss_blocks.data import WeakDataset
from wsss_blocks.distributed import rank
from wsss_blocks.viz import figure_grid, overlay_heatmap

__all__ = ["draw_maps"]


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
    rows, titles = [], ["image"]
    for index in spread(len(samples), images):
        batch = whole_image(samples[index], size=size, device=device)
        image = batch["image"][0].cpu()
        found, shape = maps(batch), (image.shape[-2], image.shape[-1])
        heat = [
            F.interpolate(normalize_cam(x.cpu()), shape, mode="bilinear") for x in found.values()
        ]
        rows.append([image, *(overlay_heatmap(image, x[0, 0]) for x in heat)])
        titles = ["image", *found]
    figure_grid(rows, path=path, titles=titles)
