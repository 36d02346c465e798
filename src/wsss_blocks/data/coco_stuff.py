"""COCO 2017 with the maps of COCO-Stuff: all 171 classes, or the 80 things on a background."""

from pathlib import Path

from wsss_blocks.data.classes import class_table
from wsss_blocks.data.coco import find_images_dir, first_folder
from wsss_blocks.data.folder import FolderDataset, given_labels, id_lookup
from wsss_blocks.data.weak_labels import WeakLabels

__all__ = ["COCOObject", "COCOStuff"]

ALIASES = {"train": "train2017", "val": "val2017"}
MAPS = ("stuffthingmaps", "stuffthingmaps_trainval2017", "annotations")


class _StuffThingMaps(FolderDataset):
    """Images of COCO 2017 with the pixel maps of COCO-Stuff."""

    table: str  # of classes
    others: int  # what pixels of no class become

    def __init__(
        self,
        root: str | Path,
        split: str = "train2017",
        *,
        labels: WeakLabels | str | Path | None = None,
        with_masks: bool = False,
        strict: bool = True,
    ) -> None:
        self.root, self.split = Path(root), ALIASES.get(split, split)
        table = class_table(self.table)
        maps = (self.root / name / self.split for name in MAPS)
        super().__init__(
            find_images_dir(self.root, [self.split]),
            given_labels(labels, table.names),
            masks_dir=first_folder(maps, "stuff and thing maps") if with_masks else None,
            strict=strict,
        )
        self.names = table.names
        self.mask_ids = id_lookup(table.raw_ids, others=self.others)


class COCOStuff(_StuffThingMaps):
    """Read COCO 2017 with the 171 classes of COCO-Stuff: 80 things, then 91 kinds of stuff.

    Images lie in ``root/SPLIT`` or ``root/images/SPLIT`` (118287 train2017, 5000 val2017), masks in
    ``root/stuffthingmaps/SPLIT`` (or below ``stuffthingmaps_trainval2017`` or ``annotations``):
    PNG files of raw ids 0..181, which are read as 1..171; 255, not labelled, stays 255. There is no
    background class. There are no official image labels: ``wsss labels --from masks`` makes them
    from the training masks. Without ``labels`` the samples have none, which is enough for
    zero-shot evaluation.

    Note:
        Files ``<id>_labelTrainIds.png``, which MMSegmentation writes beside these, are not read.

    Args:
        root: the folder around the images and the maps.
        split: ``"train2017"`` or ``"val2017"``; ``"train"`` and ``"val"`` mean the same.
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
        ...     Path(folder, "val2017").mkdir()
        ...     Image.new("RGB", (6, 4)).save(f"{folder}/val2017/000000000139.jpg")
        ...     data = COCOStuff(folder, "val")
        ...     data.ids, len(data.names), data.mask_ids[[0, 181, 255]].tolist()
        (['000000000139'], 171, [1, 171, 255])
    """

    table, others = "coco-stuff", 255


class COCOObject(_StuffThingMaps):
    """Read COCO 2017 with the 80 things on a background: the protocol of zero-shot segmentation.

    Layout and files are those of :class:`COCOStuff`; things are read as 1..80, and everything
    else, pixels that are not labelled included, as background 0. Nothing is ignored. GroupViT, TCL
    and SimSeg evaluate so on the 5000 images of val2017. :class:`COCO` reads masks made from the
    outlines instead.

    Reference:
        Yi et al., "A Simple Framework for Text-Supervised Semantic Segmentation", CVPR 2023; Xu et
        al., "GroupViT", CVPR 2022, https://arxiv.org/abs/2202.11094.

    Args:
        root: the folder around the images and the maps.
        split: ``"train2017"`` or ``"val2017"``; ``"train"`` and ``"val"`` mean the same.
        labels: weak labels, or the path of a file for :meth:`WeakLabels.load
            <wsss_blocks.data.WeakLabels.load>` (80 classes; ``wsss labels`` makes one); they choose
            the images. Without them the samples have none.
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
        ...     Path(folder, "val2017").mkdir()
        ...     Image.new("RGB", (6, 4)).save(f"{folder}/val2017/000000000139.jpg")
        ...     data = COCOObject(folder, "val")
        ...     data.ids, len(data.names), data.mask_ids[[0, 89, 181, 255]].tolist()
        (['000000000139'], 80, [1, 80, 0, 0])
    """

    table, others = "coco-object", 0
