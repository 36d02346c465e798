"""Count what two masks have in common, in numpy alone: processes that only count need no torch."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BORDER_RATIO",
    "PairCounts",
    "Runs",
    "border_width",
    "boundary_counts",
    "contour_band",
    "hash_digests",
    "mask_digest",
    "pair_runs",
    "pixel_counts",
    "region_counts",
    "target_digest",
]

BORDER_RATIO = 0.02  # width of the border, as a share of the diagonal: that of Boundary IoU's paper
Mask = NDArray[Any]  # of integers
ArrayT = TypeVar("ArrayT", bound=Any)


class PairCounts(NamedTuple):
    """Counts of pixels, and how many of them held an impossible id."""

    counts: NDArray[np.int64]
    invalid: int


class Runs(NamedTuple):
    """Runs of equal pairs of ids, in the order of the pixels: masks hold few."""

    pred: Mask
    target: Mask
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]


def pair_runs(pred: Mask, target: Mask) -> Runs | None:
    """Find the runs of two masks; None if there are so many that counting pixels is faster."""
    x, y = pred.ravel(), target.ravel()
    if not len(x):
        return None
    changes = x[1:] != x[:-1]
    changes |= y[1:] != y[:-1]
    if np.count_nonzero(changes) > len(x) // 16:
        return None
    last = np.flatnonzero(changes)
    starts = np.empty(len(last) + 1, np.int64)
    starts[0], starts[1:] = 0, last
    starts[1:] += 1
    lengths = np.empty_like(starts)
    lengths[:-1], lengths[-1] = starts[1:], len(x)
    lengths -= starts
    return Runs(x[starts], y[starts], starts, lengths)


def region_counts(runs: Runs, classes: int, *, ignored: int) -> PairCounts:
    """Count the confusion matrix ``(C, C)``, rows target."""
    return _confusion(runs.target, runs.pred, runs.lengths, classes, ignored)


def pixel_counts(pred: Mask, target: Mask, classes: int, *, ignored: int) -> PairCounts:
    """Count the same pixel by pixel."""
    if target.dtype == pred.dtype == np.uint8:  # bytes are folded once they are counted
        index = target.ravel().astype(np.uint16)
        index <<= 8
        index |= pred.ravel()
        table = np.bincount(index, minlength=2**16)
        pairs = np.flatnonzero(table)
        return _confusion(pairs >> 8, pairs & 255, table[pairs], classes, ignored)
    return _confusion(target.ravel(), pred.ravel(), None, classes, ignored)


def mask_digest(ids: Mask) -> bytes:
    """Hash one ``(H, W)`` mask, whatever its integers: see ``metrics.hash_masks``."""
    flat = ids.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))[: len(flat)]
    return _digest(ids.shape, starts, flat[starts])


def target_digest(runs: Runs, shape: tuple[int, ...]) -> bytes:
    """Return what :func:`mask_digest` gives for the target."""
    first = np.ones(len(runs.target), bool)
    first[1:] = runs.target[1:] != runs.target[:-1]
    return _digest(shape, runs.starts[first], runs.target[first])


def hash_digests(digests: Iterable[bytes]) -> str:
    """Join the digests of masks, in their order, to what ``metrics.hash_masks`` returns."""
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def _digest(shape: tuple[int, ...], starts: NDArray[np.int64], ids: Mask) -> bytes:
    digest = hashlib.sha256(repr(tuple(shape)).encode())
    digest.update(starts.astype("<i4").tobytes())
    digest.update(ids.astype("<i4").tobytes())
    return digest.digest()


def boundary_counts(
    pred: Mask, target: Mask, classes: int, *, ignored: int, width: int
) -> PairCounts:
    """Count pixels near contours ``(3, C)``: in both masks, in the target, in the prediction."""
    # The last bit of an id tells whether its pixel is near: runs can then be counted here, too.
    target = _marked(target, contour_band(target, width))
    pred = _marked(pred, contour_band(pred, width))
    runs = pair_runs(pred, target)
    columns, rows, _, lengths = runs or (pred.ravel(), target.ravel(), None, None)
    near_target, near_pred = rows & 1 == 1, columns & 1 == 1
    rows, columns = _fold(rows >> 1, classes, ignored), _fold(columns >> 1, classes, ignored)
    scored = rows != classes
    wrong = scored & ((rows > classes) | (columns >= classes))
    # C now stands for pixels far from a contour, C + 1 for those that are not scored.
    rows = np.where(scored & ~wrong, np.where(near_target, rows, classes), classes + 1)
    columns = np.where(near_pred, np.minimum(columns, classes), classes)
    table = _table(rows, columns, lengths, classes + 2)[: classes + 1]
    counts = table.diagonal()[:classes], table[:classes].sum(1), table[:, :classes].sum(0)
    invalid = np.count_nonzero(wrong) if lengths is None else lengths[wrong].sum()
    return PairCounts(np.stack(counts), int(invalid))


def _marked(mask: Mask, near: NDArray[np.bool_]) -> Mask:
    wide = np.int16 if mask.dtype == np.uint8 else np.int64
    ids = np.left_shift(mask, 1, dtype=wide)
    return np.bitwise_or(ids, near, out=ids)


def border_width(size: Sequence[int], ratio: float) -> int:
    """Return ``max(1, round(ratio * diagonal))`` of an image."""
    return max(1, round(ratio * math.hypot(*size)))


def contour_band(mask: ArrayT, width: int, *, like: Any = np) -> ArrayT:
    """Mark pixels ``(..., H, W)`` with another id, or the frame, at most ``width`` pixels away.

    ``like`` is numpy or torch. Windows of any length are joined from halves, all ids at once.
    """
    *batch, height, breadth = mask.shape
    # np.bool_, as there is no np.bool before numpy 2.
    kind = {"dtype": np.bool_} if like is np else {"dtype": like.bool, "device": mask.device}

    def padded(rows: int, columns: int, value: bool) -> Any:
        return like.full((*batch, rows, columns), value, **kind)

    # Where a pixel differs from the next one; beyond the frame everything differs.
    across = padded(height, breadth - 1 + 2 * width, True)
    across[..., width : width + breadth - 1] = mask[..., 1:] != mask[..., :-1]
    down = padded(height - 1 + 2 * width, breadth, True)
    down[..., width : width + height - 1, :] = mask[..., 1:, :] != mask[..., :-1, :]
    rows = padded(height + 2 * width, breadth, False)
    rows[..., width : width + height, :] = _any_of(across, 2 * width, axis=-1)
    # The window of rows is one longer than that of the changes between them.
    band: ArrayT = _any_of(rows[..., :-1, :] | down, 2 * width, axis=-2) | rows[..., 2 * width :, :]
    return band


def _any_of(flags: Any, length: int, *, axis: int) -> Any:
    """Tell of each window of ``length`` whether it has a flag, in log2(length) passes."""
    done = 1
    while done < length:
        step = min(done, length - done)
        if axis == -1:
            flags = flags[..., :-step] | flags[..., step:]
        else:
            flags = flags[..., :-step, :] | flags[..., step:, :]
        done += step
    return flags


def _confusion(
    rows: Mask, columns: Mask, lengths: NDArray[np.int64] | None, classes: int, ignored: int
) -> PairCounts:
    table = _table(
        _fold(rows, classes, ignored), _fold(columns, classes, ignored), lengths, classes + 2
    )
    confusion = table[:classes, :classes]
    return PairCounts(confusion, int(table.sum() - table[classes].sum() - confusion.sum()))


def _fold(ids: Mask, classes: int, ignored: int) -> NDArray[np.int64]:
    """Map ids to ``0..C-1``, ignored pixels to C and impossible ids to C + 1."""
    if ids.dtype == np.uint8:
        return _folded_bytes(classes, ignored)[ids]
    return _folded(ids.astype(np.int64), classes, ignored)


@lru_cache(maxsize=16)
def _folded_bytes(classes: int, ignored: int) -> NDArray[np.int64]:
    return _folded(np.arange(256), classes, ignored)


def _folded(ids: NDArray[np.int64], classes: int, ignored: int) -> NDArray[np.int64]:
    known = (ids >= 0) & (ids < classes)
    return np.where(known, ids, np.where(ids == ignored, classes, classes + 1))


def _table(
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    lengths: NDArray[np.int64] | None,
    side: int,
) -> NDArray[np.int64]:
    # Sums of float64 are exact up to 2^53 pixels.
    index = rows * side
    index += columns
    table = np.bincount(index, lengths, minlength=side * side)
    return table.astype(np.int64).reshape(side, side)
