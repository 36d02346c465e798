"""``wsss evaluate``: scores of predicted masks, with the protocol that made them."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from wsss_blocks.cli.commands._common import File, Folder, Names, Number, progress
from wsss_blocks.cli.commands._ground_truth import DataOption, ground_truth

if TYPE_CHECKING:
    from wsss_blocks.cli._mask_pairs import Counting, PairCounted
    from wsss_blocks.cli.commands._predictions import Predictions
    from wsss_blocks.metrics import EvaluationProtocol, SplitEvaluator, SplitScores

__all__ = ["evaluate"]


def evaluate(
    predictions: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="PREDICTIONS")]],
    data: DataOption = None,
    root: Folder = None,
    split: Annotated[str, tyro.conf.arg(metavar="NAME")] = "val",
    masks: Folder = None,
    images: Folder = None,
    ids: File = None,
    names: Names = None,
    image_labels: Annotated[
        Literal["used", "not-used"] | None,
        tyro.conf.arg(metavar="{used,not-used}", help_behavior_hint=""),
    ] = None,
    scales: Annotated[
        tuple[float, ...] | None, tyro.conf.arg(metavar="S ...", help_behavior_hint="")
    ] = None,
    flip: Annotated[
        Literal["yes", "no"] | None, tyro.conf.arg(metavar="{yes,no}", help_behavior_hint="")
    ] = None,
    refiner: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None,
    undecided: Literal["refused", "ignored", "background"] = "refused",
    absent: Annotated[
        Literal["both", "target"] | None,
        tyro.conf.arg(metavar="{both,target}", help_behavior_hint=""),
    ] = None,
    allow_missing: tyro.conf.FlagCreatePairsOff[bool] = False,
    boundary: Annotated[
        Literal["yes", "no"] | None,
        tyro.conf.arg(metavar="{yes,no}", help_behavior_hint="(default: with --output)"),
    ] = None,
    replicates: int = 1000,
    output: Folder = None,
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "cpu",
    workers: Number = None,
) -> int:
    """Score predicted masks, and say by which protocol.

    Prints IoU, precision and recall of each class, mIoU with an interval over images, mFPR, mFNR
    and pixel accuracy. With --output it scores boundary IoU, too, and writes metrics.json (what
    `wsss compare` reads), report.html (one page with the worst and the best images) and images.csv
    (every image).

    PREDICTIONS is a folder of masks ID.png (indexed or grey), or the segmenter.safetensors of a
    run. How masks were made moves their score by points, so a folder has to say so: `wsss segment`
    writes protocol.json beside its masks; else --image-labels must be given, and what --scales,
    --flip and --refiner do not say is printed as "not stated".

        wsss evaluate runs/voc/segmenter.safetensors --data voc --root VOCdevkit --output runs/val
        wsss evaluate predictions --masks masks --names cat,dog --image-labels not-used

    Exit code 0: done; 2: could not be done, as where predictions are missing.

    Args:
        predictions: a folder of masks, or a segmenter.
        data: the data set that knows the true masks; else give --masks and --names.
        root: where the data set lies.
        split: the images, as the data set calls them; for --masks a word in the protocol.
        masks: a folder of true masks ID.png instead of a data set.
        images: with --masks, the folder of the photographs, for report.html.
        ids: a text file with one id a line: only these images.
        names: what the ids in --masks mean: voc, coco, ..., a file of names, or cat,dog.
        image_labels: whether the labels of the scored images helped to predict their masks.
        scales: of the images when they were predicted.
        flip: whether predictions of mirror images were merged.
        refiner: what was applied to the predictions, as "CRF(...)".
        undecided: what a predicted 255 is where the truth is a class: an error; left out (which
            rewards skipping what is hard); or background.
        absent: classes left out of means: absent from prediction and truth of all images, or from
            the truth. Without it "both", and "target" for data without background.
        allow_missing: score the images that have predictions, and say so in the protocol.
        boundary: score boundary IoU, which doubles the time.
        replicates: of the bootstrap that gives the interval; 0 does without.
        output: folder for metrics.json, report.html and images.csv.
        device: where a segmenter runs, as cuda.
        workers: processes that read and count masks.
    """
    from wsss_blocks.cli.commands import _predictions as found_by

    truth = ground_truth(
        data=data, root=root, split=split, masks=masks, ids=ids, names=names, images=images
    )
    stated = {
        "labels_used": None if image_labels is None else image_labels == "used",
        "scales": scales,
        "flip": None if flip is None else flip == "yes",
        "refiner": refiner,
    }
    if predictions.is_file():
        if any(value is not None for value in stated.values()):
            raise ValueError(
                "a segmenter says itself how it predicts: leave out --image-labels, --scales, "
                "--flip and --refiner."
            )
        found = found_by.predictions_of_network(predictions, truth, device=device)
    else:
        found = found_by.predictions_of_files(
            predictions, truth, stated=stated, allow_missing=allow_missing
        )
    from wsss_blocks.cli._mask_pairs import Counting
    from wsss_blocks.ops.mask_pairs import BORDER_RATIO

    contours = boundary == "yes" or (boundary is None and output is not None)
    how = Counting(
        classes=len(truth.names) + 1,
        ignored=255,
        undecided=undecided,
        boundary_ratio=BORDER_RATIO if contours else None,
        lookup=truth.lookup,
    )
    counted = _start(found, how, workers or os.cpu_count() or 1)
    from wsss_blocks.metrics import EvaluationProtocol, SplitEvaluator

    evaluator = SplitEvaluator(
        len(truth.names) + 1,
        names=("background" if truth.background else "(no class)", *truth.names),
        absent=absent or ("both" if truth.background else "target"),
        undecided=undecided,
        boundary=contours,
        replicates=replicates,
    )
    fields = {
        **found.stated,
        "dataset": truth.dataset,
        "split": truth.split,
        "num_images": len(found.truth.ids),
        "absent_rule": evaluator.regions.absent,
        "undecided": undecided,
        "ground_truth_hash": None,
    }
    try:
        protocol = EvaluationProtocol.from_dict(fields)
    except (ValueError, TypeError) as error:
        file = predictions / found_by.PROTOCOL_FILE
        if not file.is_file():
            raise
        raise ValueError(f"{file} must hold a protocol, got: {error}") from error
    protocol = replace(protocol, ground_truth_hash=_count(found, evaluator, counted))
    scores = evaluator.compute()
    if output is not None:
        _write(output, scores, protocol, found)
    print(f"{protocol.describe()}\n\n{scores.table()}")
    if output is not None:
        print(f"\nwrote metrics.json, report.html and images.csv into {output}")
    return 0


def _start(found: "Predictions", how: "Counting", workers: int) -> "Iterator[PairCounted] | None":
    """Let processes count files while this one loads torch; None if a network predicts."""
    from wsss_blocks.cli._mask_pairs import MaskFiles, count_pairs

    if found.paths is None:
        return None
    truth = found.truth
    files = list(map(MaskFiles, truth.ids, found.paths, truth.paths))
    return count_pairs(files, how, workers=workers)


def _count(
    found: "Predictions", evaluator: "SplitEvaluator", counted: "Iterator[PairCounted] | None"
) -> str:
    """Score all images; return the hash of the true masks."""
    from torch import from_numpy

    from wsss_blocks.cli.evaluate import add_counted
    from wsss_blocks.ops.mask_pairs import hash_digests, mask_digest

    truth, total = found.truth, len(found.truth.ids)
    if counted is not None:
        return add_counted(evaluator, progress(counted, total=total, text="masks"))
    digests = []
    for i in progress(range(total), total=total, text="images"):
        ids = truth.read(i)
        evaluator.update(truth.ids[i], from_numpy(found.read(i)), from_numpy(ids))
        digests.append(mask_digest(ids))
    return hash_digests(digests)


def _write(
    output: Path, scores: "SplitScores", protocol: "EvaluationProtocol", found: "Predictions"
) -> None:
    from wsss_blocks.cli.page import Picture
    from wsss_blocks.cli.split_report import write_split_report
    from wsss_blocks.data import read_image, voc_palette
    from wsss_blocks.metrics import read_metrics, write_metrics

    truth = found.truth
    position = {name: i for i, name in enumerate(truth.ids)}

    def picture(name: str, caption: str) -> Picture:
        i = position[name]
        image = None
        if truth.images is not None:
            image = (read_image(truth.images[i]).permute(1, 2, 0) * 255).round().byte()
        return Picture(name, caption, image, found.read(i), truth.read(i))

    write_metrics(output / "metrics.json", {"segmentation": scores}, protocol)
    write_split_report(
        output,
        scores,
        protocol,
        title=f"{truth.dataset} {truth.split}",
        picture=picture,
        palette=voc_palette() if found.palette is None else found.palette,
        run=read_metrics(output / "metrics.json").run,
    )
