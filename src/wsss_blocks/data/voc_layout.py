"""Write scenes as a folder in the official VOC 2012 layout."""

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from wsss_blocks._files import replaced
from wsss_blocks._optional import require
from wsss_blocks._validate import check_int
from wsss_blocks.data._drawing import CANVAS, Scene
from wsss_blocks.data.images import write_mask
from wsss_blocks.data.names import DIGIT_NAMES
from wsss_blocks.data.scenes import Scenes

__all__ = ["write_voc_layout"]


def write_voc_layout(
    root: str | Path,
    *,
    train: int = 2000,
    val: int = 200,
    seed: int = 0,
    hard: bool = False,
    names: Sequence[str] = DIGIT_NAMES,
) -> Path:
    """Write scenes under ``root/VOC2012`` as VOC 2012 keeps its images, labels and masks.

    JPEG images, indexed masks with the VOC palette, one XML per image with the names and the
    visible extents of its digits, and the lists ``train.txt`` and ``val.txt``. Each file is written
    under a temporary name and renamed, the lists last.

    Args:
        root: folder to write into; created if missing.
        train: number of training images.
        val: number of validation images.
        seed: seed of the scenes.
        hard: the harder setting of :class:`~wsss_blocks.data.Scenes`.
        names: class names; the digits stand for the first ten.

    Returns:
        The folder ``root/VOC2012``, to be read with ``VOC2012(root, names=names)``.

    Raises:
        ValueError: ``train`` or ``val`` is less than 1, ``seed < 0``, or fewer than ten unique
            names.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = write_voc_layout(folder, train=2, val=1)
        ...     sorted(path.name for path in written.iterdir())
        ['Annotations', 'ImageSets', 'JPEGImages', 'SegmentationClass']
    """
    folder = Path(root) / "VOC2012"
    check_scene_names(names)
    check_int("train", train, least=1)
    check_int("val", val, least=1)
    images = require("PIL.Image", extra="cli", what="write_voc_layout")
    for scenes in (
        Scenes("train", size=train, seed=seed, hard=hard),
        Scenes("val", size=val, seed=seed, hard=hard),
    ):
        for index, name in enumerate(scenes.ids):
            scene = scenes.draw(index)
            with replaced(folder / "JPEGImages" / f"{name}.jpg") as path:
                images.fromarray(scene.image).save(path, format="JPEG", quality=95)
            write_mask(folder / "SegmentationClass" / f"{name}.png", scene.mask)
            with replaced(folder / "Annotations" / f"{name}.xml") as path:
                path.write_text(_annotation(name, scene, names), encoding="utf-8")
        with replaced(folder / "ImageSets" / "Segmentation" / f"{scenes.split}.txt") as path:
            path.write_text("\n".join(scenes.ids) + "\n")
    return folder


def check_scene_names(names: Sequence[str], *, at_most: int = 254) -> None:
    """Raise unless there is a name for each digit, and for no two classes the same."""
    if not len(DIGIT_NAMES) <= len(names) <= at_most or len(set(names)) < len(names):
        raise ValueError(
            f"names must be {len(DIGIT_NAMES)} to {at_most} unique class names, "
            f"got {len(names)} ({len(set(names))} unique)."
        )


def _annotation(name: str, scene: Scene, names: Sequence[str]) -> str:
    objects = []
    for digit in sorted(set(scene.digits)):
        rows, columns = np.nonzero(scene.mask == digit + 1)
        # VOC counts pixels from 1 and includes both ends.
        objects.append(
            f"  <object><name>{escape(names[digit])}</name><difficult>0</difficult><bndbox>"
            f"<xmin>{columns.min() + 1}</xmin><ymin>{rows.min() + 1}</ymin>"
            f"<xmax>{columns.max() + 1}</xmax><ymax>{rows.max() + 1}</ymax></bndbox></object>\n"
        )
    return (
        f"<annotation>\n  <filename>{name}.jpg</filename>\n"
        f"  <size><width>{CANVAS}</width><height>{CANVAS}</height><depth>3</depth></size>\n"
        f"  <segmented>1</segmented>\n{''.join(objects)}</annotation>\n"
    )
