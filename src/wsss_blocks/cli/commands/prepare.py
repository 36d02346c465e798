"""``wsss prepare``: the masks that downloads of VOC and COCO lack."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from wsss_blocks.cli.commands.labels import count_table

__all__ = ["prepare"]


@dataclasses.dataclass
class VocAug:
    """Build the augmented training set of VOC 2012 (10,582 images) from SBD.

    Writes SegmentationClassAug/*.png (indexed, VOC palette) and
    ImageSets/Segmentation/train_aug.txt into the VOC2012 folder. The list is all of SBD and VOC's
    train images without VOC's val images. Masks are VOC's own for its train and val images, else
    SBD's, which mark no borders (no 255). Masks that are there and right are kept: after an
    interruption call it again. The list is written last, and only if every mask could be built.

        wsss prepare voc-aug VOCdevkit/VOC2012 --sbd benchmark_RELEASE

    VOC 2012 is VOCtrainval_11-May-2012.tar, SBD is benchmark.tgz of the Semantic Boundaries
    Dataset. Exit code 0: built; 2: not built, with the reason (broken files are named).
    """

    root: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="VOC2012")]
    """the folder VOC2012, or the VOCdevkit around it."""
    sbd: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """benchmark_RELEASE as it is unpacked, or the folder with cls/*.mat, train.txt and val.txt."""
    workers: int = 4
    """threads."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """replace masks and lists that are there and differ."""
    allow_incomplete: tyro.conf.FlagCreatePairsOff[bool] = False
    """accept another number of images than 10,582, for a subset of VOC or SBD."""


@dataclasses.dataclass
class Coco:
    """Build the masks of COCO from its instances_*.json.

    Writes NAME.png (indexed) for each image, and masks.json with the rule, the counts and one
    checksum over all masks: whoever built the same masks has the same checksum. The rule: 0
    background; 1..80 the categories in the order of their ids; regions are painted from the one
    with the most pixels to the one with the fewest (among equals by annotation id), so that the
    smaller is seen; crowds (iscrowd 1) are painted in their turn, as 255, ignored. Images without
    annotations get an all-zero mask. Masks that are there and right are kept: after an
    interruption call it again.

        wsss prepare coco annotations/instances_val2014.json --output SegmentationClass/val2014

    Any file in COCO's format will do. The official one of the training images (about 450 MB) needs
    2 to 3 GB of memory. Exit code 0: built; 2: not built, with the reason.
    """

    instances: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="INSTANCES_JSON")]
    """the annotation file."""
    output: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """folder for the masks; the library looks in SegmentationClass/SPLIT beside the images."""
    workers: int = 4
    """threads."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """replace masks that are there and differ."""


def prepare(
    what: tyro.conf.OmitArgPrefixes[
        Annotated[VocAug, tyro.conf.subcommand("voc-aug")]
        | Annotated[Coco, tyro.conf.subcommand("coco")]
    ],
) -> int:
    """Build masks that the downloads of VOC and COCO lack.

    Training needs none of them, evaluation does.

        wsss prepare voc-aug VOCdevkit/VOC2012 --sbd benchmark_RELEASE
        wsss prepare coco annotations/instances_val2014.json --output SegmentationClass/val2014
    """
    return _voc_aug(what) if isinstance(what, VocAug) else _coco(what)


def _voc_aug(options: VocAug) -> int:
    from wsss_blocks.cli.commands._common import progress
    from wsss_blocks.data import build_voc_aug

    done = build_voc_aug(
        options.root,
        options.sbd,
        overwrite=options.overwrite,
        allow_incomplete=options.allow_incomplete,
        workers=options.workers,
        progress=partial(progress, text="masks"),
    )
    print(f"train_aug.txt: {len(done.ids):,} images")
    print(f"masks written: {done.written:,} (those of val included; right ones were kept)")
    print(f"hash of the train_aug masks: {done.hash}")
    return 0


def _coco(options: Coco) -> int:
    from wsss_blocks.cli.commands._common import progress
    from wsss_blocks.data import build_coco_masks

    done = build_coco_masks(
        options.instances,
        options.output,
        overwrite=options.overwrite,
        workers=options.workers,
        progress=partial(progress, text="masks"),
    )
    print(*count_table(done.counts), sep="\n")
    print(f"\n{len(done.ids):,} masks in {options.output}, {done.written:,} of them written now")
    print(f"masks without any class: {len(done.empty):,}")
    if done.without_outline:
        print(f"annotations without an outline, left out: {len(done.without_outline):,}")
    print(f"hash of all masks: {done.hash}")
    return 0
