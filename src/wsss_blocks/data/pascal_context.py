"""PASCAL Context: VOC 2010 photographs whose background is labelled too, 59 frequent classes."""

from pathlib import Path

from wsss_blocks.data._files import read_ids
from wsss_blocks.data.classes import class_table
from wsss_blocks.data.folder import FolderDataset, given_labels
from wsss_blocks.data.voc import find_layout
from wsss_blocks.data.weak_labels import WeakLabels

__all__ = ["PascalContext"]


class PascalContext(FolderDataset):
    """Read PASCAL Context with its 59 classes and a background, in the usual folder layout.

    Below ``VOC2010`` lie ``JPEGImages``, the lists ``ImageSets/SegmentationContext/SPLIT.txt``
    (4996 train, 5104 val) and the masks ``SegmentationClassContext/<id>.png`` (0 background,
    1..59), as the Detail API converts them. There are no official image labels: ``wsss labels
    --from masks`` makes them from the training masks. Without ``labels`` the samples have none,
    which is enough for zero-shot evaluation.

    Args:
        root: the folder ``VOC2010``, the ``VOCdevkit`` around it, or the folder around that.
        split: ``"train"`` or ``"val"``, or another list beside theirs.
        labels: weak labels, or the path of a file for :meth:`WeakLabels.load
            <wsss_blocks.data.WeakLabels.load>`.
        with_masks: read masks too, for evaluation.
        strict: raise where an id has no image or no labels; else leave it out and list it in
            ``skipped``: id -> reason.

    Raises:
        FileNotFoundError: no such layout, list or image.
        ValueError: an id without labels, or labels of other classes.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for below in ("JPEGImages", "ImageSets/SegmentationContext"):
        ...         Path(folder, below).mkdir(parents=True)
        ...     Image.new("RGB", (6, 4)).save(f"{folder}/JPEGImages/2008_000002.jpg")
        ...     ids = Path(folder, "ImageSets/SegmentationContext/val.txt")
        ...     _ = ids.write_text("2008_000002")
        ...     data = PascalContext(folder, "val")
        ...     data.ids, len(data.names), tuple(data[0]["image"].shape)
        (['2008_000002'], 59, (3, 4, 6))
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
        self.root = find_layout(Path(root), "VOC2010")
        self.split = split
        names = class_table("context").names
        super().__init__(
            self.root / "JPEGImages",
            given_labels(labels, names),
            masks_dir=self.root / "SegmentationClassContext" if with_masks else None,
            ids=read_ids(self.root / "ImageSets" / "SegmentationContext" / f"{split}.txt"),
            strict=strict,
        )
        self.names = names
