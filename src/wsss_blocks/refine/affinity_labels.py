"""Which pairs of cells belong together, read off pseudo-labels: what affinity is learnt from.

Paper: Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly
Supervised Semantic Segmentation" (AffinityNet), CVPR 2018, https://arxiv.org/abs/1803.10464
"""

from typing import NamedTuple

import torch
from torch import Tensor

from wsss_blocks._validate import check_int, check_integer, check_shape
from wsss_blocks.refine._stencil import half_disc, shifted

__all__ = ["AffinityLabels", "affinity_labels", "affinity_matrix_labels"]

_UNKNOWN = 255


class AffinityLabels(NamedTuple):
    """Kinds of pairs of near cells, laid out as :class:`~wsss_blocks.refine.NeighbourAffinity`.

    A pair of which a cell is ignored or beyond the grid is of no kind.

    Args:
        background: ``(B, R, h, w)`` bool: both cells are background.
        foreground: likewise: both cells are of one class.
        different: likewise: they are not of one label.
        offsets: R pairs (dy, dx).
    """

    background: Tensor
    foreground: Tensor
    different: Tensor
    offsets: tuple[tuple[int, int], ...]


def affinity_labels(mask: Tensor, *, radius: int = 5, ignore_index: int = 255) -> AffinityLabels:
    """Sort the pairs of near cells by their labels: both background, of one class, different.

    Time and memory are O(B R h w), with R = 34 pairs of a cell at radius 5: three bytes a pair.

    Reference:
        Ahn and Kwak (AffinityNet), CVPR 2018, section 3.2, https://arxiv.org/abs/1803.10464; the
        same pairs in IRN, CVPR 2019, https://arxiv.org/abs/1904.05044.

    Note:
        The released codes leave out all pairs whose upper cell is within ``radius - 1`` of the
        left, right or lower border; here each pair on the grid counts.

        The pseudo-labels IRN starts from (background where the labels made with a low and with a
        high background agree on it, a class where the one with the high background has it, else
        ignored) are :func:`~wsss_blocks.refine.refine_to_label` with ``thresholds=(0.05, 0.3)``
        and a CRF as refiner. IRN's CRF takes labels, not scores: there let the refiner turn the
        maps into a probability of 0.7 for the largest and equal ones for the rest. AffinityNet's
        take ``add_background(cam, mode="power", value=a)`` with a low and a high exponent instead.

    Args:
        mask: ``(B, h, w)`` labels on the grid of the affinity, 0 for background.
        radius: Pairs with ``dy ** 2 + dx ** 2 < radius ** 2`` are made; at least 2.
        ignore_index: Label of cells that take no part.

    Returns:
        Three bool tensors ``(B, R, h, w)`` and their offsets.

    Raises:
        ValueError: If the shape does not fit or ``radius`` is below 2.
        TypeError: If ``mask`` does not hold integers, or ``radius`` or ``ignore_index`` is not one.

    Example:
        >>> import torch
        >>> labels = affinity_labels(torch.tensor([[[0, 0, 3, 3, 255]]]), radius=2)
        >>> [kind[0, labels.offsets.index((0, 1)), 0].int().tolist() for kind in labels[:3]]
        [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 1, 0, 0, 0]]
    """
    check_shape("mask", mask, "B h w")
    check_integer("mask", mask)
    check_int("radius", radius, least=2)
    check_int("ignore_index", ignore_index)
    offsets = half_disc(radius)
    # A small integer type may not hold the ignored id, and wraps it around to one that occurs.
    ids = mask.long()
    known = ids != ignore_index
    ends = torch.stack(shifted(ids, offsets), 1)
    pair = known.unsqueeze(1) & torch.stack(shifted(known, offsets), 1)
    same = pair & (ids.unsqueeze(1) == ends)
    is_background = (ids == 0).unsqueeze(1)
    return AffinityLabels(same & is_background, same & ~is_background, pair & ~same, offsets)


def affinity_matrix_labels(
    mask: Tensor, *, radius: int | None = None, ignore_index: int = 255
) -> Tensor:
    """Label all pairs of cells of an image: 1 for one label, 0 for different ones, 255 for unknown.

    One comparison of bytes, without a copy of the labels per cell: peak memory is three bytes a
    pair, the result included; 14 MiB for 4 images of 28 x 28 cells...

    Reference:
        Ru et al., "Learning Affinity from Attention" (AFA), CVPR 2022,
        https://arxiv.org/abs/2203.02664, with ``radius=8``; "Token Contrast" (ToCo), CVPR 2023,
        https://arxiv.org/abs/2303.01267, without. That a cell does not pair with itself and that
        the radius is one of a square is inferred from the released code.

    Args:
        mask: ``(B, h, w)`` labels, background being one of them.
        radius: Cells further apart than this, in rows or in columns, are unknown. None: no limit.
        ignore_index: Label of cells whose pairs are all unknown.

    Returns:
        ``(B, N, N)`` uint8 with N = h w: symmetric, 255 on the diagonal.

    Raises:
        ValueError: If the shape does not fit or ``radius`` is below 1.
        TypeError: If ``mask`` does not hold integers, or ``radius`` or ``ignore_index`` is not one.

    Example:
        >>> import torch
        >>> affinity_matrix_labels(torch.tensor([[[0, 0, 3, 255]]]))
        tensor([[[255,   1,   0, 255],
                 [  1, 255,   0, 255],
                 [  0,   0, 255, 255],
                 [255, 255, 255, 255]]], dtype=torch.uint8)
    """
    check_shape("mask", mask, "B h w")
    check_integer("mask", mask)
    check_int("ignore_index", ignore_index)
    if radius is not None:
        check_int("radius", radius, least=1)
    _, height, width = mask.shape
    y, x = (torch.arange(side, device=mask.device) for side in (height, width))
    y, x = (y[:, None] - y).abs()[:, None, :, None], (x[:, None] - x).abs()[:, None]
    beyond = (y == 0) & (x == 0)
    if radius is not None:
        beyond = beyond | (y > radius) | (x > radius)
    ids = mask.flatten(1).long()
    n = ids.shape[1]
    ignored = ids == ignore_index
    same = (ids.unsqueeze(2) == ids.unsqueeze(1)).to(torch.uint8)
    # 255 has all bits set, so or-ing brings it in without another table of pairs.
    for unknown in (ignored.unsqueeze(2), ignored.unsqueeze(1), beyond.view(1, n, n)):
        same.bitwise_or_(unknown.to(torch.uint8) * _UNKNOWN)
    return same
