"""Image boxes on other grids: which cells of a padded crop are image (ToCo's ``img_box``)."""

import torch
from torch import Tensor

from wsss_blocks._validate import check_box, check_shape, check_size, values_are_checked

__all__ = ["box_to_valid", "check_inside", "scale_box"]


def scale_box(box: Tensor, *, image_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    r"""Move boxes from one grid over an image to another grid over the same image.

    A cell of the new grid belongs to the box when its centre does, so an edge at :math:`e` goes to

    .. math::

        e' = \lceil e \, s / S - 1/2 \rceil

    with :math:`S` the old and :math:`s` the new side, computed in integers. The whole image stays
    whole; a box narrower than a new cell may come back empty.

    Reference:
        The valid area of a padded crop, "Token Contrast for Weakly-Supervised Semantic
        Segmentation" (ToCo), released code; https://arxiv.org/abs/2303.01267

    Args:
        box: ``(B, 4)`` integers: top, left, bottom, right, half-open, in pixels of ``image_size``.
        image_size: ``(H, W)`` of the grid that the box is given in.
        size: ``(h, w)`` of the grid that the box is wanted in.

    Returns:
        ``(B, 4)`` int64 in the same order, in cells of ``size``.

    Raises:
        ValueError: If the shape is wrong, a size is not positive, or (where values are checked) a
            box is inverted or leaves the image.
        TypeError: If ``box`` does not hold integers.

    Example:
        >>> import torch
        >>> box = torch.tensor([[0, 100, 300, 448]])
        >>> scale_box(box, image_size=(448, 448), size=(28, 28))
        tensor([[ 0,  6, 19, 28]])
    """
    check_shape("box", box, "B 4")
    check_box(box, batch=box.shape[0])
    check_size("image_size", image_size)
    check_size("size", size)
    check_inside(box, image_size=image_size)
    old = torch.tensor([*image_size, *image_size], device=box.device)
    new = torch.tensor([*size, *size], device=box.device)
    return -torch.div(old - 2 * box.long() * new, 2 * old, rounding_mode="floor")


def box_to_valid(box: Tensor, *, image_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Mark the grid cells whose centre lies inside the box.

    Reference:
        The valid area of a padded crop, "Token Contrast for Weakly-Supervised Semantic
        Segmentation" (ToCo), released code; https://arxiv.org/abs/2303.01267

    Args:
        box: ``(B, 4)`` integers: top, left, bottom, right, half-open, in pixels of ``image_size``.
        image_size: ``(H, W)`` of the image that the box came with.
        size: ``(h, w)`` of the grid to mark.

    Returns:
        ``(B, h, w)`` bool, True inside the box.

    Raises:
        ValueError: If the shape is wrong, a size is not positive, or (where values are checked) a
            box is inverted or leaves the image.
        TypeError: If ``box`` does not hold integers.

    Example:
        >>> import torch
        >>> box = torch.tensor([[0, 2, 4, 8]])
        >>> box_to_valid(box, image_size=(4, 8), size=(2, 4)).int()
        tensor([[[0, 1, 1, 1],
                 [0, 1, 1, 1]]], dtype=torch.int32)
    """
    cells = scale_box(box, image_size=image_size, size=size)
    top, left, bottom, right = cells[:, :, None, None].unbind(1)
    rows = torch.arange(size[0], device=box.device)[:, None]
    columns = torch.arange(size[1], device=box.device)
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def check_inside(box: Tensor, *, image_size: tuple[int, int]) -> None:
    """Raise where a box is inverted or leaves the image, if values are checked."""
    if values_are_checked(box):
        top, left, bottom, right = box.long().unbind(1)
        inside = (top >= 0) & (left >= 0) & (bottom <= image_size[0]) & (right <= image_size[1])
        bad = ~(inside & (top <= bottom) & (left <= right))
        if bool(bad.any()):
            raise ValueError(
                "box must hold top <= bottom, left <= right (in this order) inside "
                f"image_size={tuple(image_size)}, got {box[bad][0].tolist()}."
            )
