"""Segment image files and write what people look at."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["segment_files"]


def segment_files(
    logits_fn: Callable[[Tensor], Tensor],
    paths: Iterable[Path],
    *,
    output: Path,
    device: torch.device | str = "cpu",
) -> list[Path]:
    """Write ``NAME.png``, an indexed mask with the VOC palette, and ``NAME_overlay.png`` per image.

    Args:
        logits_fn: ``(1, 3, H, W)`` RGB in [0, 1] -> ``(1, C, h, w)``, background first.
        paths: image files.
        output: folder, made if need be.
        device: where ``logits_fn`` wants its argument.

    Returns:
        The mask files.

    Raises:
        OSError: a file is not there or cannot be read; the message names it.
        ImportError: pillow is not installed.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.data import Scenes
        >>> from wsss_blocks.viz import figure_grid
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source = Path(folder) / "digits.png"
        ...     figure_grid([[Scenes("val")[0]["image"]]], path=source)
        ...     [p.name for p in segment_files(lambda x: x, [source], output=Path(folder) / "out")]
        ['digits.png']
    """
    from wsss_blocks.data import read_image, write_mask
    from wsss_blocks.viz import figure_grid, overlay_mask

    written = []
    for path in paths:
        image = read_image(Path(path))
        with torch.no_grad():
            logits = logits_fn(image[None].to(device)).float().cpu()
        size = (image.shape[1], image.shape[2])
        mask = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0].argmax(0)
        target = output / f"{Path(path).stem}.png"
        write_mask(target, mask)
        figure_grid(
            [[image, overlay_mask(image, mask)]],
            path=output / f"{Path(path).stem}_overlay.png",
            cell=max(size),
        )
        written.append(target)
    return written
