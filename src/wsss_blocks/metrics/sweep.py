"""Background threshold sweep: the mIoU at every threshold from one pass over the CAMs."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_int,
    check_integer,
    check_labels,
    check_number,
    check_same_device,
    check_sequence,
    check_shape,
)
from wsss_blocks.metrics._counts import Absent, Counts, fold, rates
from wsss_blocks.ops.counting import count
from wsss_blocks.ops.running_max import strongest

__all__ = ["SweepResult", "ThresholdSweep"]


class SweepResult(NamedTuple):
    """Scores of T thresholds, as fractions.

    Attributes:
        thresholds: ``(T,)`` float64.
        curve: ``(T,)`` float64 mIoU.
        best_threshold: the lowest threshold with the highest mIoU.
        best: the highest mIoU; NaN if no pixel was scored.
        iou: ``(T, C)`` float64 per-class IoU, NaN for a class that is not counted.
    """

    thresholds: Tensor
    curve: Tensor
    best_threshold: float
    best: float
    iou: Tensor


class ThresholdSweep(Counts):
    r"""Score CAM pseudo-labels at every background threshold in one pass.

    .. math::

        s_p = \max_{k : y_k = 1} \mathrm{norm}(\mathrm{up}(M_k))_p \qquad
        \hat{y}_p(t) = \begin{cases} 0 & s_p \le t \\ \arg\max_k & \text{otherwise} \end{cases}

    The curve at :math:`t` is what :class:`SegmentationEvaluator` gives for
    ``cam_to_label(cam, labels, size=target.shape[-2:], threshold=t)``: bilinear interpolation to
    the target's size, ReLU, normalisation over the whole full-size map, absent classes left out.
    Each pixel goes into one cell of a table (how many thresholds its score exceeds, true class,
    strongest class); cumulative sums of the table are the confusion matrices of all thresholds.

    Choosing a threshold reads pixel masks: the split it was chosen on belongs into the
    ``threshold_source`` of the :class:`EvaluationProtocol`.

    Args:
        num_classes: C = K + 1, counting background.
        thresholds: ascending, default 0.00, 0.01, ..., 0.99.
        ignore_index: target id that is not scored; outside ``[0, C)``.
        absent: classes left out of the mean, as in :class:`SegmentationEvaluator`.
        normalize: "minmax", or None for scores that are thresholded as they are, after the ReLU.

    Raises:
        ValueError: fewer than 2 classes, an unknown option, or thresholds that are negative or do
            not ascend.

    Example:
        >>> import torch
        >>> sweep = ThresholdSweep(2, thresholds=(0.2, 0.5, 0.8))
        >>> cam = torch.tensor([[[[0.0, 0.4, 0.6, 1.0]]]])
        >>> sweep.update(cam, torch.ones(1, 1), torch.tensor([[[0, 0, 1, 1]]]))
        >>> result = sweep.compute()
        >>> round(result.best_threshold, 2), result.best
        (0.5, 1.0)
    """

    def __init__(
        self,
        num_classes: int,
        *,
        thresholds: Sequence[float] | None = None,
        ignore_index: int = 255,
        absent: Absent = "both",
        normalize: Literal["minmax"] | None = "minmax",
    ) -> None:
        check_int("num_classes", num_classes)
        if num_classes < 2:
            raise ValueError(f"num_classes must be >= 2, got {num_classes}.")
        if normalize not in ("minmax", None):
            raise ValueError(f"normalize must be 'minmax' or None, got {normalize!r}.")
        if thresholds is None:
            thresholds = [t / 100 for t in range(100)]
        check_sequence("thresholds", thresholds)
        for value in thresholds:
            check_number("thresholds", value)
        values = list(thresholds)
        ascends = all(a < b for a, b in pairwise(values))
        if not values or not values[0] >= 0 or not ascends:
            raise ValueError(f"thresholds must be >= 0 and ascend, got {values}.")
        self.thresholds = torch.tensor(values, dtype=torch.float64)
        self._levels = self.thresholds
        self.normalize: Literal["minmax"] | None = normalize
        super().__init__(
            (len(values) + 1, num_classes, num_classes - 1),
            num_classes=num_classes,
            ignore_index=ignore_index,
            absent=absent,
        )

    def update(self, cam: Tensor, labels: Tensor, target: Tensor) -> None:
        """Count one batch; images of different sizes come one by one.

        Time is O(B P H W) with P classes present in an image, whatever the number of thresholds.
        Peak memory is about 30 bytes per pixel of the targets: 97 MiB for 16 of 448 x 448.

        Args:
            cam: ``(B, K, h, w)`` scores, normalised or not.
            labels: ``(B, K)`` multi-hot.
            target: ``(B, H, W)`` class ids or ``ignore_index``, any size.

        Raises:
            TypeError: ``cam`` is not floating point or ``target`` not integer.
            ValueError: a shape or device is wrong, ``cam`` is not finite or an id is impossible.
        """
        k = self.num_classes - 1
        check_shape("cam", cam, "B K h w", K=k)
        check_floating("cam", cam)
        check_finite("cam", cam)
        check_labels(labels, batch=len(cam), num_classes=k, device=cam.device)
        check_shape("target", target, "B H W", B=len(cam))
        check_integer("target", target)
        check_same_device("target", target, "cam", cam)
        if not len(cam):
            return
        folded = fold(target, num_classes=k + 1, ignore_index=self.ignore_index)
        invalid = (folded == k + 2).sum()
        self.check_ids(invalid, pred=None, target=target)

        x = at_least_float32(cam.detach())
        # As cam_to_label compares score <= t, in the precision of the score.
        if self._levels.device != x.device or self._levels.dtype != x.dtype:
            self._levels = self.thresholds.to(x)
        bins = len(self.thresholds) + 1
        zeros, size = x.new_zeros(len(x)), (target.shape[-2], target.shape[-1])
        total = torch.zeros((bins, k + 1, k), dtype=torch.int64, device=x.device)
        for part in strongest(x, labels, zeros, size, relu=True, minmax=self.normalize == "minmax"):
            exceeded = torch.bucketize(part.best, self._levels, right=False)
            row = exceeded * (k + 2) + folded[part.images].clamp_max(k + 1)
            index = row * k + (part.label.long() - 1).clamp_min_(0)
            table = count(index.flatten(), bins * (k + 2) * k).view(bins, k + 2, k)
            total += table[:, : k + 1]
        self.add(total, invalid)

    def compute(self) -> SweepResult:
        """Score everything counted so far by this process (see ``all_reduce`` for the others).

        Raises:
            ValueError: targets on a GPU held impossible ids.
        """
        self._check_counted()
        counts = self.counts.cpu()
        below = counts.cumsum(0)[:-1]
        foreground = counts.sum(0) - below
        confusion = torch.cat([below.sum(-1, keepdim=True), foreground], -1)
        scores = rates(confusion, absent=self.absent)
        at = int(scores.miou.nan_to_num(-1.0).argmax())
        return SweepResult(
            thresholds=self.thresholds.clone(),
            curve=scores.miou,
            best_threshold=float(self.thresholds[at]),
            best=float(scores.miou[at]),
            iou=scores.iou,
        )

    def _settings(self) -> tuple[object, ...]:
        return (*super()._settings(), tuple(self.thresholds.tolist()), self.normalize)
