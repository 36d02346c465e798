"""Streaming segmentation scores from one confusion matrix over all pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsss_blocks.metrics._counts import (
    Absent,
    Counts,
    as_tensors,
    check_pair,
    fold,
    on_host,
    rates,
    with_names,
)
from wsss_blocks.ops.counting import count, largest_byte
from wsss_blocks.ops.mask_pairs import pair_runs, region_counts

__all__ = ["SegmentationEvaluator", "SegmentationScores"]


@dataclass(frozen=True, eq=False)
class SegmentationScores:
    """Scores as fractions; NaN where nothing defines them.

    The means run over the classes that the evaluator's ``absent`` rule counts, and
    ``miou + mfpr + mfnr`` is 1.

    Attributes:
        miou: mean intersection over union.
        mfpr: mean share of false positives in the union.
        mfnr: mean share of false negatives in the union.
        pixel_accuracy: share of the scored pixels that are right.
        iou: ``(C,)`` float64, NaN for a class that is not counted.
        precision: ``(C,)`` float64, NaN for a class that is never predicted.
        recall: ``(C,)`` float64, NaN for a class that is not in the target.
        confusion: ``(C, C)`` int64 pixel counts, rows target, columns prediction.
        names: C class names, background first.
    """

    miou: float
    mfpr: float
    mfnr: float
    pixel_accuracy: float
    iou: Tensor
    precision: Tensor
    recall: Tensor
    confusion: Tensor
    names: tuple[str, ...]

    def summary(self) -> dict[str, float]:
        """Return the four scalar scores by name."""
        return {k: getattr(self, k) for k in ("miou", "mfpr", "mfnr", "pixel_accuracy")}

    def per_class(self) -> dict[str, float]:
        """Return the IoU of each class by its name."""
        return dict(zip(self.names, self.iou.tolist(), strict=True))

    def table(self) -> str:
        """Return a table of per-class scores in per cent, for people to read."""
        width = max(len(n) for n in (*self.names, "pixel accuracy"))
        columns = zip(self.names, self.iou, self.precision, self.recall, strict=True)
        lines = [f"{'class':{width}}     IoU    prec  recall"]
        lines += [
            f"{name:{width}} " + " ".join(f"{100 * float(v):7.2f}" for v in values)
            for name, *values in columns
        ]
        titles = ("mIoU", "mFPR", "mFNR", "pixel accuracy")
        means = zip(titles, self.summary().values(), strict=True)
        lines += [f"{name:{width}} {100 * value:7.2f}" for name, value in means]
        return "\n".join(lines)


class SegmentationEvaluator(Counts):
    r"""Count a confusion matrix over batches and score it.

    .. math::

        \mathrm{mIoU} = \frac{1}{|S|} \sum_{c \in S} \frac{TP_c}{U_c} \qquad
        \mathrm{mFPR} = \frac{1}{|S|} \sum_{c \in S} \frac{FP_c}{U_c} \qquad
        \mathrm{mFNR} = \frac{1}{|S|} \sum_{c \in S} \frac{FN_c}{U_c}

    with :math:`U_c = TP_c + FP_c + FN_c` summed over all pixels of all images, as the VOC and
    COCO protocols do; a mean of per-image scores is a different number.

    A prediction that holds ``ignore_index`` (a pseudo-label) where the target is scored is an
    error: leaving such pixels out rewards labels that skip what is hard, so do it on purpose, with
    ``target.masked_fill(pred == 255, 255)``.

    The state is int64 on the device of the masks; ``update`` does not wait for a GPU. Ids are
    checked in ``update`` on a CPU; on a GPU, impossible ones are counted and ``compute`` raises.

    Reference:
        mFPR and mFNR accompany mIoU in "DHR: Dual Features-Driven Hierarchical Rebalancing", ECCV
        2024, https://arxiv.org/abs/2404.00380. Their definition here is inferred: the three means
        add up to 1.

    Args:
        num_classes: C, counting background.
        ignore_index: target id that is not scored; outside ``[0, C)``.
        absent: classes left out of the means: those absent from prediction and target of all
            images ("both"), or from the target ("target": false classes then cost nothing).
        names: C class names, background first; default the ids as text.

    Raises:
        ValueError: ``ignore_index`` is a class, or ``names`` has another length.

    Example:
        >>> import torch
        >>> evaluator = SegmentationEvaluator(3)
        >>> pred = torch.tensor([[0, 1], [1, 2]])
        >>> evaluator.update(pred, torch.tensor([[0, 1], [0, 255]]))
        >>> scores = evaluator.compute()
        >>> round(scores.miou, 3), scores.iou.tolist()
        (0.5, [0.5, 0.5, nan])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int = 255,
        absent: Absent = "both",
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            (num_classes, num_classes),
            num_classes=num_classes,
            ignore_index=ignore_index,
            absent=absent,
        )
        self.names = with_names(names, num_classes)

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count one image or batch.

        One histogram of the pairs: time O(B H W), whatever the number of classes. Peak memory is 4
        bytes per pixel for ``uint8`` masks and 18 for ``int64``: 12 or 55 MiB for 16 masks of
        448 x 448.

        Args:
            pred: ``(B, H, W)`` or ``(H, W)`` class ids, any integer dtype.
            target: class ids or ``ignore_index``, the same shape.

        Raises:
            TypeError: a mask does not hold integers.
            ValueError: the shapes or devices differ, or an id is impossible.
        """
        check_pair(pred, target)
        confusion, invalid = self.count(pred, target)
        self.check_ids(invalid, pred=pred, target=target)
        self.add(confusion, invalid)

    def count(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return what :meth:`update` adds: the confusion matrix and the impossible pixels."""
        runs = pair_runs(pred.numpy(), target.numpy()) if on_host(target) else None
        if runs is not None:
            found = region_counts(runs, self.num_classes, ignored=self.ignore_index)
            return as_tensors(found)
        return self._count_pixels(pred, target)

    def _count_pixels(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        c, ignored = self.num_classes, self.ignore_index
        largest = largest_byte(pred)
        if c <= 256 and largest is not None and largest_byte(target) is not None:
            # Ignored and impossible bytes have cells of their own, which costs no pass.
            rows, width = 256, c if largest < c else 256
        else:
            rows = width = c + 2
            target = fold(target, num_classes=c, ignore_index=ignored)
            pred = fold(pred, num_classes=c, ignore_index=ignored)
            ignored = c
        cells = rows * width
        dtype = torch.int16 if cells < 2**15 else torch.int32 if cells < 2**31 else torch.int64
        index = target.to(dtype, copy=True).mul_(width).add_(pred)
        table = count(index.flatten(), cells).view(rows, width)
        confusion = table[:c, :c].clone()
        scored = table.sum()
        if 0 <= ignored < rows:
            scored = scored - table[ignored].sum()
        return confusion, scored - confusion.sum()

    def compute(self) -> SegmentationScores:
        """Score everything counted so far by this process (see ``all_reduce`` for the others).

        Raises:
            ValueError: masks on a GPU held impossible ids.
        """
        self._check_counted()
        confusion = self.counts.cpu()
        r = rates(confusion, absent=self.absent)
        return SegmentationScores(
            miou=float(r.miou),
            mfpr=float(r.mfpr),
            mfnr=float(r.mfnr),
            pixel_accuracy=float(r.pixel_accuracy),
            iou=r.iou,
            precision=r.precision,
            recall=r.recall,
            confusion=confusion,
            names=self.names,
        )
