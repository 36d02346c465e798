"""The data sets that every example can be asked for by name."""

from pathlib import Path
from typing import Literal, Protocol

from wsss_blocks._validate import check_choice
from wsss_blocks.data.folder import FolderDataset
from wsss_blocks.data.sample import Sample
from wsss_blocks.data.scenes import Scenes
from wsss_blocks.data.voc import VOC2012
from wsss_blocks.data.weak_labels import WeakLabels

__all__ = ["WeakDataset", "open_dataset"]


class WeakDataset(Protocol):
    """What training and evaluation ask of a data set: class names, a length, samples."""

    names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int) -> Sample:
        """One sample, with a ``mask`` only if the data set was opened for evaluation."""


def open_dataset(
    kind: Literal["scenes", "voc", "folder"],
    split: str,
    *,
    root: Path | None = None,
    with_masks: bool = False,
) -> WeakDataset:
    """Open one split of a data set, for training (no mask is read) or for evaluation.

    ``"scenes"`` needs no root. ``"voc"`` takes the VOCdevkit, and a split that names an id list;
    labels come from the XML files. ``"folder"`` takes a folder with ``images/``, ``labels.json``
    (or ``.csv``) and, for evaluation, ``masks/``: either ``root/SPLIT/`` or, without such a folder,
    ``root`` itself for every split.

    Args:
        kind: which data set.
        split: ``"train"``, ``"val"``, or any other id list of VOC.
        root: where it lies.
        with_masks: read masks too.

    Returns:
        The data set.

    Raises:
        ValueError: unknown ``kind``, or a missing ``root``.
        FileNotFoundError: the layout is not there.

    Example:
        >>> scenes = open_dataset("scenes", "val", with_masks=True)
        >>> len(scenes), scenes.names[:2], "mask" in scenes[0]
        (200, ('zero', 'one'), True)
    """
    check_choice("kind", kind, ("scenes", "voc", "folder"))
    if kind == "scenes":
        check_choice("split", split, ("train", "val"))
        return Scenes("train" if split == "train" else "val", with_masks=with_masks)
    if root is None:
        raise ValueError(f"root must be given for {kind!r} data, got None.")
    if kind == "voc":
        return VOC2012(root, split, with_masks=with_masks)
    base = root / split if (root / split).is_dir() else root
    found = [p for p in (base / "labels.json", base / "labels.csv") if p.is_file()]
    if not found:
        raise FileNotFoundError(
            f"{base} must hold labels.json or labels.csv: WeakLabels writes them."
        )
    masks = base / "masks" if with_masks else None
    return FolderDataset(base / "images", WeakLabels.load(found[0]), masks_dir=masks)
