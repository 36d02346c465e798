"""Score mask files against mask files: processes read and count, memory does not grow."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from wsss_blocks._validate import check_int
from wsss_blocks.cli._mask_pairs import Counting, MaskFiles, PairCounted, count_pairs
from wsss_blocks.metrics import SplitEvaluator
from wsss_blocks.ops.mask_pairs import hash_digests

__all__ = ["MaskFiles", "add_counted", "evaluate_files"]

_TOGETHER = 64  # images whose counts are added at once


def evaluate_files(
    files: Sequence[MaskFiles],
    evaluator: SplitEvaluator,
    *,
    lookup: Tensor | None = None,
    workers: int = 1,
    watch: Callable[[Iterable[PairCounted]], Iterable[PairCounted]] = iter,
) -> str:
    """Count the masks of a split.

    With several workers a script needs the usual ``if __name__ == "__main__":``, as processes are
    started anew. They load numpy and pillow, not torch.

    Args:
        files: of the images.
        evaluator: counts them; its ``compute`` gives the scores.
        lookup: ``(256,)`` uint8 from the ids in the true masks to the class ids, as the
            ``mask_ids`` of a data set; None where they are the same.
        workers: processes that read and count; 1 does it in this one.
        watch: sees each image as it is counted, as a progress bar wants.

    Returns:
        What :func:`~wsss_blocks.metrics.hash_masks` gives for the true masks.

    Raises:
        FileNotFoundError: a mask is not there.
        OSError: it cannot be read.
        ValueError: the masks of an image differ in size, or hold impossible ids (the message names
            the file), or ``workers < 1``.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.data import write_voc_layout
        >>> evaluator = SplitEvaluator(11)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     masks = write_voc_layout(folder, train=2, val=1) / "SegmentationClass"
        ...     pairs = [MaskFiles(path.stem, path, path) for path in sorted(masks.iterdir())]
        ...     _ = evaluate_files(pairs, evaluator)
        >>> evaluator.compute().miou
        1.0
    """
    check_int("workers", workers, least=1)
    how = Counting(
        classes=evaluator.regions.num_classes,
        ignored=evaluator.regions.ignore_index,
        undecided=evaluator.undecided,
        boundary_ratio=None if evaluator.boundary is None else evaluator.boundary.ratio,
        lookup=None if lookup is None else lookup.numpy(),
    )
    return add_counted(evaluator, watch(count_pairs(files, how, workers=workers)))


def add_counted(evaluator: SplitEvaluator, pairs: Iterable[PairCounted]) -> str:
    """Add what processes counted; return the hash of the true masks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # others would take the cores from the processes, waiting for work
    try:
        return _add(evaluator, iter(pairs))
    finally:
        torch.set_num_threads(threads)


def _add(evaluator: SplitEvaluator, pairs: Iterator[PairCounted]) -> str:
    regions, digests = evaluator.regions, []
    while some := list(islice(pairs, _TOGETHER)):
        confusion = torch.zeros(len(some), *regions.counts.shape, dtype=torch.int64)
        for table, pair in zip(confusion.view(len(some), -1), some, strict=True):
            table[torch.from_numpy(pair.cells)] = torch.from_numpy(pair.pixels)
        near = [pair.boundary for pair in some if pair.boundary is not None]
        boundary = torch.from_numpy(np.stack(near)) if near else None
        evaluator.add([pair.id for pair in some], confusion, boundary)
        digests += [pair.digest for pair in some]
    return hash_digests(digests)
