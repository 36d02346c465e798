"""Examine a data set before any GPU time is spent: every fault found, named and counted."""

import os
import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal, cast

from wsss_blocks._optional import require
from wsss_blocks._parallel import ordered_map
from wsss_blocks._validate import check_choice, check_int
from wsss_blocks.data._doctor.duplicates import same_bytes, same_looks
from wsss_blocks.data._doctor.files import Seen, check_files
from wsss_blocks.data._doctor.kinds import KINDS, Finding
from wsss_blocks.data._doctor.layout import discover
from wsss_blocks.data._doctor.matching import Matched, SplitCounts, match
from wsss_blocks.data._doctor.report import Examination
from wsss_blocks.data._label_tables import check_class_names

__all__ = [
    "Examination",
    "Finding",
    "Interrupted",
    "SplitCounts",
    "examine",
    "examine_with",
]

Running = Generator[Seen, None, None]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while images were read; ``examination`` is what was found so far."""

    def __init__(self, examination: Examination) -> None:
        super().__init__("interrupted")
        self.examination = examination


def examine(
    root: str | Path,
    *,
    layout: Literal["auto", "voc", "coco", "context", "ade20k", "folder"] = "auto",
    labels: str | Path | None = None,
    masks: str | Path | None = None,
    names: Sequence[str] | None = None,
    ignore: Collection[str] = (),
    workers: int | None = None,
) -> Examination:
    """Look for everything that is wrong with a data set, without changing it.

    Each image of each split, and its mask if there is one, is read and decoded once, by threads;
    what is kept of an image does not depend on its size. The kinds of findings are listed in
    :doc:`/guides/doctor`.

    Args:
        root: the folder that the data set would be opened with.
        layout: how it is laid out, as for :func:`open_dataset`; ``"auto"`` looks.
        labels: a label file, instead of the labels in ``root``.
        masks: the folder of the masks, instead of the one in ``root``.
        names: the classes; by default those of the official data set or of the labels.
        ignore: kinds of findings to leave out.
        workers: number of threads; by default one for each CPU, at most 16.

    Returns:
        The findings, counted, and what was examined.

    Raises:
        FileNotFoundError: ``root`` is no folder or not laid out like that, or ``labels`` or
            ``masks`` are not there.
        ValueError: an unknown layout or kind, ``workers < 1``, or no images at all.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.data import DIGIT_NAMES, write_voc_layout
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     voc = write_voc_layout(folder, train=60, val=3)
        ...     _ = (voc / "JPEGImages" / "val_00001.jpg").write_bytes(b"")
        ...     found = examine(voc, names=DIGIT_NAMES)
        >>> found.counts, found.images, Path(found.findings[0].path).name
        ({'empty-file': 1}, 63, 'val_00001.jpg')
    """
    return examine_with(
        lambda seen, total: seen,
        root,
        layout=layout,
        labels=labels,
        masks=masks,
        names=names,
        ignore=ignore,
        workers=workers,
    )


def examine_with(
    watch: Callable[[Iterable[Seen], int], Iterable[Seen]],
    root: str | Path,
    *,
    layout: str,
    labels: str | Path | None,
    masks: str | Path | None,
    names: Sequence[str] | None,
    ignore: Collection[str],
    workers: int | None,
) -> Examination:
    """Examine, with ``watch`` seeing images pass (a progress bar); may raise Interrupted."""
    for kind in ignore:
        check_choice("ignore", kind, KINDS)
    workers = min(os.cpu_count() or 1, 16) if workers is None else workers
    check_int("workers", workers, least=1)
    require("PIL.Image", extra="cli", what="examine").init()  # its plugins, before the threads
    found = discover(
        Path(root),
        layout=layout,
        labels=None if labels is None else Path(labels),
        masks=None if masks is None else Path(masks),
        names=None if names is None else check_class_names(names),
    )
    matched = match(found)
    seen: dict[str, Seen] = {}
    complete = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, of files that are reported here
        check = partial(check_files, names=found.names)
        try:
            results = cast(Running, ordered_map(check, matched.items, workers=workers))
            with closing(results):
                for one in watch(results, len(matched.items)):
                    seen[one.item.image] = one
        except KeyboardInterrupt:
            complete = False
    examination = Examination(
        root=str(found.root),
        layout=found.kind,
        names=found.names,
        splits=matched.splits,
        images=len(seen),
        findings=_sorted(matched, seen, ignore),
        complete=complete,
    )
    if not complete:
        raise Interrupted(examination)
    return examination


def _sorted(matched: Matched, seen: dict[str, Seen], ignore: Collection[str]) -> list[Finding]:
    findings = matched.findings + [f for one in seen.values() for f in one.findings]
    findings += same_looks(matched.twins, seen)
    findings += same_bytes(seen.values(), matched.uses)
    order = {kind: number for number, kind in enumerate(KINDS) if kind not in ignore}
    kept = (finding for finding in findings if finding.kind in order)
    return sorted(kept, key=lambda f: (order[f.kind], f.path, f.detail))
