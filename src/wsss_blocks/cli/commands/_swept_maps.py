"""Files of class maps counted against masks at every threshold, in threads."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from wsss_blocks._parallel import ordered_map
from wsss_blocks.cam import strongest_scores
from wsss_blocks.cli.commands._common import progress
from wsss_blocks.cli.commands._ground_truth import GroundTruth
from wsss_blocks.data import ClassMaps, WeakLabels, read_class_maps
from wsss_blocks.metrics import ThresholdSweep, hash_masks

__all__ = ["SweptMaps", "find_maps", "sweep_files"]

_MOST_SCORES = 4_000_000  # of all images together


class SweptMaps(NamedTuple):
    """What one pass over maps and masks gives.

    Attributes:
        sweep: the counts.
        masks_hash: of the masks, in the order of the ids.
        scores: at most 4 million of what is compared with the threshold, at the size of the maps:
            of each image every n-th, with the same number for each image.
        lacking: classes that labels name and that have no map, over all images.
    """

    sweep: ThresholdSweep
    masks_hash: str
    scores: Tensor
    lacking: int


def find_maps(folder: Path, ids: list[str]) -> list[Path | None]:
    """Find the file of each image: ``<id>.npz``, else ``<id>.npy``, else None."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of class maps at {folder}.")
    found: list[Path | None] = []
    for name in ids:
        candidates = (folder / f"{name}{suffix}" for suffix in (".npz", ".npy"))
        found.append(next((path for path in candidates if path.is_file()), None))
    return found


def sweep_files(
    truth: GroundTruth,
    files: list[Path],
    *,
    labels: WeakLabels | None,
    normalize: Literal["minmax"] | None,
    workers: int,
) -> SweptMaps:
    """Count one map file per mask. Memory does not grow with their number, but by the scores."""
    own = threading.local()
    sweeps: list[ThresholdSweep] = []
    most = max(1, _MOST_SCORES // len(files))

    # A table in each thread: with many classes it costs more to add up one for each image.
    def table() -> ThresholdSweep:
        if not hasattr(own, "sweep"):
            own.sweep = ThresholdSweep(len(truth.names) + 1, normalize=normalize)
            sweeps.append(own.sweep)
        found: ThresholdSweep = own.sweep
        return found

    def count(index: int) -> tuple[Tensor, Tensor, int]:
        maps, target = read_class_maps(files[index]), torch.from_numpy(truth.read(index))
        try:
            stored = maps.to_labels(len(truth.names))
            wanted = stored if labels is None else labels[truth.ids[index]][None]
            table().update(maps.to_dense(len(truth.names)), stored * wanted, target[None])
        except ValueError as error:
            raise ValueError(f"{files[index]} with {truth.paths[index]}: {error}") from error
        scores = _sample(maps, (stored * wanted)[:, maps.classes], normalize, most)
        return target, scores, int((wanted > stored).sum())

    # One buffer: small tensors that stay would pin the memory of the large ones between them.
    scores, filled, lacking = torch.empty(most * len(files)), 0, 0

    def targets() -> Iterator[Tensor]:
        nonlocal filled, lacking
        counted = ordered_map(count, range(len(files)), workers=workers)
        for target, sample, without_map in progress(counted, total=len(files), text="class maps"):
            scores[filled : filled + len(sample)] = sample
            filled += len(sample)
            lacking += without_map
            yield target

    with _one_thread_each():
        masks_hash = hash_masks(targets())
    total = ThresholdSweep(len(truth.names) + 1, normalize=normalize)
    for sweep in sweeps:
        total.merge(sweep)
    return SweptMaps(total, masks_hash, scores[:filled], lacking)


def _sample(
    maps: ClassMaps, present: Tensor, normalize: Literal["minmax"] | None, most: int
) -> Tensor:
    if not present.any():
        return torch.empty(0)
    scores = strongest_scores(maps.maps[None], present, normalize=normalize)
    return scores[:: -(-len(scores) // most)]


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Keep torch from starting threads of its own in each of ours."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
