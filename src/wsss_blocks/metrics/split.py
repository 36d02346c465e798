"""All scores of a split in one pass over its masks: regions, contours, images, and how sure."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from wsss_blocks._validate import check_choice
from wsss_blocks.distributed import gather_objects
from wsss_blocks.metrics._counts import Absent, Counts, Undecided, check_pair, mean_iou
from wsss_blocks.metrics.bootstrap import ImageBootstrap, Interval
from wsss_blocks.metrics.boundary import BoundaryEvaluator, BoundaryScores
from wsss_blocks.metrics.evaluator import SegmentationEvaluator, SegmentationScores

__all__ = ["ImageScore", "SplitEvaluator", "SplitScores"]


_AT_ONCE = 64  # images that are scored together


class ImageScore(NamedTuple):
    """How well one image was predicted.

    Attributes:
        id: of the image.
        miou: mean IoU over the classes in its prediction or target; NaN if no pixel is scored.
    """

    id: str
    miou: float


@dataclass(frozen=True, eq=False)
class SplitScores:
    """Scores of a split, as fractions.

    Attributes:
        regions: IoU, precision and recall of each class, and their means.
        boundary: boundary IoU; None if it was not asked for.
        interval: of the mIoU over images; None if it was not asked for.
        images: score of each image, in the order they came (per process, in a group).
    """

    regions: SegmentationScores
    boundary: BoundaryScores | None
    interval: Interval | None
    images: tuple[ImageScore, ...]

    @property
    def miou(self) -> float:
        """Mean IoU over all pixels of all images."""
        return self.regions.miou

    def summary(self) -> dict[str, float]:
        """Return the scalar scores by name."""
        regions = self.regions.summary()
        return regions if self.boundary is None else regions | {"boundary_iou": self.boundary.mean}

    def per_class(self) -> list[dict[str, str | float]]:
        """Return a row for each class: ``class, iou, precision, recall`` and ``boundary_iou``."""
        columns: dict[str, Sequence[str | float]] = {
            "class": self.regions.names,
            "iou": self.regions.iou.tolist(),
            "precision": self.regions.precision.tolist(),
            "recall": self.regions.recall.tolist(),
        }
        if self.boundary is not None:
            columns["boundary_iou"] = self.boundary.iou.tolist()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def table(self) -> str:
        """Return a table of per-class scores and means in per cent, for people to read."""
        rows = self.per_class()
        titles = {
            "miou": "mIoU",
            "mfpr": "mFPR",
            "mfnr": "mFNR",
            "pixel_accuracy": "pixel accuracy",
            "boundary_iou": "boundary IoU",
        }
        means = {titles[name]: value for name, value in self.summary().items()}
        width = max(map(len, (*self.regions.names, *means)))
        heads = {"iou": "IoU", "boundary_iou": "boundary"}
        columns = [name for name in rows[0] if name != "class"]
        lines = [f"{'class':{width}}" + "".join(f"{heads.get(n, n):>10}" for n in columns)]
        lines += [
            f"{row['class']:{width}}" + "".join(f"{100 * float(row[n]):10.2f}" for n in columns)
            for row in rows
        ]
        lines += [f"{name:{width}}{100 * value:10.2f}" for name, value in means.items()]
        if self.interval is not None:
            low, high = 100 * self.interval.low, 100 * self.interval.high
            lines[len(rows) + 1] += f"   ({low:.2f} to {high:.2f}: {self.interval.level:.0%} of "
            lines[len(rows) + 1] += f"{len(self.interval.replicates)} resamplings of the images)"
        return "\n".join(lines)


class SplitEvaluator:
    """Score the masks of a split, one image at a time.

    Put together from :class:`SegmentationEvaluator`, :class:`BoundaryEvaluator` and
    :class:`ImageBootstrap`. Memory is that of their tables, and a name and a number per image.

    Args:
        num_classes: C, counting background.
        names: C class names, background first; default the ids as text.
        ignore_index: target id that is not scored.
        absent: classes left out of the means, as in :class:`SegmentationEvaluator`.
        undecided: what a prediction of ``ignore_index`` means where the target is scored: an error
            ("refused"), that the pixel is not scored ("ignored"; this rewards skipping what is
            hard), or "background".
        boundary: score boundary IoU too.
        replicates: of the bootstrap; 0 does without it.

    Raises:
        ValueError: as the three.

    Example:
        >>> import torch
        >>> evaluator = SplitEvaluator(2, names=("background", "cat"))
        >>> for name in ("a", "b"):
        ...     target = torch.eye(8, dtype=torch.uint8)
        ...     evaluator.update(name, target.roll(1, 0) if name == "a" else target, target)
        >>> scores = evaluator.compute()
        >>> round(scores.miou, 3), [round(image.miou, 3) for image in scores.images]
        (0.6, [0.375, 1.0])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        names: Sequence[str] | None = None,
        ignore_index: int = 255,
        absent: Absent = "both",
        undecided: Undecided = "refused",
        boundary: bool = True,
        replicates: int = 1000,
    ) -> None:
        check_choice("undecided", undecided, ("refused", "ignored", "background"))
        self.regions = SegmentationEvaluator(
            num_classes, names=names, ignore_index=ignore_index, absent=absent
        )
        self.boundary = (
            BoundaryEvaluator(num_classes, names=names, ignore_index=ignore_index, absent=absent)
            if boundary
            else None
        )
        self.bootstrap = (
            ImageBootstrap(num_classes, replicates=replicates, absent=absent)
            if replicates
            else None
        )
        self.undecided: Undecided = undecided
        self.images: list[ImageScore] = []
        self._waiting: list[tuple[str, Tensor, Tensor | None]] = []

    def update(self, name: str, pred: Tensor, target: Tensor) -> None:
        """Count one image.

        Args:
            name: id of the image; the bootstrap needs it to be its own.
            pred: ``(H, W)`` class ids, any integer dtype.
            target: class ids or ``ignore_index``, the same shape.

        Raises:
            TypeError: a mask does not hold integers.
            ValueError: the shapes or devices differ, or an id is impossible.
        """
        check_pair(pred, target)
        ignore = self.regions.ignore_index
        # int64: torch compares small integers with a scalar cut to their range.
        if self.undecided == "background":
            pred = pred.masked_fill(pred.long() == ignore, 0)
        elif self.undecided == "ignored":
            target = target.long().masked_fill(pred.long() == ignore, ignore)
        confusion, invalid = self.regions.count(pred, target)
        self.regions.check_ids(invalid, pred=pred, target=target)
        self.regions.invalid = self.regions.invalid.to(invalid.device) + invalid
        boundary = None if self.boundary is None else self.boundary.count(pred, target)[0]
        self._waiting.append((name, confusion, boundary))
        if len(self._waiting) == _AT_ONCE:
            self._settle()

    def add(self, ids: Sequence[str], confusion: Tensor, boundary: Tensor | None) -> None:
        """Add images that were counted elsewhere.

        Args:
            ids: of B images.
            confusion: ``(B, C, C)`` integers, as :meth:`SegmentationEvaluator.count` of each.
            boundary: ``(B, 3, C)``, as :meth:`BoundaryEvaluator.count`; None if it is not scored.
        """
        self._settle()  # those that came before
        nothing = self.regions.invalid.new_zeros(())
        self.regions.add(confusion.sum(0), nothing)
        if self.boundary is not None and boundary is not None:
            self.boundary.add(boundary.sum(0), nothing)
        if self.bootstrap is not None:
            self.bootstrap.update(ids, confusion)
        both, target, pred = confusion.diagonal(dim1=1, dim2=2), confusion.sum(2), confusion.sum(1)
        miou = mean_iou(both.double(), target.double(), pred.double(), absent="both")
        self.images += map(ImageScore, ids, miou.tolist())

    def merge(self, other: Self) -> None:
        """Add what ``other`` counted.

        Raises:
            ValueError: the two count different things.
        """
        if self._settings() != other._settings():
            raise ValueError(
                f"other must have the settings {self._settings()}, got {other._settings()}."
            )
        self._settle()
        other._settle()
        for mine, theirs in zip(self._parts(), other._parts(), strict=True):
            if mine is not None and theirs is not None:
                mine.merge(theirs)
        self.images += other.images

    def all_reduce(self) -> Self:
        """Return a copy that holds the counts of all processes; all ranks must call it."""
        self._settle()
        merged = copy.copy(self)
        merged.regions = self.regions.all_reduce()
        merged.boundary = None if self.boundary is None else self.boundary.all_reduce()
        merged.bootstrap = None if self.bootstrap is None else self.bootstrap.all_reduce()
        merged.images = [image for share in gather_objects(self.images) for image in share]
        merged._waiting = []
        return merged

    def compute(self) -> SplitScores:
        """Score everything counted so far by this process (see ``all_reduce`` for the others).

        Raises:
            ValueError: masks on a GPU held impossible ids.
        """
        self._settle()
        return SplitScores(
            regions=self.regions.compute(),
            boundary=None if self.boundary is None else self.boundary.compute(),
            interval=None if self.bootstrap is None else self.bootstrap.compute(),
            images=tuple(self.images),
        )

    def _parts(self) -> tuple[Counts | None, ...]:
        return self.regions, self.boundary, self.bootstrap

    def _settings(self) -> tuple[object, ...]:
        return (self.undecided, *(part and part._settings() for part in self._parts()))

    def _settle(self) -> None:
        """Add the images that wait for it: one by one it would take several times as long."""
        if self._waiting:
            ids, confusion, boundary = zip(*self._waiting, strict=True)
            near = None if self.boundary is None else torch.stack(boundary)
            self._waiting = []
            self.add(ids, torch.stack(confusion), near)
