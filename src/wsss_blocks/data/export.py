"""Masks in the formats of other tools: VOC, COCO, mmseg, labelme, YOLO, numpy."""

from collections.abc import Collection, Iterable, Mapping, Sequence, Sized
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wsss_blocks._parallel import ordered_map
from wsss_blocks.data._built_masks import Progress, no_progress
from wsss_blocks.data._export.arrays import NpzFileWriter, NpzFolderWriter
from wsss_blocks.data._export.coco import CocoWriter
from wsss_blocks.data._export.options import (
    Competition,
    ExportFormat,
    MakeWriter,
    Options,
    Segments,
    check_options,
)
from wsss_blocks.data._export.pictures import MMSegWriter, VocPngWriter, VocServerWriter
from wsss_blocks.data._export.place import new_file, new_folder
from wsss_blocks.data._export.polygons import LabelmeWriter, YoloWriter
from wsss_blocks.data._export.regions import Instances
from wsss_blocks.data._export.source import IGNORED, Images, Named, checked_mask, list_masks, pairs
from wsss_blocks.data._export.spool import Spool
from wsss_blocks.data._label_tables import check_class_names

__all__ = ["ExportedMasks", "export_masks"]

_FOLDERS: dict[str, MakeWriter] = {
    "voc-png": VocPngWriter,
    "mmseg": MMSegWriter,
    "labelme": LabelmeWriter,
    "yolo-seg": YoloWriter,
    "npz": NpzFolderWriter,
}
_FILES: dict[str, tuple[MakeWriter, tuple[str, ...]]] = {
    "voc-server-tar": (VocServerWriter, (".tar.gz", ".tgz")),
    "coco-json": (CocoWriter, (".json",)),
    "npz": (NpzFileWriter, (".npz",)),
}


class ExportedMasks(NamedTuple):
    """What :func:`export_masks` wrote.

    Attributes:
        ids: the images, sorted.
        counts: for each class the images whose mask shows it.
        ignored: images whose mask has ignored pixels.
    """

    ids: list[str]
    counts: dict[str, int]
    ignored: list[str]


def export_masks(
    masks: str | Path | Mapping[str, Tensor] | Iterable[tuple[str, Tensor | NDArray[Any]]],
    output: str | Path,
    *,
    to: ExportFormat,
    names: Sequence[str],
    images: str | Path | None = None,
    ignore_index: int = 255,
    instances: Instances = "components",
    segmentation: Segments = "rle",
    simplify: float = 0.0,
    val_ids: Collection[str] = (),
    competition: Competition = "comp6_val",
    workers: int = 4,
    progress: Progress = no_progress,
) -> ExportedMasks:
    """Write predicted or pseudo masks in the format of another tool.

    ================== ===========================================================================
    ``to``             what is written
    ================== ===========================================================================
    ``voc-png``        a folder of ``ID.png``, indexed, in VOC's colours; ignored pixels are 255
    ``voc-server-tar`` one ``.tar.gz``: ``results/VOC2012/Segmentation/comp6_val_cls/ID.png``
    ``coco-json``      one ``.json`` in COCO's ``instances`` format, run lengths or polygons
    ``mmseg``          ``ann_dir/SPLIT/ID.png``, ``img_dir/SPLIT``, and ``dataset.json`` with
                       classes and colours; background is class 0 (``reduce_zero_label`` false)
    ``labelme``        a folder of ``ID.json``, a polygon for each part of an object
    ``yolo-seg``       ``labels/SPLIT/ID.txt``, ``images/SPLIT``, and ``data.yaml``
    ``npz``            ``ID.npz`` with ``mask`` and ``names``; or, where ``output`` ends in
                       ``.npz``, one file with ``ids``, ``names`` and ``masks/ID``
    ================== ===========================================================================

    The output appears whole or not at all, and nothing is ever replaced. The same masks give the
    same bytes. Memory does not grow with the number of masks, but by their ids.

    Polygons run along the sides of pixels and enclose exactly the pixels of their part; a cut
    without width leads into each hole. pycocotools paints exactly the mask from those of COCO.
    Readers of labelme and YOLO cut corners down to whole pixels and paint the outline, too; those
    polygons are a quarter of a pixel smaller, so that pillow paints exactly the mask (from YOLO's
    at the size of the image). ``simplify`` gives that up for fewer corners.

    Note:
        Polygons and run lengths know no ignored pixels: in ``coco-json``, ``labelme`` and
        ``yolo-seg`` they are left out, as background is. Crowds of COCO (``iscrowd`` 1) belong to a
        class, which an ignored pixel has not. A line of YOLO is one part, as it cannot say that two
        belong together.

    Args:
        masks: a folder of PNG masks, as ``wsss segment``, :func:`write_mask` and
            :func:`~wsss_blocks.cli.write_train_masks` leave it (its overlays are left out); or ids
            and masks ``(H, W)`` of integers, as pairs or a dictionary, which may come one by one.
        output: a new or empty folder, or a new file: see the table.
        to: the format.
        names: the K classes, without background; ids are 0 background and ``1..K``. If they are
            COCO's, its JSON has the official category ids (1..90 with gaps), else 1..K.
        images: folder of the photographs, found by id in and below it. Masks must have their size;
            ``mmseg`` and ``yolo-seg`` get copies, ``coco-json`` and ``labelme`` name the files.
            Without it they are called ``ID.jpg``.
        ignore_index: the value of ignored pixels in ``masks``; 255 where it is written.
        instances: what an object is in ``coco-json`` and ``labelme``: pixels of a class that touch,
            be it at a corner, or all pixels of a class in the image.
        segmentation: run lengths or polygons in ``coco-json``.
        simplify: corners of polygons may be left out if none is farther than this, in pixels, from
            what is kept. 0 keeps all but those on straight lines.
        val_ids: in ``mmseg`` and ``yolo-seg`` the ids of the split ``val``; the rest is ``train``.
        competition: the folder in ``voc-server-tar``, without ``_cls``.
        workers: threads.
        progress: called with the masks as they get ready and ``total=`` (None if nobody knows),
            such as ``tqdm.tqdm``.

    Returns:
        The ids and what they show.

    Raises:
        FileNotFoundError: there is no such folder, or a mask has no image.
        FileExistsError: the output is there already.
        ValueError: no masks, an id in a mask without a name, a mask of another size than its image,
            an id that cannot name a file or comes twice, an option that the format does not read;
            for VOC's server other classes than VOC's, or ignored pixels, which it refuses.
        TypeError: a mask does not hold integers.
        OSError: a mask or image cannot be read.
        ImportError: pillow or, for ``coco-json``, pycocotools is not installed.

    Example:
        >>> import json, tempfile, torch
        >>> mask = torch.zeros(4, 6, dtype=torch.uint8)
        >>> mask[1:3, 1:4] = 2
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "masks.json")
        ...     done = export_masks({"a": mask}, path, to="coco-json", names=("cat", "dog"))
        ...     found = json.loads(path.read_text())["annotations"][0]
        >>> done.counts, found["category_id"], found["bbox"], found["area"]
        ({'cat': 0, 'dog': 1}, 2, [1, 1, 3, 2], 6)
    """
    classes = check_class_names(names)
    place = Path(output)
    options = Options(
        classes, place, instances, segmentation, simplify, frozenset(val_ids), competition
    )
    check_options(to, options, ignore_index)
    photographs = None if images is None else Images(Path(images))
    found_masks: Iterable[Any]
    if isinstance(masks, str | Path):
        found_masks = list_masks(Path(masks))
    elif isinstance(masks, Mapping):
        found_masks = masks.items()
    elif isinstance(masks, Iterable):
        found_masks = masks
    else:
        raise TypeError(f"masks must be a folder or ids with masks, got {type(masks).__name__}.")
    total = len(found_masks) if isinstance(found_masks, Sized) else None
    counts, ignored = dict.fromkeys(range(len(classes) + 1), 0), []
    make, opened = _writer(to, place)
    with opened as temporary, Spool(temporary.parent) as results:
        writer = make(temporary, options)

        def convert(one: Named) -> tuple[str, bytes, list[int]]:
            mask = checked_mask(one, names=classes, ignore_index=ignore_index, images=photographs)
            return mask.name, writer.convert(mask), np.unique(mask.ids).tolist()

        for name, result, found in progress(
            ordered_map(convert, pairs(found_masks), workers=workers), total=total
        ):
            results.put(name, result)
            for value in found:
                if value == IGNORED:
                    ignored.append(name)
                else:
                    counts[value] += 1
        if not results:
            raise ValueError("masks must hold at least one mask, got none.")
        unknown = sorted(options.val_ids - results.keys())
        if unknown:
            raise ValueError(f"val_ids must be ids of masks, got {', '.join(unknown[:3])}.")
        ids = list(results)
        writer.finish(results)
    shown = {name: counts[k] for k, name in enumerate(classes, 1)}
    return ExportedMasks(ids, shown, sorted(ignored))


def _writer(to: str, place: Path) -> tuple[MakeWriter, AbstractContextManager[Path]]:
    """Return what writes the format, and the new file or folder it writes into."""
    make, suffixes = _FILES.get(to, (None, ()))
    if make is not None and place.name.lower().endswith(suffixes):
        return make, new_file(place)
    if to not in _FOLDERS:
        raise ValueError(f"output must end in {' or '.join(suffixes)} for {to}, got {place}.")
    return _FOLDERS[to], new_folder(place)
