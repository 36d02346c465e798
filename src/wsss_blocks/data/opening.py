"""The data sets that every example can be asked for by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from wsss_blocks._validate import check_choice
from wsss_blocks.data.ade20k import ADE20K
from wsss_blocks.data.coco import COCO
from wsss_blocks.data.coco_stuff import COCOObject, COCOStuff
from wsss_blocks.data.folder import FolderDataset
from wsss_blocks.data.images import is_image
from wsss_blocks.data.pascal_context import PascalContext
from wsss_blocks.data.sample import Sample
from wsss_blocks.data.scenes import Scenes
from wsss_blocks.data.voc import VOC2012
from wsss_blocks.data.weak_labels import WeakLabels

__all__ = ["WeakDataset", "open_dataset"]

SPLITS = ("train", "val", "test")


class WeakDataset(Protocol):
    """What training and evaluation ask of a data set: class names, ids, a length, samples."""

    names: tuple[str, ...]

    @property
    def ids(self) -> list[str]:
        """Names of the images, in the order of the samples."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int) -> Sample:
        """One sample, with a ``mask`` only if the data set was opened for evaluation."""


OFFICIAL: dict[str, Callable[..., WeakDataset]] = {
    "voc": VOC2012,
    "coco": COCO,
    "context": PascalContext,
    "ade20k": ADE20K,
    "coco-stuff": COCOStuff,
    "coco-object": COCOObject,
}


def open_dataset(
    kind: Literal[
        "scenes",
        "scenes-hard",
        "voc",
        "coco",
        "context",
        "ade20k",
        "coco-stuff",
        "coco-object",
        "folder",
    ],
    split: str,
    *,
    root: Path | None = None,
    labels: Path | None = None,
    with_masks: bool = False,
    strict: bool = True,
) -> WeakDataset:
    """Open one split of a data set, for training (no mask is read) or for evaluation.

    ``"scenes"`` needs no root, nor does ``"scenes-hard"``, with more and smaller digits and more
    distractors. ``"voc"`` takes the VOCdevkit, and a split that names an id list;
    labels come from the XML files. ``"coco"`` takes the folder around the images and
    ``annotations``. ``"context"``, ``"ade20k"``, ``"coco-stuff"`` and ``"coco-object"`` take the
    root of :class:`~wsss_blocks.data.PascalContext`, :class:`~wsss_blocks.data.ADE20K`,
    :class:`~wsss_blocks.data.COCOStuff` and :class:`~wsss_blocks.data.COCOObject`; without
    ``labels`` their samples have none. ``"folder"`` takes photographs, with their sub-folders:

    - images in ``root/SPLIT/images``, in ``root/images``, or in ``root`` itself; the last two serve
      every split;
    - labels from ``labels``, else from ``labels.json`` or ``labels.csv`` beside the images, else
      from their folders, one per class (``root/cat/1.jpg``, or ``root/SPLIT/cat/1.jpg``);
    - masks, if there are any, from ``masks`` beside the images or beside the folders of classes.
      Without such a folder the samples have no ``mask``.

    Args:
        kind: which data set.
        split: ``"train"``, ``"val"``, or any other id list or image folder of the data set.
        root: where it lies.
        labels: a label file, as for :meth:`WeakLabels.load <wsss_blocks.data.WeakLabels.load>`.
        with_masks: read masks too.
        strict: raise where an image has no labels or labels have no image; else leave it out and
            list it in the data set's ``skipped``.

    Returns:
        The data set.

    Raises:
        ValueError: unknown ``kind``, a missing ``root``, or labels that do not fit.
        FileNotFoundError: the layout is not there.

    Example:
        >>> scenes = open_dataset("scenes", "val", with_masks=True)
        >>> len(scenes), scenes.names[:2], "mask" in scenes[0]
        (200, ('zero', 'one'), True)
    """
    check_choice("kind", kind, ("scenes", "scenes-hard", *OFFICIAL, "folder"))
    if kind in ("scenes", "scenes-hard"):
        check_choice("split", split, ("train", "val"))
        if labels is not None:
            raise ValueError(f"labels must be None for {kind!r} data, got {labels}.")
        return Scenes(
            "train" if split == "train" else "val",
            hard=kind == "scenes-hard",
            with_masks=with_masks,
        )
    if root is None:
        raise ValueError(f"root must be given for {kind!r} data, got None.")
    if kind != "folder":
        official = OFFICIAL[kind]
        return official(root, split, labels=labels, with_masks=with_masks, strict=strict)
    if not Path(root).is_dir():
        raise FileNotFoundError(f"root must be a folder, got {root}.")
    base, images = _find_images(Path(root), split)
    masks = base / "masks"
    return FolderDataset(
        images,
        _find_labels(base, images, labels),
        masks_dir=masks if with_masks and masks.is_dir() else None,
        exclude=("masks",) if base == images else (),
        strict=strict,
    )


def _find_images(root: Path, split: str) -> tuple[Path, Path]:
    """Return the folder that labels and masks lie in, and that of the images."""
    base = root / split
    if (base / "images").is_dir():
        return base, base / "images"
    if base.is_dir() and (_label_files(base) or _class_folders(base)):
        return base, base
    images = root / "images"
    return root, images if images.is_dir() else root


def _find_labels(base: Path, images: Path, given: Path | None) -> WeakLabels:
    if given is not None:
        if Path(given).suffix.lower() in (".npy", ".txt"):
            raise ValueError(
                f"labels must be a .json or .csv file for 'folder' data, got {given}: it has no "
                "class names; WeakLabels.load(..., names=...).save('labels.json') adds them."
            )
        return WeakLabels.load(given)
    found = _label_files(base) + (_label_files(images) if images != base else [])
    if len(found) > 1:
        raise ValueError(f"labels must say which of {found[0]} and {found[1]} to read, got None.")
    if found:
        return WeakLabels.load(found[0])
    classes = _class_folders(images)
    if set(classes) <= set(SPLITS):  # none, or images that somebody split and did not label
        raise FileNotFoundError(
            f"{base} must hold labels.json or labels.csv (WeakLabels writes them), or {images} "
            "a folder of images for each class."
        )
    others = [p.name for p in images.iterdir() if p.is_dir() and p.name not in classes]
    return WeakLabels.from_folders(images, exclude=others)


def _label_files(folder: Path) -> list[Path]:
    return [p for p in (folder / "labels.json", folder / "labels.csv") if p.is_file()]


def _class_folders(folder: Path) -> list[str]:
    """List the sub-folders with images directly in them, but ``masks``."""
    return [
        path.name
        for path in folder.iterdir()
        if path.is_dir()
        and not path.name.startswith(".")
        and path.name != "masks"
        and any(is_image(p.name) for p in path.iterdir())
    ]
