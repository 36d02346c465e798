"""``wsss labels``: a weak-label file from what a data set comes with."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from wsss_blocks.data import WeakLabels

__all__ = ["count_table", "labels"]

Source = Literal["voc-xml", "masks", "coco-json", "folders", "csv", "npy", "txt"]

OWN_MASK_IDS = ("ade20k", "coco-object", "coco-stuff")  # their files do not hold 1..K
SHOWN = 5  # ids that stand for many


def labels(
    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")],
    kind: Annotated[Source, tyro.conf.arg(name="from")],
    output: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    names: Annotated[
        str | None,
        tyro.conf.arg(metavar="NAMES", help_behavior_hint="(default: those of SOURCE)"),
    ] = None,
    ids: Annotated[
        Path | None, tyro.conf.arg(metavar="LIST", help_behavior_hint="(default: all)")
    ] = None,
    exclude: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="FOLDER ...", help_behavior_hint="(default: none)"),
    ] = (),
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> int:
    """Make a weak-label file: which classes each image shows.

    Reads what a data set comes with, writes JSON or CSV that people can read and edit, and prints
    how many images each class has. Training needs this file and the images, never a mask.

        wsss labels VOCdevkit/VOC2012 --from voc-xml --output labels.json
        wsss labels VOCdevkit/VOC2012/SegmentationClassAug --from masks --names voc
            --ids VOCdevkit/VOC2012/ImageSets/Segmentation/train_aug.txt --output labels.json
        wsss labels annotations/instances_train2014.json --from coco-json --output labels.json
        wsss labels cls_labels_onehot.npy --from npy --names voc --output labels.json
        wsss labels train.txt --from txt --names coco --output labels.json
        wsss labels photos --from folders --output labels.csv

    Exit code 0: written; 2: not written, with the reason.

    Args:
        source: the file or folder to read.
        kind: what SOURCE is:
            voc-xml    the folder of VOC's XML files, or VOC2012
            masks      a folder of PNG masks, 0 background, 255 ignored
            coco-json  an instances_*.json
            folders    a folder with a folder of images per class
            csv        columns id,labels (names with ";" between), or
                       id and a column of 0/1 per class
            npy        cls_labels.npy, a pickle; nothing is executed
            txt        lines "ID 3 17", classes counted from 0.
        output: file to write, .json or .csv.
        names: class names in the order of the columns or ids: voc, coco,
            coco-object, context, ade20k, coco-stuff; a text file, one
            a line; a JSON list; or cat,dog,cow. Needed for npy, txt
            and masks. Masks of ade20k, coco-object and coco-stuff are
            read with the pixel values of the official files.
        ids: a text file, an id a line: the images to keep, in that order.
        exclude: with --from folders, folders that are no class.
        overwrite: replace FILE.
    """
    from wsss_blocks.cli.commands._common import class_names
    from wsss_blocks.data._label_tables import check_suffix

    check_suffix(output)
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists: --overwrite replaces it.")
    if exclude and kind != "folders":
        raise ValueError(f"--exclude is for --from folders, got --from {kind}.")
    if names is None and kind in ("masks", "txt"):
        raise ValueError(f"--names is needed: {kind} files hold numbers, not names of classes.")
    if not source.exists():
        raise FileNotFoundError(f"nothing at {source}.")
    order = () if names is None else class_names(names)
    if kind in ("voc-xml", "masks"):
        own_ids = names if kind == "masks" and names in OWN_MASK_IDS else None
        found = _from_folder(source, kind, order, ids, own_ids)
    else:
        found = _from_file(source, kind, order, exclude)
        if ids is not None:
            found = found.subset(_chosen(ids, found.ids, source))
    found.save(output)
    print(_summary(found, output))
    return 0


def _from_folder(
    source: Path,
    kind: Source,
    names: tuple[str, ...],
    ids: Path | None,
    own_ids: str | None,
) -> "WeakLabels":
    """Read a file per image, with a bar."""
    import os

    from wsss_blocks.cli.commands._common import progress
    from wsss_blocks.data import VOC_NAMES, WeakLabels, class_table
    from wsss_blocks.data._files import files_below
    from wsss_blocks.data.folder import id_lookup

    folder = _annotations(source) if kind == "voc-xml" else source
    suffix = ".xml" if kind == "voc-xml" else ".png"
    known = list(files_below(folder, suffix))
    if not known:
        raise ValueError(f"no {suffix} files in {folder}.")
    chosen = known if ids is None else _chosen(ids, known, folder)
    shown = progress(chosen, total=len(chosen), text="reading")
    if kind == "voc-xml":
        return WeakLabels.from_voc_xml(folder, shown, names=names or VOC_NAMES)
    lookup = None if own_ids is None else id_lookup(class_table(own_ids).raw_ids, others=255)
    workers = min(8, os.cpu_count() or 1)
    return WeakLabels.from_masks(folder, shown, names=names, mask_ids=lookup, workers=workers)


def _from_file(
    source: Path, kind: Source, names: tuple[str, ...], exclude: tuple[str, ...]
) -> "WeakLabels":
    from wsss_blocks.data import WeakLabels
    from wsss_blocks.data._label_files import read_npy

    if kind == "folders":
        return WeakLabels.from_folders(source, exclude=exclude, names=names or None)
    if kind == "coco-json":
        return WeakLabels.from_coco_json(source, names=names or None)
    if kind == "csv":
        return WeakLabels.from_csv(source, names=names or None)
    if kind == "npy":
        return WeakLabels(*read_npy(source, names or None))
    return WeakLabels.from_coco_txt(source, names=names)


def _annotations(source: Path) -> Path:
    """Find VOC's XML files in a folder or where VOC keeps them below it."""
    below = ("", "Annotations", "VOC2012/Annotations", "VOCdevkit/VOC2012/Annotations")
    for folder in (source / name for name in below):
        if next(folder.glob("*.xml"), None):
            return folder
    raise FileNotFoundError(f"no .xml files in {source} or its folder Annotations.")


def _chosen(path: Path, known: list[str], source: Path) -> list[str]:
    """Read the ids to keep; an id may hold spaces, and a line more than an id."""
    from wsss_blocks.data._files import read_ids, read_text

    there = set(known)
    whole = [line.strip() for line in read_text(path, "id list").splitlines() if line.strip()]
    chosen = [
        line if line in there else first for line, first in zip(whole, read_ids(path), strict=True)
    ]
    missing = [name for name in chosen if name not in there]
    if missing:
        raise ValueError(
            f"{len(missing):,} of the {len(chosen):,} ids in {path} are not in {source}, such as "
            f"{', '.join(missing[:SHOWN])}. It has ids such as {', '.join(known[:1])}."
        )
    return chosen


def count_table(counts: Mapping[str, int]) -> list[str]:
    """Return the lines of a table of images per class."""
    width = max(map(len, ("class", *counts)))
    lines = [f"  {name:<{width}}  {count:>9,}" for name, count in counts.items()]
    return [f"  {'class':<{width}}  {'images':>9}", *lines]


def _summary(found: "WeakLabels", output: Path) -> str:
    counts = found.counts()
    bare = [image for image in found if not found.classes(image)]
    unseen = [name for name, count in counts.items() if not count]
    some = ", ".join(bare[:SHOWN]) + ", ..." * (len(bare) > SHOWN)
    mean = sum(counts.values()) / max(len(found), 1)
    return "\n".join(
        [
            *count_table(counts),
            "",
            f"{len(found):,} images, {len(counts)} classes, {mean:.2f} classes an image",
            f"images without any class: {len(bare):,}{': ' * bool(bare)}{some}",
            f"classes without images:   {', '.join(unseen) or 'none'}",
            f"hash:                     {found.hash}",
            f"written:                  {output}",
        ]
    )
