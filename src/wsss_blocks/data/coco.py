"""COCO in its official folder layout; masks are never needed for training."""

import re
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from wsss_blocks.data._matching import check_names, choose_images, find_images, spelled
from wsss_blocks.data.folder import given_labels, mask_file, read_sample
from wsss_blocks.data.names import COCO_NAMES
from wsss_blocks.data.sample import Sample
from wsss_blocks.data.weak_labels import WeakLabels

__all__ = ["COCO", "find_images_dir", "first_folder"]

ALIASES = {
    "train": ("train2014", "train2017", "train"),
    "val": ("val2014", "val2017", "val"),
}


class COCO(Dataset[Sample]):
    """Read images and image-level labels of COCO, 2014 or 2017, or of a folder laid out like it.

    Images lie in ``root/SPLIT`` or ``root/images/SPLIT``. Labels come from
    ``root/annotations/instances_SPLIT.json`` (which classes each image names, crowds included; no
    outline is looked at) or from ``labels``, never from a mask. Rows and files are matched by the
    number of the image: ``COCO_train2014_000000000009``, ``000000000009`` and ``9`` are one. Masks
    are PNG files with 0 background, 1..80 in category order, and 255 ignored.

    Note:
        COCO 2014 has 82,783 training images, and the label lists of the field 82,081: those that
        show an annotated object. The annotation file gives the others a row without classes.

    Args:
        root: the folder around the images and ``annotations``.
        split: a folder of images; ``"train"`` and ``"val"`` stand for those of 2014, else of 2017.
        labels: weak labels, or the path of a file for :meth:`WeakLabels.load
            <wsss_blocks.data.WeakLabels.load>` (the field's 80-column ``.npy``, its ``.txt`` of
            0-based ids, JSON, CSV); they choose the images.
        names: class names; mask id = position + 1.
        with_masks: read masks too, for evaluation.
        masks_dir: their folder, by default ``root/SegmentationClass/SPLIT`` or
            ``root/masks/SPLIT``.
        strict: raise where an image has no labels or labels have no image; else leave it out and
            list it in ``skipped``: id -> reason.

    Raises:
        FileNotFoundError: no such layout, annotation file or image.
        ValueError: an image without labels, or labels of other classes.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.data import write_coco_layout
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = COCO(write_coco_layout(folder, train=2, val=1), "val")
        ...     data.ids, tuple(data[0]["labels"].shape), "mask" in data[0]
        (['COCO_val2014_000000500001'], (80,), False)
    """

    mask_ids: Tensor | None = None
    """None: the ids in the files of masks are ours."""

    def __init__(
        self,
        root: str | Path,
        split: str = "train2014",
        *,
        labels: WeakLabels | str | Path | None = None,
        names: tuple[str, ...] = COCO_NAMES,
        with_masks: bool = False,
        masks_dir: str | Path | None = None,
        strict: bool = True,
    ) -> None:
        self.root = Path(root)
        self.images_dir = find_images_dir(self.root, ALIASES.get(split, (split,)))
        self.split = self.images_dir.name
        annotations = self.root / "annotations" / f"instances_{self.split}.json"
        found = given_labels(labels, names)
        if found is None:
            found = WeakLabels.from_coco_json(annotations)
            check_names(found, names, annotations)
        self.masks_dir = None
        if with_masks:
            folders = [self.root / name / self.split for name in ("SegmentationClass", "masks")]
            if masks_dir is not None:
                folders = [Path(masks_dir) / self.split, Path(masks_dir)]
            self.masks_dir = first_folder(folders, "masks")
        self.ids, self._files, self.labels, self.skipped = choose_images(
            self.images_dir,
            find_images(self.images_dir),
            found,
            strict=strict,
            complete=labels is None,
            key=_number,
        )
        self.names = found.names

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.images_dir / self._files[index]

    def mask_path(self, index: int) -> Path:
        """Return the file of a mask.

        Raises:
            ValueError: the data set was opened without masks.
        """
        mask = mask_file(self.masks_dir, self.ids[index])
        # Masks of the 2014 images often go by the number alone.
        return mask if mask.is_file() else mask.with_name(mask.name.rpartition("_")[2])

    def __getitem__(self, index: int) -> Sample:
        mask = None if self.masks_dir is None else self.mask_path(index)
        return read_sample(self.ids[index], self.path(index), labels=self.labels, mask=mask)


def find_images_dir(root: Path, splits: Iterable[str]) -> Path:
    """Return the first of ``root/SPLIT`` and ``root/images/SPLIT`` that exists."""
    below = ("", "images")
    return first_folder((root / folder / name for name in splits for folder in below), "images")


def _number(name: str) -> str:
    """Return the image's number; any other name as it is."""
    number = re.fullmatch(r"(?:COCO_\w+_)?(\d+)(?:\.jpg)?", spelled(name))
    return str(int(number[1])) if number else spelled(name)


def first_folder(candidates: Iterable[Path], what: str) -> Path:
    """Return the first folder that exists."""
    tried = list(candidates)
    for folder in tried:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no COCO {what} in any of: {', '.join(str(f) for f in tried)}.")
