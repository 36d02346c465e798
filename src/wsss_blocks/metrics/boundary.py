"""Boundary IoU: the agreement of prediction and target near their contours.

Paper: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR
2021, https://arxiv.org/abs/2103.16562.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsss_blocks._validate import check_int, check_integer, check_number, check_shape
from wsss_blocks.metrics._counts import (
    Absent,
    Counts,
    as_tensors,
    check_pair,
    class_iou,
    fold,
    on_host,
    with_names,
)
from wsss_blocks.ops.counting import count
from wsss_blocks.ops.mask_pairs import (
    BORDER_RATIO,
    border_width,
    boundary_counts,
    contour_band,
)

__all__ = ["BoundaryEvaluator", "BoundaryScores", "boundary_region"]


def boundary_region(mask: Tensor, *, width: int) -> Tensor:
    r"""Mark the pixels that lie within ``width`` pixels of the contour of their own region.

    .. math::

        \exists\, q : \max(|x_p - x_q|, |y_p - y_q|) \le d
        \ \wedge\ (m_q \ne m_p \ \vee\ q \text{ outside the image})

    A region is a set of pixels with one id; ignored pixels are one more region. All classes are
    done at once, in O(B H W log d).

    Reference:
        Boundary IoU, https://arxiv.org/abs/2103.16562: for each class it is the mask minus its
        erosion by a 3 x 3 square, ``width`` times, with the frame of the image eroded too, as the
        authors' code does it.

    Args:
        mask: ``(B, H, W)`` integers.
        width: d >= 1, in pixels.

    Returns:
        ``(B, H, W)`` bool.

    Raises:
        TypeError: ``mask`` does not hold integers.
        ValueError: ``mask`` is not ``(B, H, W)`` or ``width < 1``.

    Example:
        >>> mask = torch.zeros(1, 1, 9, dtype=torch.int64)
        >>> boundary_region(mask.expand(1, 9, 9), width=2)[0].logical_not().sum()
        tensor(25)
    """
    check_shape("mask", mask, "B H W")
    check_integer("mask", mask)
    check_int("width", width, least=1)
    return contour_band(mask, width, like=torch)


@dataclass(frozen=True, eq=False)
class BoundaryScores:
    """Boundary IoU as fractions; NaN where nothing defines it.

    Attributes:
        mean: over the classes that the evaluator's ``absent`` rule counts.
        iou: ``(C,)`` float64.
        names: C class names, background first.
    """

    mean: float
    iou: Tensor
    names: tuple[str, ...]

    def per_class(self) -> dict[str, float]:
        """Return the boundary IoU of each class by its name."""
        return dict(zip(self.names, self.iou.tolist(), strict=True))


class BoundaryEvaluator(Counts):
    r"""Count the agreement of masks near their contours, and score it as boundary IoU.

    .. math::

        \frac{|(G_d \cap G) \cap (P_d \cap P)|}{|(G_d \cap G) \cup (P_d \cap P)|}
        \qquad d = \max(1, \mathrm{round}(r \sqrt{H^2 + W^2}))

    for each class, with G and P its pixels in target and prediction, and :math:`G_d`, :math:`P_d`
    the pixels within d of their contours (:func:`boundary_region`). Counts are summed over all
    images before the division, as for the IoU.

    Note:
        The paper does not treat ignored pixels. Here they are not scored, and the contour of an
        object runs along them where they border it (in VOC they do almost everywhere).

    Reference:
        Boundary IoU, https://arxiv.org/abs/2103.16562; r is 2 % of the diagonal there.

    Args:
        num_classes: C, counting background.
        ratio: r, width of the border as a share of the image's diagonal.
        ignore_index: target id that is not scored; outside ``[0, C)``.
        absent: as in :class:`SegmentationEvaluator`.
        names: C class names, background first; default the ids as text.

    Raises:
        ValueError: ``ratio`` is not in (0, 1), ``ignore_index`` is a class, or ``names`` has
            another length.

    Example:
        >>> evaluator = BoundaryEvaluator(2)
        >>> target = torch.zeros(64, 64, dtype=torch.uint8)
        >>> target[16:48, 16:48] = 1
        >>> evaluator.update(target.roll(1, 0), target)
        >>> [round(iou, 2) for iou in evaluator.compute().iou.tolist()]
        [0.84, 0.6]
    """

    def __init__(
        self,
        num_classes: int,
        *,
        ratio: float = BORDER_RATIO,
        ignore_index: int = 255,
        absent: Absent = "both",
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            (3, num_classes), num_classes=num_classes, ignore_index=ignore_index, absent=absent
        )
        check_number("ratio", ratio)
        if not 0 < ratio < 1:
            raise ValueError(f"ratio must be in (0, 1), got {ratio}.")
        self.ratio = ratio
        self.names = with_names(names, num_classes)

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count one image, or a batch of one size.

        Time is O(B H W log d), whatever the number of classes.

        Args:
            pred: ``(B, H, W)`` or ``(H, W)`` class ids, any integer dtype.
            target: class ids or ``ignore_index``, the same shape.

        Raises:
            TypeError: a mask does not hold integers.
            ValueError: the shapes or devices differ, or an id is impossible.
        """
        check_pair(pred, target)
        counts, invalid = self.count(pred, target)
        self.check_ids(invalid, pred=pred, target=target)
        self.add(counts, invalid)

    def count(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return what :meth:`update` adds, without adding it."""
        width = border_width(target.shape[-2:], self.ratio)
        if on_host(target):
            args = pred.numpy(), target.numpy(), self.num_classes
            return as_tensors(boundary_counts(*args, ignored=self.ignore_index, width=width))
        c = self.num_classes
        near_target = contour_band(target, width, like=torch)
        near_pred = contour_band(pred, width, like=torch)
        target = fold(target, num_classes=c, ignore_index=self.ignore_index)
        pred = fold(pred, num_classes=c, ignore_index=self.ignore_index)
        scored = target != c
        wrong = scored & ((target > c) | (pred >= c))
        # C stands for pixels far from a contour, C + 1 for those that are not scored.
        rows = torch.where(scored & ~wrong, torch.where(near_target, target, c), c + 1)
        columns = torch.where(near_pred, pred.clamp_max(c), c)
        table = count((rows * (c + 2) + columns).flatten(), (c + 2) ** 2).view(c + 2, c + 2)
        counts = [table.diagonal()[:c], table[:c].sum(1), table[: c + 1, :c].sum(0)]
        return torch.stack(counts), wrong.sum()

    def compute(self) -> BoundaryScores:
        """Score everything counted so far by this process (see ``all_reduce`` for the others).

        Raises:
            ValueError: masks on a GPU held impossible ids.
        """
        self._check_counted()
        both, in_target, in_pred = self.counts.cpu().double()
        iou = class_iou(both, in_target, in_pred, absent=self.absent)
        return BoundaryScores(float(iou.nanmean()), iou, self.names)

    def _settings(self) -> tuple[object, ...]:
        return (*super()._settings(), self.ratio)
