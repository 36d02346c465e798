"""``wsss doctor``: what is wrong with a data set, before any GPU time is spent."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from wsss_blocks.data import Examination

__all__ = ["doctor"]

SHOWN = 5  # paths of each kind


def doctor(
    root: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")],
    layout: Literal["auto", "voc", "coco", "context", "ade20k", "folder"] = "auto",
    labels: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    masks: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    names: Annotated[str | None, tyro.conf.arg(metavar="NAMES")] = None,
    report: Annotated[Path | None, tyro.conf.arg(name="json", metavar="FILE")] = None,
    ignore: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KIND ...")] = (),
    everything: Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(name="all")] = False,
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
) -> int:
    """Check a data set: find broken files, wrong labels and wrong masks.

    Reads every image once, and every mask if there are any; changes nothing. Prints each kind of
    finding with its count, what to do about it, and the first paths.

        wsss doctor VOCdevkit
        wsss doctor photos --labels labels.csv --json report.json
        wsss doctor coco --ignore grey no-class

    Exit code 0: nothing found; 1: something found; 2: could not be examined; 130: interrupted.

    Kinds of findings (the report says what to do about each):

        empty-file         a file of 0 bytes
        unreadable         a file that is no image
        truncated          an image that ends too early
        label-without-file a label row or list entry without image
        file-without-label an image that no label row names
        labels-unreadable  no labels, or labels or a list that cannot be read
        class-names        classes that differ from those expected
        empty-class        a class without images to learn it from
        no-class           an image whose labels name no class
        duplicate-id       an id used twice, in two splits or for two files
        duplicate-content  an image file with the bytes of another one
        missing-mask       no mask, although others of the split have one
        size-mismatch      a mask of another size than its image
        rgb-mask           a mask saved as a colour picture
        mask-id            a mask with an id above the number of classes
        label-not-in-mask  a class of the labels that the mask lacks
        mask-not-in-label  a class of the mask that the labels lack
        split-size         an official split with another number of images
        cmyk               a CMYK image
        exif-rotated       an image turned by its EXIF orientation
        grey               an image without colours
        one-pixel          an image one pixel high or wide

    Args:
        root: what to check: VOC2012 or the VOCdevkit around it, the folder around COCO's images and
            annotations, ADEChallengeData2016, or a folder of your own images.
        layout: how FOLDER is laid out; auto looks. folder: images in FOLDER, FOLDER/images,
            FOLDER/train/images, ... with labels.json or labels.csv beside them, or in a folder
            per class; masks in a folder "masks" beside them.
        labels: a label file (.json, .csv, .npy, .txt) instead of the labels in FOLDER.
        masks: the folder of the masks, instead of the one in FOLDER.
        names: class names: voc, coco, coco-object, context, ade20k or coco-stuff; a text file with
            one name a line; a JSON file with a list; or cat,dog,cow. By default those of the
            official data set, or of the labels.
        report: write everything that was found as JSON.
        ignore: kinds of findings to leave out.
        everything: print all paths, not the first five of each kind.
        workers: threads that read images; by default one for each CPU, at most 16.
    """
    import json

    from wsss_blocks._files import replaced
    from wsss_blocks.cli.commands._common import class_names, progress
    from wsss_blocks.data.doctor import Interrupted, examine_with

    code = 0
    try:
        found = examine_with(
            lambda seen, total: progress(seen, total=total, text="reading"),
            root,
            layout=layout,
            labels=labels,
            masks=masks,
            names=None if names is None else class_names(names),
            ignore=ignore,
            workers=workers,
        )
    except Interrupted as stopped:
        found, code = stopped.examination, 130
    _print(found, limit=None if everything else SHOWN)
    if report is not None:
        with replaced(report) as path:
            path.write_text(json.dumps(found.to_dict(), indent=1) + "\n", encoding="ascii")
    return code or int(bool(found.findings))


def _print(found: "Examination", *, limit: int | None) -> None:
    """Print the report: with a table for people in front of a terminal."""
    if sys.stdout.isatty():
        _print_table(found)
    encoding = sys.stdout.encoding or "ascii"
    text = found.describe(limit=limit)
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def _print_table(found: "Examination") -> None:
    from rich.console import Console
    from rich.table import Table

    from wsss_blocks.data._doctor.kinds import KINDS

    if found.findings:
        table = Table("kind", "count", "what it is", "what to do")
        for kind, count in found.counts.items():
            table.add_row(kind, str(count), *KINDS[kind])
        Console().print(table)
