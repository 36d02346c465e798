"""Count pairs of mask files in processes: numpy alone, no torch to load."""

import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsss_blocks.data._mask_files import look_up_ids, read_mask_ids
from wsss_blocks.ops.mask_pairs import (
    border_width,
    boundary_counts,
    mask_digest,
    pair_runs,
    pixel_counts,
    region_counts,
    target_digest,
)

__all__ = ["Counting", "MaskFiles", "PairCounted", "count_pairs"]

_AT_ONCE = 128  # pairs that a process is handed
_AHEAD = 256  # chunks

Mask = NDArray[np.integer[Any]]


class MaskFiles(NamedTuple):
    """The predicted and the true mask of an image.

    Attributes:
        id: of the image.
        prediction: file of an indexed or grey mask.
        truth: likewise, of the same size.
    """

    id: str
    prediction: Path
    truth: Path


class Counting(NamedTuple):
    """How pairs are counted; the words of :class:`~wsss_blocks.metrics.SplitEvaluator`."""

    classes: int
    ignored: int
    undecided: str
    boundary_ratio: float | None
    lookup: NDArray[np.uint8] | None


class PairCounted(NamedTuple):
    """What one pair adds: cells of its confusion matrix that are not 0, and so on."""

    id: str
    cells: NDArray[np.int64]
    pixels: NDArray[np.int64]
    boundary: NDArray[np.int64] | None
    digest: bytes


def count_pairs(
    files: Sequence[MaskFiles], how: Counting, *, workers: int
) -> Iterator[PairCounted]:
    """Count pairs in their order, in processes if there is more than one worker.

    They begin at once, while the caller may still load torch, and are ahead of who takes the counts
    by at most 256 chunks: some kilobytes for each pair.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}.")
    chunks = [files[at : at + _AT_ONCE] for at in range(0, len(files), _AT_ONCE)]
    workers = min(workers, len(chunks))
    if workers <= 1:
        return (counted for chunk in chunks for counted in _count(chunk, how))
    parts = _in_processes(chunks, how, workers)
    next(parts)  # they begin; from here on, whoever drops the iterator ends them
    return chain.from_iterable(parts)


def _in_processes(
    chunks: Sequence[Sequence[MaskFiles]], how: Counting, workers: int
) -> Iterator[list[PairCounted]]:
    # Started anew, not forked: a fork would hold what torch has loaded, and its locks.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_settle_in)
    rest = iter(chunks)
    try:
        waiting = deque(pool.submit(_count, chunk, how) for chunk in islice(rest, _AHEAD))
        yield []
        while waiting:
            yield waiting.popleft().result()
            for chunk in islice(rest, 1):
                waiting.append(pool.submit(_count, chunk, how))
    except BrokenProcessPool as error:
        raise OSError("a process that counted was ended from outside: out of memory?") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _settle_in() -> None:
    """Leave Ctrl-C to the process that waits for this one, and keep memory that is freed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Once a large block was freed, glibc gives smaller ones back to the system no more: a third of
    # the time went into asking for the pages of each mask anew.
    bytes(2**24)


def _count(files: Sequence[MaskFiles], how: Counting) -> list[PairCounted]:
    return [_count_pair(pair, how) for pair in files]


def _count_pair(pair: MaskFiles, how: Counting) -> PairCounted:
    truth, pred = read_mask_ids(pair.truth), read_mask_ids(pair.prediction)
    if truth.shape != pred.shape:
        raise ValueError(
            f"{pair.prediction} must have the size {truth.shape} of {pair.truth}, got {pred.shape}."
        )
    truth = look_up_ids(truth, how.lookup, pair.truth)
    runs = pair_runs(pred, truth)
    digest = mask_digest(truth) if runs is None else target_digest(runs, truth.shape)
    if how.undecided != "refused" and (pred == how.ignored).any():
        pred, truth = _decided(pred, truth, how)
        runs = pair_runs(pred, truth)
    if runs is None:
        found = pixel_counts(pred, truth, how.classes, ignored=how.ignored)
    else:
        found = region_counts(runs, how.classes, ignored=how.ignored)
    if found.invalid:
        raise ValueError(_impossible(pair, pred, truth, how))
    boundary = None
    if how.boundary_ratio is not None:
        width = border_width(truth.shape, how.boundary_ratio)
        boundary = boundary_counts(pred, truth, how.classes, ignored=how.ignored, width=width)
    flat = found.counts.ravel()
    cells = np.flatnonzero(flat)
    near = None if boundary is None else boundary.counts
    return PairCounted(pair.id, cells, flat[cells], near, digest)


def _decided(pred: Mask, truth: Mask, how: Counting) -> tuple[Mask, Mask]:
    empty = pred == how.ignored
    if how.undecided == "background":
        return np.where(empty, 0, pred).astype(pred.dtype), truth
    return pred, np.where(empty, how.ignored, truth).astype(truth.dtype)


def _impossible(pair: MaskFiles, pred: Mask, truth: Mask, how: Counting) -> str:
    def odd(ids: Mask) -> list[int]:
        ids = ids[truth != how.ignored]
        return sorted(set(ids[(ids < 0) | (ids >= how.classes)].tolist()))

    wanted = f"ids in [0, {how.classes}) wherever the truth is not {how.ignored}"
    if odd(truth):
        return f"{pair.truth} must hold {wanted}, got {odd(truth)[:5]}."
    hint = ""
    if how.ignored in odd(pred):
        hint = " (undecided pixels: score them as background, or leave them out, and say so)"
    return f"{pair.prediction} must hold {wanted}, got {odd(pred)[:5]}{hint}."
