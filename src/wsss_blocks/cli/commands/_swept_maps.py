"""Class maps of files or of a store, counted against masks at every threshold, in threads."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from wsss_blocks._parallel import ordered_map
from wsss_blocks.cam import strongest_scores
from wsss_blocks.cli.commands._common import progress
from wsss_blocks.cli.commands._ground_truth import GroundTruth
from wsss_blocks.data import CamStore, ClassMaps, WeakLabels, read_class_maps
from wsss_blocks.data._cam_info import info_file
from wsss_blocks.metrics import ThresholdSweep, hash_masks

__all__ = ["ImageMaps", "SweptMaps", "find_maps", "is_store", "sweep_maps"]

_MOST_SCORES = 4_000_000  # of all images together


class ImageMaps(NamedTuple):
    """Class maps of one image.

    Attributes:
        where: they are, for messages.
        read: reads them.
    """

    where: str
    read: Callable[[], ClassMaps]


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


def is_store(folder: Path) -> bool:
    """Tell whether a folder is a CAM store."""
    return info_file(folder).is_file()


def find_maps(folder: Path, ids: Sequence[str], names: Sequence[str]) -> list[ImageMaps | None]:
    """Find the maps of each image, or None: in a store, or ``<id>.npz``, else ``<id>.npy``.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the store is damaged, or of other classes than ``names``.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of class maps at {folder}.")
    if is_store(folder):
        return _stored_maps(folder, ids, names)
    found: list[ImageMaps | None] = []
    for name in ids:
        candidates = (folder / f"{name}{suffix}" for suffix in (".npz", ".npy"))
        path = next((path for path in candidates if path.is_file()), None)
        one = None if path is None else ImageMaps(str(path), partial(read_class_maps, path))
        found.append(one)
    return found


def _stored_maps(folder: Path, ids: Sequence[str], names: Sequence[str]) -> list[ImageMaps | None]:
    store = CamStore(folder)
    if store.names != tuple(names):
        pairs = zip(store.names, names, strict=False)
        first = next((f": {a!r} in the place of {b!r}" for a, b in pairs if a != b), "")
        raise ValueError(
            f"{folder} must be a store of the {len(names)} classes of the masks, in their order, "
            f"got {len(store.names)}{first}."
        )

    def read(name: str) -> ClassMaps:
        return store[name].class_maps

    return [
        ImageMaps(f"{folder}, image {name!r},", partial(read, name)) if name in store else None
        for name in ids
    ]


def sweep_maps(
    truth: GroundTruth,
    found: Sequence[ImageMaps],
    *,
    labels: WeakLabels | None,
    normalize: Literal["minmax"] | None,
    workers: int,
) -> SweptMaps:
    """Count the maps of each image. Memory does not grow with their number, but by the scores."""
    own = threading.local()
    sweeps: list[ThresholdSweep] = []
    most = max(1, _MOST_SCORES // len(found))

    # A table in each thread: with many classes it costs more to add up one for each image.
    def table() -> ThresholdSweep:
        if not hasattr(own, "sweep"):
            own.sweep = ThresholdSweep(len(truth.names) + 1, normalize=normalize)
            sweeps.append(own.sweep)
        mine: ThresholdSweep = own.sweep
        return mine

    def count(index: int) -> tuple[Tensor, Tensor, int]:
        maps, target = found[index].read(), torch.from_numpy(truth.read(index))
        try:
            stored = maps.to_labels(len(truth.names))
            wanted = stored if labels is None else labels[truth.ids[index]][None]
            table().update(maps.to_dense(len(truth.names)), stored * wanted, target[None])
        except ValueError as error:
            raise ValueError(f"{found[index].where} with {truth.paths[index]}: {error}") from error
        scores = _sample(maps, (stored * wanted)[:, maps.classes], normalize, most)
        return target, scores, int((wanted > stored).sum())

    # One buffer: small tensors that stay would pin the memory of the large ones between them.
    scores, filled, lacking = torch.empty(most * len(found)), 0, 0

    def targets() -> Iterator[Tensor]:
        nonlocal filled, lacking
        counted = ordered_map(count, range(len(found)), workers=workers)
        for target, sample, without_map in progress(counted, total=len(found), text="class maps"):
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
