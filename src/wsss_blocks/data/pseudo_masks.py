"""Masks of another method beside the images: what a second stage starts from."""

import os
from pathlib import Path

from torch.utils.data import Dataset

from wsss_blocks.data.coco_stuff import MAPS
from wsss_blocks.data.folder import mask_file
from wsss_blocks.data.images import read_mask
from wsss_blocks.data.opening import WeakDataset
from wsss_blocks.data.sample import Sample
from wsss_blocks.data.usable import ImageFiles

__all__ = ["WithPseudoMasks"]

_TRUTH = (
    *("SegmentationClass", "SegmentationClassAug", "SegmentationClassContext"),
    *("SegmentationObject", "masks", *MAPS),
)


class WithPseudoMasks(Dataset[Sample]):
    """Add masks from a folder to the samples, as ``sample["pseudo_mask"]``.

    The masks are indexed PNG files ``ID.png`` with 0 background, 1..K and 255 for pixels without a
    class, as :func:`write_mask`, ``wsss segment`` and most released pseudo-labels have them. Every
    geometric transform moves them with the image, and padding is 255.

    Args:
        dataset: has ``ids``, ``names``, a length and samples.
        folder: holds a mask for each image.

    Raises:
        FileNotFoundError: a mask is missing (the message names some), or there is no such folder.
        ValueError: the folder is one that a data set keeps its ground truth in (``masks`` or
            ``SegmentationClass``, say, beside the images), or lies in it. When a mask is read: it
            is a colour picture, has another size than its image, or an id that is no class.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from wsss_blocks.data import Scenes, write_mask
        >>> scenes = Scenes(size=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_mask(f"{folder}/{scenes.ids[0]}.png", torch.ones(96, 96, dtype=torch.uint8))
        ...     sample = WithPseudoMasks(scenes, folder)[0]
        >>> sample["pseudo_mask"].unique().tolist(), "mask" in sample
        ([1], False)
    """

    def __init__(self, dataset: WeakDataset, folder: str | Path) -> None:
        self.dataset, self.folder = dataset, Path(folder)
        self.names, self.ids = dataset.names, dataset.ids
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no folder of masks at {self.folder}.")
        if _is_truth(self.folder, dataset):
            raise ValueError(
                f"folder must not be the ground truth of the data set, got {self.folder}: "
                "nothing may learn from it."
            )
        missing = [name for name in self.ids if not mask_file(self.folder, name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{self.folder} lacks the masks of {len(missing)} of {len(self.ids)} images "
                f"({', '.join(f'{name}.png' for name in missing[:3])})."
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample, path = self.dataset[index].copy(), mask_file(self.folder, self.ids[index])
        mask, size = read_mask(path), tuple(sample["image"].shape[-2:])
        if tuple(mask.shape) != size:
            raise ValueError(
                f"{path} must have the size {size} of its image, got {tuple(mask.shape)}."
            )
        classes = len(self.names)
        odd = mask[(mask > classes) & (mask != 255)]
        if len(odd):
            raise ValueError(f"{path} must hold ids 0..{classes} and 255, got {int(odd[0])}.")
        sample["pseudo_mask"] = mask
        return sample


def _is_truth(folder: Path, dataset: WeakDataset) -> bool:
    """Tell whether a folder is, or lies in, one of ground truth beside the data set's images."""
    if not (isinstance(dataset, ImageFiles) and len(dataset)):
        return False
    try:
        image = dataset.path(0)
    except ValueError:  # drawn, not read from files
        return False
    depth = len(Path(dataset.ids[0]).parts)  # an id may begin with folders
    truths: set[Path] = set()
    for path in _spellings(image):
        above = path.parents[depth - 1 : depth + 2]
        # ROOT/JPEGImages/ID.jpg, ROOT/train2014/ID.jpg, but ROOT/images/train2014/ID.jpg
        roots = above if "images" in {p.name for p in above[1:2]} else above[:2]
        truths |= {way for r in roots for name in _TRUTH for way in _spellings(r / name)}
    return any(way.is_relative_to(truth) for way in _spellings(folder) for truth in truths)


def _spellings(path: Path) -> set[Path]:
    """Name a file as it was named, and as it is without links: either may lead into a data set."""
    return {Path(os.path.abspath(path)), path.resolve()}
