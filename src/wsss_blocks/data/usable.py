"""Leave out the images that cannot be trained on, and say which and why."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor
from torch.utils.data import Dataset

from wsss_blocks.data._matching import with_reasons
from wsss_blocks.data.images import check_image
from wsss_blocks.data.opening import WeakDataset
from wsss_blocks.data.sample import Sample
from wsss_blocks.data.weak_labels import WeakLabels
from wsss_blocks.distributed import gather_objects, rank, world_size

__all__ = ["UsableImages", "usable_images"]

UNREADABLE, EMPTY = "cannot be read", "without any class"


@runtime_checkable
class ImageFiles(Protocol):
    """A data set of files."""

    def path(self, index: int) -> Path:
        """Return the file of an image."""


@runtime_checkable
class MaskFiles(Protocol):
    """A data set with files of masks."""

    def mask_path(self, index: int) -> Path:
        """Return the file of a mask."""


class UsableImages(Dataset[Sample]):
    """Show some images of a data set, in its order: what :func:`usable_images` returns.

    Args:
        dataset: the data set.
        indices: which of its images.
        skipped: why others are left out: id -> reason.

    Example:
        >>> from wsss_blocks.data import Scenes
        >>> view = UsableImages(Scenes(size=3), [0, 2], {"train_00001": "cannot be read: why"})
        >>> view.ids, view.describe()
        (['train_00000', 'train_00002'], '2 images; 1 skipped: 1 cannot be read (why)')
    """

    def __init__(
        self, dataset: WeakDataset, indices: Sequence[int], skipped: Mapping[str, str]
    ) -> None:
        self.dataset = dataset
        self.indices = list(indices)
        self.skipped = dict(skipped)
        self.names = dataset.names
        self.labels: WeakLabels | None = getattr(dataset, "labels", None)
        self.mask_ids: Tensor | None = getattr(dataset, "mask_ids", None)
        ids = dataset.ids
        self.ids = [ids[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self.indices[index]]

    def path(self, index: int) -> Path:
        """Return the file of an image.

        Raises:
            ValueError: the data set is drawn, not read from files.
        """
        if not isinstance(self.dataset, ImageFiles):
            raise ValueError(f"dataset must have files, got {type(self.dataset).__name__}.")
        return self.dataset.path(self.indices[index])

    def mask_path(self, index: int) -> Path:
        """Return the file of a mask.

        Raises:
            ValueError: the data set has no files of masks, or was opened without.
        """
        if not isinstance(self.dataset, MaskFiles):
            raise ValueError(f"dataset must have masks, got {type(self.dataset).__name__}.")
        return self.dataset.mask_path(self.indices[index])

    def describe(self) -> str:
        """Say in one line how many images there are and what was left out for which reason."""
        images = f"{len(self)} images"
        return f"{images}; {with_reasons(self.skipped)}" if self.skipped else images


def usable_images(
    dataset: WeakDataset, *, keep_empty: bool = False, strict: bool = False, threads: int = 8
) -> UsableImages:
    """Leave out the images of a data set that cannot be read or show no class.

    Each file is decoded once, JPEGs at an eighth of their size; in a process group each process
    decodes its share, and all get the same answer. What the data set itself left out (its
    ``skipped``, when it was opened with ``strict=False``) is reported too. Of a data set without
    files, such as :class:`~wsss_blocks.data.Scenes`, all is kept.

    Args:
        dataset: from :func:`~wsss_blocks.data.open_dataset`, or anything with its ``names``,
            ``ids``, ``path(index)`` and, for ``keep_empty``, ``labels``.
        keep_empty: keep images whose labels name no class.
        strict: raise instead of leaving out what cannot be read or has no labels. (An image whose
            labels name no class is not broken.)
        threads: images that a process decodes at once.

    Returns:
        A view of the usable images; ``describe()`` sums it up in a line.

    Raises:
        ValueError: no image is usable, ``threads < 1`` or, with ``strict``, one image is broken.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.data import DIGIT_NAMES, VOC2012, write_voc_layout
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     voc = write_voc_layout(folder, train=3, val=1)
        ...     _ = (voc / "JPEGImages" / "train_00001.jpg").write_bytes(b"no image")
        ...     usable = usable_images(VOC2012(voc, names=DIGIT_NAMES))
        >>> usable.ids, list(usable.skipped)
        (['train_00000', 'train_00002'], ['train_00001'])
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}.")
    skipped: dict[str, str] = dict(getattr(dataset, "skipped", {}))
    ids, labels = dataset.ids, getattr(dataset, "labels", None)
    found: dict[int, str] = {}
    if isinstance(labels, WeakLabels) and not keep_empty:
        empty = (i for i, name in enumerate(ids) if not labels.classes(name))
        found = {i: f"{EMPTY}: the row of {ids[i]!r}" for i in empty}
    inner = dataset
    while isinstance(inner, UsableImages):
        inner = inner.dataset
    if isinstance(dataset, ImageFiles) and isinstance(inner, ImageFiles):
        mine = range(rank(), len(ids), world_size())
        with ThreadPoolExecutor(threads) as pool:
            reasons = list(pool.map(_unreadable, map(dataset.path, mine)))
        for share in gather_objects({i: r for i, r in zip(mine, reasons, strict=True) if r}):
            found |= share
    skipped |= {ids[index]: found[index] for index in sorted(found)}
    broken = {name: why for name, why in skipped.items() if not why.startswith(EMPTY)}
    if strict and broken:
        raise ValueError(f"all images must be usable, got {_listed(broken)}")
    kept = [index for index in range(len(ids)) if index not in found]
    if not kept:
        raise ValueError(f"at least one image must be usable, got {_listed(skipped)}")
    return UsableImages(dataset, kept, skipped)


def _unreadable(path: Path) -> str:
    """Say why a file cannot be used; nothing if it can."""
    try:
        check_image(path)
    except OSError as error:
        return f"{UNREADABLE}: {path}: {error.__cause__ or error}"
    return ""


def _listed(skipped: Mapping[str, str]) -> str:
    first = "; ".join(f"{name!r} {reason}" for name, reason in list(skipped.items())[:3])
    return f"{len(skipped)} that are not: {first}{'; ...' if len(skipped) > 3 else ''}"
