"""Integer counts on the device that merge over batches, evaluators and processes."""

import copy
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from wsss_blocks._validate import (
    check_choice,
    check_int,
    check_integer,
    check_same_device,
    check_sequence,
    values_are_checked,
)
from wsss_blocks.distributed import sum_over_ranks
from wsss_blocks.ops.mask_pairs import PairCounts

__all__ = [
    "Absent",
    "Counts",
    "Rates",
    "check_pair",
    "class_iou",
    "fold",
    "mean_iou",
    "rates",
    "with_names",
]

Absent = Literal["both", "target"]
Undecided = Literal["refused", "ignored", "background"]


class Rates(NamedTuple):
    """Per-class and mean rates of confusion matrices ``(..., C, C)``, NaN where undefined."""

    iou: Tensor
    precision: Tensor
    recall: Tensor
    miou: Tensor
    mfpr: Tensor
    mfnr: Tensor
    pixel_accuracy: Tensor


def rates(confusion: Tensor, *, absent: Absent) -> Rates:
    """Turn confusion matrices (rows: target, columns: prediction) into float64 rates."""
    matrix = confusion.double()
    tp = matrix.diagonal(dim1=-2, dim2=-1)
    in_target, in_pred = matrix.sum(-1), matrix.sum(-2)
    union = in_target + in_pred - tp
    counted = in_target > 0 if absent == "target" else union > 0

    def ratio(part: Tensor, whole: Tensor, where: Tensor) -> Tensor:
        return torch.where(where, part / whole.clamp_min(1), torch.nan)

    iou = class_iou(tp, in_target, in_pred, absent=absent)
    total = in_target.sum(-1)
    return Rates(
        iou=iou,
        precision=ratio(tp, in_pred, in_pred > 0),
        recall=ratio(tp, in_target, in_target > 0),
        miou=iou.nanmean(-1),
        mfpr=ratio(in_pred - tp, union, counted).nanmean(-1),
        mfnr=ratio(in_target - tp, union, counted).nanmean(-1),
        pixel_accuracy=ratio(tp.sum(-1), total, total > 0),
    )


class Counts:
    """Base of the streaming metrics: one int64 table, and how many pixels could not be counted.

    Values are looked at once per ``update`` on a CPU. On a GPU that would cost a sync, so pixels
    with impossible ids are only counted there, and ``compute`` raises if there were any.
    """

    def __init__(
        self, shape: tuple[int, ...], *, num_classes: int, ignore_index: int, absent: Absent
    ) -> None:
        check_int("num_classes", num_classes)
        check_int("ignore_index", ignore_index)
        if num_classes < 1:
            raise ValueError(f"num_classes must be >= 1, got {num_classes}.")
        if 0 <= ignore_index < num_classes:
            raise ValueError(
                f"ignore_index must lie outside [0, {num_classes}), got {ignore_index}."
            )
        check_choice("absent", absent, ("both", "target"))
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.absent: Absent = absent
        self.counts = torch.zeros(shape, dtype=torch.int64)
        self.invalid = torch.zeros((), dtype=torch.int64)

    def reset(self) -> None:
        """Forget everything that was counted."""
        self.counts = torch.zeros_like(self.counts)
        self.invalid = torch.zeros_like(self.invalid)

    def to(self, device: torch.device | str) -> Self:
        """Move the state; ``update`` moves it to the device of its arguments by itself."""
        self.counts, self.invalid = self.counts.to(device), self.invalid.to(device)
        return self

    def merge(self, other: Self) -> None:
        """Add what ``other`` counted, as if its images had been given to this object.

        Raises:
            ValueError: the two count different things.
        """
        if self._settings() != other._settings():
            raise ValueError(
                f"other must have the settings {self._settings()}, got {other._settings()}."
            )
        self.add(other.counts.to(self.counts.device), other.invalid.to(self.counts.device))

    def all_reduce(self) -> Self:
        """Return a copy that holds the counts of all processes; this object stays as it is.

        All ranks must call it. With NCCL a rank that saw no image needs ``to(device)`` first.
        """
        merged = copy.copy(self)
        merged.counts, merged.invalid = sum_over_ranks(self.counts), sum_over_ranks(self.invalid)
        return merged

    def add(self, counts: Tensor, invalid: Tensor) -> None:
        """Add a table of the shape of this one, and the number of impossible pixels."""
        self.counts = self.counts.to(counts.device) + counts
        self.invalid = self.invalid.to(counts.device) + invalid

    def check_ids(self, invalid: Tensor, *, pred: Tensor | None, target: Tensor) -> None:
        """Raise where ``invalid``, the number of impossible ids, is read and is not 0."""
        if not values_are_checked(target) or not bool(invalid):
            return
        wanted = f"ids in [0, {self.num_classes})"
        # int64: torch compares small integers with a scalar cut to their range.
        target, pred = target.long(), None if pred is None else pred.long()
        scored = target != self.ignore_index
        bad = target[scored & ((target < 0) | (target >= self.num_classes))]
        if len(bad):
            raise ValueError(
                f"target must hold {wanted} or ignore_index={self.ignore_index}, got {int(bad[0])}."
            )
        if pred is not None:
            bad = pred[scored & ((pred < 0) | (pred >= self.num_classes))]
            raise ValueError(
                f"pred must hold {wanted} wherever the target is scored, got {int(bad[0])}. "
                "To score a pseudo-label only where it commits itself, ignore those pixels in the "
                "target: target.masked_fill(pred == 255, 255)."
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the counts, to be saved or sent."""
        return {"counts": self.counts.clone(), "invalid": self.invalid.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over counts saved by ``state_dict``.

        Raises:
            ValueError: the saved table has another shape.
        """
        if state["counts"].shape != self.counts.shape:
            raise ValueError(
                f"counts must have shape {tuple(self.counts.shape)}, "
                f"got {tuple(state['counts'].shape)}."
            )
        self.counts, self.invalid = state["counts"].clone(), state["invalid"].clone()

    def _settings(self) -> tuple[object, ...]:
        return (type(self).__name__, self.num_classes, self.ignore_index, self.absent)

    def _check_counted(self) -> None:
        invalid = int(self.invalid)
        if invalid:
            raise ValueError(
                f"target and pred must hold ids in [0, {self.num_classes}) or, in the target, "
                f"ignore_index={self.ignore_index}: {invalid} pixels held another one."
            )


def fold(ids: Tensor, *, num_classes: int, ignore_index: int) -> Tensor:
    """Map ids to ``0..C-1``, ignored pixels to C and impossible ids to C + 1, as int64."""
    ids = ids.long()
    known = (ids >= 0) & (ids < num_classes)
    rest = torch.where(ids == ignore_index, num_classes, num_classes + 1)
    return torch.where(known, ids, rest)


def on_host(mask: Tensor) -> bool:
    """Tell whether numpy can count: a tensor on a CPU, not while compiling."""
    return mask.device.type == "cpu" and not torch.compiler.is_compiling()


def as_tensors(found: PairCounts) -> tuple[Tensor, Tensor]:
    """Return counts of numpy as tensors."""
    return torch.from_numpy(found.counts), torch.tensor(found.invalid)


def mean_iou(both: Tensor, target: Tensor, pred: Tensor, *, absent: Absent) -> Tensor:
    """Average the IoU over classes (the last axis); NaN where no class is counted."""
    return class_iou(both, target, pred, absent=absent).nanmean(-1)


def class_iou(both: Tensor, target: Tensor, pred: Tensor, *, absent: Absent) -> Tensor:
    """Return IoUs from float64 pixel counts, NaN for classes that are not counted."""
    union = target + pred - both
    counted = target > 0 if absent == "target" else union > 0
    return torch.where(counted, both / union.clamp_min(1), torch.nan)


def with_names(names: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
    """Return the names of the classes, by default their ids as text."""
    names = list(map(str, range(num_classes))) if names is None else names
    check_sequence("names", names)
    if len(names) != num_classes:
        raise ValueError(f"names must have {num_classes} entries, got {len(names)}.")
    return tuple(names)


def check_pair(pred: Tensor, target: Tensor) -> None:
    """Raise unless the two are masks of one shape on one device."""
    check_integer("pred", pred)
    check_integer("target", target)
    if pred.shape != target.shape or pred.ndim not in (2, 3):
        raise ValueError(
            "pred and target must both have shape (B, H, W) or (H, W), "
            f"got {tuple(pred.shape)} and {tuple(target.shape)}."
        )
    check_same_device("pred", pred, "target", target)
