"""PASCAL VOC 2012 in its official folder layout; masks are never needed for training."""

from pathlib import Path

from torch.utils.data import Dataset

from wsss_blocks.data._files import read_ids
from wsss_blocks.data.folder import check_labelled, read_sample
from wsss_blocks.data.names import VOC_NAMES
from wsss_blocks.data.sample import Sample
from wsss_blocks.data.weak_labels import WeakLabels

__all__ = ["VOC2012"]


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
        mask_folder: ``"SegmentationClass"`` or ``"SegmentationClassAug"``.

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

    def __init__(
        self,
        root: str | Path,
        split: str | Path = "train",
        *,
        labels: WeakLabels | str | Path | None = None,
        names: tuple[str, ...] = VOC_NAMES,
        with_masks: bool = False,
        mask_folder: str = "SegmentationClass",
    ) -> None:
        self.root = _find_layout(Path(root))
        is_path = isinstance(split, Path) or split.endswith(".txt")
        lists = self.root / "ImageSets" / "Segmentation"
        self.ids = read_ids(Path(split) if is_path else lists / f"{split}.txt")
        if labels is None:
            labels = WeakLabels.from_voc_xml(self.root / "Annotations", self.ids, names=names)
        elif not isinstance(labels, WeakLabels):
            labels = WeakLabels.load(labels, names=names)
        if labels.names != tuple(names):
            raise ValueError(
                f"labels must have the classes {_shown(names)}, got {_shown(labels.names)}."
            )
        check_labelled(self.ids, labels)
        self.labels = labels
        self.names = labels.names
        self.with_masks = with_masks
        self.mask_folder = mask_folder

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        name = self.ids[index]
        mask = self.root / self.mask_folder / f"{name}.png" if self.with_masks else None
        return read_sample(
            name, self.root / "JPEGImages" / f"{name}.jpg", labels=self.labels, mask=mask
        )


def _find_layout(root: Path) -> Path:
    candidates = [root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"]
    for folder in candidates:
        if (folder / "JPEGImages").is_dir():
            return folder
    tried = ", ".join(str(folder) for folder in candidates)
    raise FileNotFoundError(f"no VOC 2012 layout (JPEGImages and ImageSets) in any of: {tried}.")


def _shown(names: tuple[str, ...]) -> str:
    return f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}; {len(names)} names)"
