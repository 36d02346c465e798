"""Crops of what a pseudo-label does not know to be an object (ToCo, CVPR 2023)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wsss_blocks._validate import (
    check_box,
    check_fraction,
    check_images,
    check_int,
    check_integer,
    check_same_device,
    check_shape,
)
from wsss_blocks.cam.box import check_inside

__all__ = ["LocalCrops", "negative_crops"]


class LocalCrops(NamedTuple):
    """Crops ``(B, N, 3, s, s)``, their ``box (B, N, 4)``, and ``positive (B, N)`` bool."""

    images: Tensor
    box: Tensor
    positive: Tensor


@torch.no_grad()
def negative_crops(
    images: Tensor,
    mask: Tensor,
    *,
    size: int = 96,
    number: int = 8,
    share: float = 0.2,
    box: Tensor | None = None,
    ignore_index: int = 255,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> LocalCrops:
    r"""Cut crops whose middle is background or undecided, and say which show an object.

    With the value r of a pixel, 0 background, 1 undecided, 2 a class, a crop C is

    .. math::

        \text{positive where } \frac{1}{|C|} \sum_{i \in C} r_i > s, \qquad
        \text{negative otherwise.}

    Places are drawn evenly and without repetition among those whose middle has r < 2 and which lie
    in the box; where there are fewer than N, further ones come from the box, then from all of the
    image. No loop over images and no sync with a device: O(B H W) for the places, O(B N s^2) for
    the pixels. The same generator state gives the same crops on one kind of device.

    Reference:
        "Token Contrast for Weakly-Supervised Semantic Segmentation" (ToCo, class token contrast),
        https://arxiv.org/abs/2303.01267: 8 crops of 96 pixels, negative up to a mean of 0.2, from
        the thresholds (0.25, 0.7). Inferred: which middles are allowed.

    Args:
        images: RGB images in [0, 1], ``(B, 3, H, W)``.
        mask: ``(B, H, W)`` pseudo-labels with 0 for background, on the grid of the images:
            :func:`~wsss_blocks.cam.cam_to_label` with two thresholds.
        size: side s of the crops.
        number: crops N per image.
        share: the s of the formula.
        box: ``(B, 4)`` integers top, left, bottom, right: the part of each image that is not
            padding, which counts as background.
        ignore_index: label of undecided pixels.
        generator: source of the random numbers, on any device, or one for each image, so that the
            crops of an image do not depend on the batch it is in; the global one if None.

    Returns:
        The crops, where they lie (top, left, bottom, right in pixels of the image), and which of
        them are positive.

    Raises:
        ValueError: a shape or device does not fit, images are not in [0, 1], the images are
            smaller than a crop or have fewer than ``number`` places for one, or an option is out
            of range.
        TypeError: wrong dtype of a tensor or type of an option.

    Example:
        >>> import torch
        >>> mask = torch.zeros(1, 8, 8, dtype=torch.int64)
        >>> mask[:, :, 5:] = 3
        >>> g = torch.Generator().manual_seed(0)
        >>> crops = negative_crops(torch.rand(1, 3, 8, 8), mask, size=4, number=6, generator=g)
        >>> crops.images.shape
        torch.Size([1, 6, 3, 4, 4])
        >>> crops.box[0, :, 1]  # the left edges: those from column 2 on reach the object
        tensor([1, 2, 2, 1, 1, 0])
        >>> crops.positive[0]
        tensor([False,  True,  True, False, False, False])
    """
    check_images("images", images)
    batch, _, height, width = images.shape
    check_shape("mask", mask, "B H W", B=batch, H=height, W=width)
    check_integer("mask", mask)
    check_same_device("mask", mask, "images", images)
    check_int("size", size, least=1)
    check_int("number", number, least=1)
    check_fraction("share", share)
    check_int("ignore_index", ignore_index)
    check_box(box, batch=batch, device=images.device)
    rows, columns = height - size + 1, width - size + 1
    if min(rows, columns) < 1 or rows * columns < number:
        raise ValueError(
            f"size and number must leave {number} different places in images of {height} x {width}"
            f", got size={size}."
        )

    device = images.device
    y, x = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    ids = mask.long()  # uint8 wraps an ignore_index of -1 around
    value = torch.where(ids == ignore_index, 1, 2 * (ids != 0))
    wanted = value[:, size // 2 :, size // 2 :][:, :rows, :columns] < 2
    if box is None:
        fits = torch.ones_like(wanted)
    else:
        check_inside(box, image_size=(height, width))
        top, left, bottom, right = box.long()[:, :, None, None].unbind(1)
        value = value * ((y >= top) & (y < bottom) & (x >= left) & (x < right))
        fits = (y[:rows] >= top) & (y[:rows] + size <= bottom)
        fits = fits & (x[:columns] >= left) & (x[:columns] + size <= right)
    drawn = _drawn(batch, (rows, columns), generator, device)
    # Halved, so that rounding never lifts one kind of place into the next.
    order = drawn / 2 + (fits & wanted) + fits
    corner = order.flatten(1).topk(number, dim=1).indices
    first_row, first_column = corner.div(columns, rounding_mode="floor"), corner % columns
    image = torch.arange(batch, device=device)[:, None, None, None]
    row = (first_row[:, :, None] + y[:size, 0])[..., None]
    column = (first_column[:, :, None] + x[:size])[:, :, None]
    pixels = images.permute(0, 2, 3, 1)[image, row, column].movedim(4, 2)
    positive = value[image, row, column].sum((2, 3)) > share * size * size
    edges = [first_row, first_column, first_row + size, first_column + size]
    return LocalCrops(pixels, torch.stack(edges, 2), positive)


def _drawn(
    batch: int,
    size: tuple[int, int],
    generator: torch.Generator | Sequence[torch.Generator] | None,
    device: torch.device,
) -> Tensor:
    """Draw numbers in [0, 1) for each place of each image."""
    if not isinstance(generator, Sequence):
        source = device if generator is None else generator.device
        # uniform_ and not rand, which takes no generator where sizes are symbols.
        return torch.empty(batch, *size, device=source).uniform_(generator=generator).to(device)
    if len(generator) != batch:
        raise ValueError(
            f"generator must be one, or one for each of {batch} images, got {len(generator)}."
        )
    each = [torch.empty(size, device=g.device).uniform_(generator=g) for g in generator]
    return torch.stack([numbers.to(device) for numbers in each])
