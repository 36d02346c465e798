"""Where each pixel of a transformed image came from, so that cached maps can follow it.

Pixel centres lie at integer coordinates: the pixel in row ``i`` and column ``j`` has its centre at
``(x, y) = (j, i)`` and covers ``[j - 0.5, j + 0.5) x [i - 0.5, i + 0.5)``, so that an image of size
``(H, W)`` covers ``[-0.5, W - 0.5) x [-0.5, H - 0.5)``. This is ``align_corners=False``.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from wsss_blocks._validate import (
    check_choice,
    check_finite,
    check_floating,
    check_int,
    check_number,
    check_same_device,
    check_shape,
    check_size,
)

__all__ = ["Geometry", "replay"]


class Geometry(NamedTuple):
    r"""Say where the pixels of an image lie in the source image it was made from.

    .. math::

        (x, y)_{source} = A \, (x, y, 1)^T_{output}

    The tensors may carry a batch axis in front (that is how :func:`~wsss_blocks.data.collate`
    returns them); the methods and :func:`replay` take a single one.

    Args:
        matrix: ``(2, 3)`` float32, from output pixel centres to source pixel centres.
        source_size: ``(2,)`` integer height and width of the source.
        size: ``(2,)`` integer height and width of the output.

    Example:
        >>> flipped = Geometry.identity((4, 6)).flip()
        >>> flipped.matrix.tolist()
        [[-1.0, 0.0, 5.0], [0.0, 1.0, 0.0]]
    """

    matrix: Tensor
    source_size: Tensor
    size: Tensor

    @classmethod
    def identity(cls, size: tuple[int, int]) -> "Geometry":
        """Return the geometry of an untouched image of ``size`` (height, width)."""
        check_size("size", size)
        return cls(torch.eye(2, 3), torch.tensor(size), torch.tensor(size))

    def then(self, step: Tensor, size: tuple[int, int]) -> "Geometry":
        """Append a step whose ``(2, 3)`` matrix maps new pixel centres to the present ones."""
        return Geometry(_chain(self.matrix, step), self.source_size, torch.tensor(size))

    def compose(self, later: "Geometry") -> "Geometry":
        """Chain with a geometry whose source is this one's output.

        Raises:
            ValueError: the sizes do not meet.
        """
        if later.source_size.tolist() != self.size.tolist():
            raise ValueError(
                f"later must have source_size {tuple(self.size.tolist())} (the size of the "
                f"geometry before it), got {tuple(later.source_size.tolist())}."
            )
        return Geometry(_chain(self.matrix, later.matrix), self.source_size, later.size)

    def resize(self, size: tuple[int, int]) -> "Geometry":
        """Append a resize to ``size`` (height, width)."""
        check_size("size", size)
        (h, w), (new_h, new_w) = self.size.tolist(), size
        sy, sx = h / new_h, w / new_w
        step = [[sx, 0.0, 0.5 * sx - 0.5], [0.0, sy, 0.5 * sy - 0.5]]
        return self.then(torch.tensor(step, dtype=torch.float64), size)

    def flip(self) -> "Geometry":
        """Append a horizontal flip."""
        height, width = self.size.tolist()
        step = torch.tensor([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0]])
        return self.then(step, (height, width))

    def crop(self, top: int, left: int, size: tuple[int, int]) -> "Geometry":
        """Append a crop whose corner is pixel ``(top, left)``; a negative corner is padding."""
        check_int("top", top)
        check_int("left", left)
        check_size("size", size)
        return self.then(torch.tensor([[1.0, 0.0, float(left)], [0.0, 1.0, float(top)]]), size)


def replay(
    map: Tensor,
    geometry: Geometry,
    *,
    size: tuple[int, int] | None = None,
    mode: Literal["bilinear", "nearest"] = "bilinear",
    fill: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Resample a map of the source image onto a grid over the transformed image.

    The map covers the source image whatever its own grid is, as the result covers the transformed
    image: a cache at stride 16 follows a random scale, flip and crop in one ``grid_sample``.

    Note:
        The map is sampled at cell centres, without averaging: a result much coarser than the map
        should be made from a map reduced first. Within half a cell of the source's border the
        outermost cells are continued.

    Args:
        map: ``(C, h, w)`` map over the whole source image; integers need ``mode="nearest"``.
        geometry: where the transformed image came from (not batched).
        size: grid of the result; by default the size of the transformed image.
        mode: interpolation.
        fill: value of the cells that lie outside the source (padding).

    Returns:
        The map ``(C, *size)`` in the input's dtype, and ``(*size)`` bool: True where the cell's
        centre lies inside the source.

    Raises:
        ValueError: ``map`` is not ``(C, h, w)``, the geometry is batched, or ``mode`` is unknown.
        TypeError: a map of integers or booleans is to be interpolated.

    Example:
        >>> geometry = Geometry.identity((4, 4)).flip().crop(0, -2, (4, 4))
        >>> row, valid = replay(torch.arange(4.0).expand(1, 4, 4), geometry, fill=-1)
        >>> row[0, 0].tolist(), valid[0].tolist()
        ([-1.0, -1.0, 3.0, 2.0], [False, False, True, True])
    """
    check_shape("map", map, "C h w")
    check_shape("geometry.matrix", geometry.matrix, "2 3")
    check_choice("mode", mode, ("bilinear", "nearest"))
    if mode == "bilinear" and not map.is_floating_point():
        raise TypeError(f"map must be floating-point for mode='bilinear', got {map.dtype}.")
    check_floating("geometry.matrix", geometry.matrix)
    check_finite("geometry.matrix", geometry.matrix)
    check_same_device("map", map, "geometry.matrix", geometry.matrix)
    check_size("size", size, optional=True)
    check_number("fill", fill)
    if map.is_complex():
        raise TypeError(f"map must hold real numbers, got {map.dtype}.")
    check_finite("map", map)
    source_h, source_w = geometry.source_size.tolist()
    output_h, output_w = geometry.size.tolist()
    height, width = size or (output_h, output_w)
    # float64: float32 would round a flip's coordinates and mix neighbouring cells by 1e-5.
    y = (torch.arange(height, dtype=torch.float64) + 0.5) * (output_h / height) - 0.5
    x = (torch.arange(width, dtype=torch.float64) + 0.5) * (output_w / width) - 0.5
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    points = torch.stack([xx, yy, torch.ones_like(xx)], -1) @ geometry.matrix.double().T
    grid = (2 * points + 1) / torch.tensor([source_w, source_h], dtype=torch.float64) - 1
    valid = ((grid >= -1) & (grid < 1)).all(-1)
    sampled = F.grid_sample(
        map[None].double(), grid[None], mode=mode, padding_mode="border", align_corners=False
    )[0]
    return sampled.masked_fill(~valid, fill).to(map.dtype), valid


def _chain(first: Tensor, then: Tensor) -> Tensor:
    last_row = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    return (first.double() @ torch.cat([then.double(), last_row])).float()
