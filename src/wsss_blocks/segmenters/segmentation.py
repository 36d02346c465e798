"""The mask of one image, with the names and colours of its classes."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wsss_blocks._files import replaced
from wsss_blocks._optional import require
from wsss_blocks._validate import check_integer, check_shape, check_tensor
from wsss_blocks.data import voc_palette
from wsss_blocks.viz import figure_grid, overlay_mask

__all__ = ["Segmentation", "class_colours"]


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """Hold the mask of one image and what is needed to show it.

    Attributes:
        mask: ``(H, W)`` int64 on the CPU: 0 background, ``1..K`` as in ``names``.
        names: K + 1 names, background first.
        palette: ``(K + 1, 3)`` uint8, the colour of each name.
        image: ``(3, H, W)`` RGB in [0, 1], as it was segmented: upright, on the CPU.

    Raises:
        ValueError: the shapes do not fit each other, or an id has no name.
        TypeError: the mask does not hold integers.

    Example:
        >>> mask = torch.tensor([[0, 2, 2, 2]])
        >>> palette = torch.tensor([[0, 0, 0], [128, 0, 0], [0, 128, 0]], dtype=torch.uint8)
        >>> found = Segmentation(mask, ("background", "cat", "dog"), palette, torch.rand(3, 1, 4))
        >>> found.present()
        {'dog': 0.75, 'background': 0.25}
        >>> found
        Segmentation(1 x 4: dog 75.0 %, background 25.0 %)
    """

    mask: Tensor
    names: tuple[str, ...]
    palette: Tensor
    image: Tensor

    def __post_init__(self) -> None:
        check_shape("mask", self.mask, "H W")
        check_integer("mask", self.mask)
        check_shape("image", self.image, "3 H W", H=self.mask.shape[0], W=self.mask.shape[1])
        check_shape("palette", self.palette, "C 3", C=len(self.names))
        low, high = int(self.mask.min()), int(self.mask.max())
        if low < 0 or high >= len(self.names):
            raise ValueError(f"mask must hold ids in [0, {len(self.names)}), got {low} to {high}.")

    def present(self) -> dict[str, float]:
        """Return the share of pixels of each class that occurs, the largest first."""
        counts = self.mask.flatten().bincount(minlength=len(self.names)).tolist()
        order = sorted(range(len(counts)), key=lambda i: -counts[i])
        return {self.names[i]: counts[i] / self.mask.numel() for i in order if counts[i]}

    def overlay(self, *, alpha: float = 0.6) -> Tensor:
        """Return the image ``(3, H, W)``, tinted by class; background stays as it is."""
        return overlay_mask(self.image, self.mask, alpha=alpha, palette=self.palette)

    def save(self, path: str | Path) -> None:
        """Write the mask as an indexed PNG in the colours of the palette.

        Args:
            path: the file, replaced as a whole; missing folders are made.

        Raises:
            ValueError: the name does not end in ``.png``, or an id is above 255.
            ImportError: pillow is not installed.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise ValueError(f"path must end in .png, which keeps class ids exactly, got {path}.")
        if len(self.names) > 256:
            raise ValueError(f"a PNG holds at most 256 classes, got {len(self.names)}.")
        pillow = require("PIL.Image", extra="cli", what="Segmentation.save")
        picture = pillow.fromarray(self.mask.to(torch.uint8).cpu().numpy())
        picture.putpalette(self.palette.flatten().tolist())
        with replaced(path) as temporary:
            picture.save(temporary, format="PNG")

    def save_figure(self, path: str | Path) -> None:
        """Write a PNG for people: the image, its :meth:`overlay`, and the names of the colours.

        Args:
            path: the file, replaced as a whole; missing folders are made.

        Raises:
            ImportError: pillow is not installed.
        """
        ids = [self.names.index(name) for name in self.present()]
        legend = {self.names[i]: self.palette[i].tolist() for i in ids if i}
        figure_grid([[self.image, self.overlay()]], path=path, legend=legend, cell=512)

    def __repr__(self) -> str:
        shares = [f"{name} {100 * share:.1f} %" for name, share in self.present().items()]
        shown = ", ".join(shares[:5] + ["..."] * (len(shares) > 5))
        return f"Segmentation({self.mask.shape[0]} x {self.mask.shape[1]}: {shown})"


def class_colours(palette: Tensor | None, classes: int) -> Tensor:
    """Return one colour per class, ``(classes, 3)`` uint8; the VOC palette by default."""
    palette = voc_palette() if palette is None else palette
    check_tensor("palette", palette)
    if palette.dtype != torch.uint8:
        raise TypeError(f"palette must be a uint8 tensor, got {palette.dtype}.")
    if palette.ndim != 2 or palette.shape[1] != 3 or palette.shape[0] < classes:
        raise ValueError(
            f"palette must have shape (n, 3) with n >= {classes}, got {tuple(palette.shape)}."
        )
    return palette[:classes].cpu().clone()
