"""Background threshold sweep: the mIoU at every threshold from one pass over the CAMs."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
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
from wsss_blocks.cam.normalize import scale_to_range
from wsss_blocks.metrics._counts import Absent, Counts, count, fold, rates

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
        score, strongest = self._strongest(at_least_float32(cam), labels > 0, target.shape[-2:])
        folded = fold(target, num_classes=k + 1, ignore_index=self.ignore_index)
        invalid = (folded == k + 2).sum()
        self._check_ids(invalid, pred=None, target=target)

        # As cam_to_label compares score <= t, in the precision of the score.
        if self._levels.device != score.device or self._levels.dtype != score.dtype:
            self._levels = self.thresholds.to(score)
        exceeded = torch.bucketize(score, self._levels, right=False)
        bins = len(self.thresholds) + 1
        index = (exceeded * (k + 2) + folded.clamp_max(k + 1)) * k + strongest
        table = count(index.flatten(), bins * (k + 2) * k).view(bins, k + 2, k)
        self._add(table[:, : k + 1], invalid)

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

    def _strongest(
        self, cam: Tensor, present: Tensor, size: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        # Present classes first, lowest id first: as many rounds as the fullest image has classes
        # (on a GPU, where reading that number is a sync, all K), never a (B, K, H, W) tensor.
        order = present.long().argsort(dim=1, descending=True, stable=True)
        rounds = int(present.sum(1).max()) if cam.device.type == "cpu" else cam.shape[1]
        image = torch.arange(len(cam), device=cam.device)
        best = cam.new_zeros(len(cam), *size)
        strongest = torch.zeros(best.shape, dtype=torch.int64, device=cam.device)
        for column in order.unbind(1)[:rounds]:
            # The arithmetic of cam_to_label, so that a score is not one ulp across a threshold.
            plane = cam[image, column][:, None]
            base = plane.amin((-2, -1), keepdim=True)
            plane = F.interpolate(plane - base, size=size, mode="bilinear", align_corners=False)
            score = (plane + base).relu()
            if self.normalize == "minmax":
                score = scale_to_range(score)
            score = torch.where(present[image, column][:, None, None], score[:, 0], 0)
            better = score > best
            best = torch.where(better, score, best)
            strongest = torch.where(better, column[:, None, None], strongest)
        return best, strongest
