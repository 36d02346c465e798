"""Semantic masks of COCO from ``instances_*.json``, the same on every machine."""

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsss_blocks._files import replaced
from wsss_blocks._parallel import ordered_map
from wsss_blocks.data._built_masks import Progress, no_progress, put_mask
from wsss_blocks.data._coco_outlines import CROWD, paint, read_instances
from wsss_blocks.ops.mask_pairs import hash_digests, mask_digest

__all__ = ["RULE", "CocoMasks", "build_coco_masks"]

RULE = (
    "0 background; 1..K the categories in the order of their ids; regions are painted from the one "
    "with the most pixels to the one with the fewest, among equals in the order of the annotation "
    "ids, so that the smaller is seen; crowds (iscrowd 1) are painted in their turn, as 255"
)


class CocoMasks(NamedTuple):
    """What :func:`build_coco_masks` made.

    Attributes:
        ids: the images, sorted.
        written: masks written in this call; the others were there.
        counts: for each class the images whose mask shows it.
        empty: images whose mask shows no class.
        without_outline: ids of annotations that have no outline to paint.
        hash: of all masks in the order of ``ids``, by :func:`~wsss_blocks.metrics.hash_masks`: the
            same on every machine, and in the protocol of who is scored against them.
    """

    ids: list[str]
    written: int
    counts: dict[str, int]
    empty: list[str]
    without_outline: list[int]
    hash: str


def build_coco_masks(
    instances: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    workers: int = 4,
    progress: Progress = no_progress,
) -> CocoMasks:
    """Build an indexed PNG mask for each image of a COCO ``instances_*.json``.

    0 is background, 1..K are the categories in the order of their ids. Regions are painted from the
    one with the most pixels to the one with the fewest, among equals in the order of the annotation
    ids, so that the smaller is seen. Crowds (``iscrowd`` 1) are painted in their turn, as 255.

    A mask is called after its image (``COCO_train2014_000000000009.png``) and has the VOC palette.
    It is written under a temporary name and renamed; an image without annotations gets an all-zero
    mask. Masks that are there already and right are kept, so a call that was interrupted can be
    repeated. ``masks.json``, written last, holds the rule, the hash of the source, the counts and
    the hash of all masks.

    Note:
        Masks of COCO are handed around without their rule. A released converter paints objects in
        the order of the file and leaves out crowds; in 386 images of COCO 2017 that order gives
        another class to 1 or 2 pixels in 100.

    Args:
        instances: the annotation file. The official one of the training images has about 450 MB
            and needs 2 to 3 GB of memory.
        output: folder of the masks.
        overwrite: replace files that differ from what is built.
        workers: threads.
        progress: called with the masks as they get ready and ``total=``, such as ``tqdm.tqdm``.

    Returns:
        The ids, counts and hash.

    Raises:
        FileNotFoundError: there is no such file.
        FileExistsError: a file is there that differs, and ``overwrite`` is False.
        ValueError: it is not a COCO instances file, has more than 254 categories, two images of one
            name, or no outlines; the message names the image or annotation.
        ImportError: pycocotools or pillow is not installed.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.data import write_coco_layout
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_coco_layout(folder, train=2, val=1)
        ...     instances = root / "annotations" / "instances_val2014.json"
        ...     found = build_coco_masks(instances, root / "masks")
        ...     found.ids, found.written, sum(found.counts.values())
        (['COCO_val2014_000000500001'], 1, 1)
    """
    path, folder = Path(instances), Path(output)
    names, images, source = read_instances(path)
    without = [r.number for image in images.values() for r in image.regions if not r.outline]
    if without and len(without) == sum(len(image.regions) for image in images.values()):
        raise ValueError(f"{path} must hold outlines (segmentation), got boxes alone.")

    def build(name: str) -> tuple[bytes, list[int], bool]:
        mask = paint(images[name], path)
        new = put_mask(folder / f"{name}.png", mask, overwrite=overwrite)
        return mask_digest(mask), np.unique(mask).tolist(), new

    ids = sorted(images)
    digests, counts, empty, written = [], Counter[int](), [], 0
    results = progress(ordered_map(build, ids, workers=workers), total=len(ids))
    for name, (digest, values, new) in zip(ids, results, strict=True):
        digests.append(digest)
        classes = [value for value in values if value not in (0, CROWD)]
        counts.update(classes)
        empty += [] if classes else [name]
        written += new
    found = CocoMasks(
        ids,
        written,
        {name: counts[k] for k, name in enumerate(names, 1)},
        empty,
        sorted(without),
        hash_digests(digests),
    )
    content = {
        "rule": RULE,
        "source": path.name,
        "source_sha256": source,
        "masks": len(ids),
        "masks_without_class": len(empty),
        "annotations_without_outline": found.without_outline,
        "images_per_class": found.counts,
        "hash": found.hash,
    }
    with replaced(folder / "masks.json") as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return found
