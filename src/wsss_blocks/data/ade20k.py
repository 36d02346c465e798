"""ADE20K with the 150 classes of the scene parsing benchmark."""

from pathlib import Path

from wsss_blocks.data.classes import class_table
from wsss_blocks.data.folder import FolderDataset, given_labels, id_lookup
from wsss_blocks.data.weak_labels import WeakLabels

__all__ = ["ADE20K"]

ALIASES = {"train": "training", "val": "validation"}


class ADE20K(FolderDataset):
    """Read ADE20K as the scene parsing benchmark (``ADEChallengeData2016``) ships it.

    Images lie in ``images/SPLIT`` (20210 training, 2000 validation), masks in
    ``annotations/SPLIT``. There is no background class: masks hold 1..150, and 0 in the files,
    which means not labelled, is read as 255. There are no official image labels: ``wsss labels
    --from masks`` makes them from the training masks. Without ``labels`` the samples have none,
    which is enough for zero-shot evaluation.

    Args:
        root: the folder ``ADEChallengeData2016`` or the one around it.
        split: ``"training"`` or ``"validation"``; ``"train"`` and ``"val"`` mean the same.
        labels: weak labels, or the path of a file for :meth:`WeakLabels.load
            <wsss_blocks.data.WeakLabels.load>`; they choose the images.
        with_masks: read masks too, for evaluation.
        strict: raise where labels have no image; else leave it out and list it in ``skipped``: id
            -> reason.

    Raises:
        FileNotFoundError: no such layout or image.
        ValueError: labels of other classes, or no images.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     images = Path(folder, "images", "validation")
        ...     images.mkdir(parents=True)
        ...     Image.new("RGB", (6, 4)).save(images / "ADE_val_00000001.jpg")
        ...     data = ADE20K(folder, "val")
        ...     data.ids, len(data.names), data.mask_ids[[0, 1, 150]].tolist()
        (['ADE_val_00000001'], 150, [255, 1, 150])
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        labels: WeakLabels | str | Path | None = None,
        with_masks: bool = False,
        strict: bool = True,
    ) -> None:
        inner = Path(root) / "ADEChallengeData2016"
        self.root = inner if inner.is_dir() else Path(root)
        self.split = ALIASES.get(split, split)
        table = class_table("ade20k")
        super().__init__(
            self.root / "images" / self.split,
            given_labels(labels, table.names),
            masks_dir=self.root / "annotations" / self.split if with_masks else None,
            strict=strict,
        )
        self.names = table.names
        self.mask_ids = id_lookup(table.raw_ids, others=255)
