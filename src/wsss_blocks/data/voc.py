"""PASCAL VOC 2012 in its official folder layout; masks are never needed for training."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from wsss_blocks.data._files import read_ids
from wsss_blocks.data._label_files import read_xml
from wsss_blocks.data._matching import NO_LABELS, choose_images
from wsss_blocks.data.folder import given_labels, mask_file, read_sample
from wsss_blocks.data.names import VOC_NAMES
from wsss_blocks.data.sample import Sample
from wsss_blocks.data.weak_labels import WeakLabels

__all__ = ["VOC2012", "find_layout"]


class VOC2012(Dataset[Sample]):
    """Read images and image-level labels of PASCAL VOC 2012, or of any folder laid out like it.

    Labels come from ``labels`` or else from the XML files, never from a mask. The XML files are
    genuine image-level labels: they name each object of the image, including those marked
    difficult or truncated, so they may list a class that a mask lacks.

    Note:
        Most papers use label files made from the (augmented) masks instead. Pass such a file as
        ``labels`` to compare with them.

    Args:
        root: the folder ``VOC2012``, the ``VOCdevkit`` around it, or the folder around that.
        split: a list in ``ImageSets/Segmentation`` (``"train"``, ``"val"``, ``"train_aug"``), or
            the path of a text file with one id a line.
        labels: weak labels, or the path of a file for :meth:`WeakLabels.load
            <wsss_blocks.data.WeakLabels.load>`.
        names: class names; mask id = position + 1.
        with_masks: read masks too, for evaluation.
        mask_folder: folder of the masks; by default ``"SegmentationClassAug"`` for a split that
            ends in ``aug``, if there is such a folder, else ``"SegmentationClass"``.
        strict: raise where an id has no labels or, when it is read, no image; else leave it out
            and list it in ``skipped``: id -> reason.

    Raises:
        FileNotFoundError: no such layout, list, annotation or, when it is read, image or mask.
        ValueError: an id without labels, or labels of other classes.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.data import DIGIT_NAMES, write_voc_layout
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = write_voc_layout(folder, train=2, val=1)
        ...     data = VOC2012(folder, "val", names=DIGIT_NAMES)
        ...     len(data), tuple(data[0]["image"].shape), "mask" in data[0]
        (1, (3, 96, 96), False)
    """

    mask_ids: Tensor | None = None
    """None: the ids in the files of masks are ours."""

    def __init__(
        self,
        root: str | Path,
        split: str | Path = "train",
        *,
        labels: WeakLabels | str | Path | None = None,
        names: tuple[str, ...] = VOC_NAMES,
        with_masks: bool = False,
        mask_folder: str | None = None,
        strict: bool = True,
    ) -> None:
        self.root = find_layout(Path(root), "VOC2012")
        is_path = isinstance(split, Path) or split.endswith(".txt")
        lists = self.root / "ImageSets" / "Segmentation"
        ids = read_ids(Path(split) if is_path else lists / f"{split}.txt")
        unread: dict[str, str] = {}
        found = given_labels(labels, names)
        if found is None:
            found, unread = _read_annotations(self.root / "Annotations", ids, names, strict)
        images = self.root / "JPEGImages"
        files = [f"{name}.jpg" for name in ids if strict or (images / f"{name}.jpg").is_file()]
        self.ids, _, self.labels, self.skipped = choose_images(
            images, files, found, ids=ids, strict=strict
        )
        self.skipped.update(unread)
        self.names = found.names
        if mask_folder is None:
            augmented = self.root / "SegmentationClassAug"
            use = Path(split).stem.endswith("aug") and augmented.is_dir()
            mask_folder = augmented.name if use else "SegmentationClass"
        self.masks_dir = self.root / mask_folder if with_masks else None

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.root / "JPEGImages" / f"{self.ids[index]}.jpg"

    def mask_path(self, index: int) -> Path:
        """Return the file of a mask.

        Raises:
            ValueError: the data set was opened without masks.
        """
        return mask_file(self.masks_dir, self.ids[index])

    def __getitem__(self, index: int) -> Sample:
        mask = None if self.masks_dir is None else self.mask_path(index)
        return read_sample(self.ids[index], self.path(index), labels=self.labels, mask=mask)


def _read_annotations(
    folder: Path, ids: Iterable[str], names: Sequence[str], strict: bool
) -> tuple[WeakLabels, dict[str, str]]:
    """Read XML files; unless ``strict``, ids whose file is missing or broken get a reason."""
    rows, unread = {}, {}
    for name in ids:
        try:
            rows[name] = read_xml(folder / f"{name}.xml", names)
        except (FileNotFoundError, ValueError) as error:
            broken = isinstance(error, FileNotFoundError) or error.__cause__ is not None
            if strict or not broken:  # names that differ are no accident of one file
                raise
            unread[name] = f"{NO_LABELS}: {error}"
    return WeakLabels(names, rows), unread


def find_layout(root: Path, name: str) -> Path:
    """Return the folder ``name``, as ``VOC2012``: root, or below it or its VOCdevkit."""
    candidates = [root, root / name, root / "VOCdevkit" / name]
    for folder in candidates:
        if (folder / "JPEGImages").is_dir():
            return folder
    tried = ", ".join(str(folder) for folder in candidates)
    what = f"{name[:3]} {name[3:]} layout (JPEGImages and ImageSets)"
    raise FileNotFoundError(f"no {what} in any of: {tried}.")
