"""``wsss sweep``: class activation maps at every background threshold, from one pass."""

import os
from pathlib import Path
from typing import Annotated, Literal

import tyro

from wsss_blocks.cli.commands._ground_truth import Data, ground_truth

__all__ = ["sweep"]


def sweep(
    maps: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="MAPS")]],
    data: Data | None = None,
    root: Path | None = None,
    split: str = "train",
    masks: Path | None = None,
    ids: Path | None = None,
    names: str | None = None,
    labels: Path | None = None,
    normalize: Literal["minmax", "none"] = "minmax",
    scales: tuple[float, ...] | None = None,
    flip: Literal["yes", "no"] | None = None,
    refiner: str | None = None,
    output: Path | None = None,
    allow_missing: bool = False,
    workers: int | None = None,
) -> int:
    """Score class activation maps at every background threshold, from one pass.

    Prints the best threshold of 0.00, 0.01, ..., 0.99 and its mIoU, and beside it two thresholds
    that need no masks: those that Otsu's method and a mixture of two normal distributions find in
    the scores (in at most 4 million of them, as many from each image). A threshold that is chosen
    on the masks it is scored on is an oracle: choose on training images, report on others. Writes
    sweep.json (the curve, the best threshold of each class, the protocol) and sweep.png (the curve)
    into --output.

    MAPS is a store of class maps (CamStoreWriter), or holds a file for each image: ID.npz as
    write_class_maps writes it, or ID.npy with one of the field's dictionaries of numpy arrays,
    {"keys", "cam", "high_res"} (IRN) or {class: map} (PSA, SEAM, MCTformer). Nothing in them is
    executed. The classes that maps are stored of are taken as the image's labels: the scores are
    those of pseudo-labels, not of a segmentation network.

        wsss sweep cams --data voc --root VOCdevkit --split train --output runs/cams

        wsss sweep cams --masks masks --names cat,dog --output runs/cams

    Exit code 0: done; 2: could not be done, as where maps or masks are missing.

    Args:
        maps: a store of class maps, or a folder of files.
        data: the data set that knows the masks; else give --masks and --names.
        root: where the data set lies.
        split: the images, as the data set calls them; for --masks only a word in the protocol.
        masks: a folder of masks ID.png instead of a data set.
        ids: a text file with one id a line: only these images.
        names: what the ids in --masks mean: voc, coco, ..., a file of names, or cat,dog.
        labels: weak labels (JSON, CSV, .npy): leave out stored classes that they do not name.
        normalize: minmax scales each map to 0..1 at the size of its mask, as training does; none
            compares the scores as they are.
        scales: of the images when the maps were made, for the protocol.
        flip: whether maps of mirror images were merged, for the protocol.
        refiner: what was applied to the maps, as "PAR", for the protocol.
        output: folder for sweep.json and sweep.png; without it they are not written.
        allow_missing: score the images that have maps, and say so in the protocol.
        workers: threads; by default one per core.
    """
    from wsss_blocks.cli.commands._sweep_report import choose, report, write
    from wsss_blocks.cli.commands._swept_maps import find_maps, is_store, sweep_maps
    from wsss_blocks.data import WeakLabels
    from wsss_blocks.metrics import EvaluationProtocol

    truth = ground_truth(data=data, root=root, split=split, masks=masks, ids=ids, names=names)
    if not truth.background:
        raise ValueError(f"{truth.dataset} has no background: there is no threshold to choose.")
    found = find_maps(maps, truth.ids, truth.names)
    kept = [i for i, one in enumerate(found) if one is not None]
    missing = [name for name, one in zip(truth.ids, found, strict=True) if one is None]
    if missing and (not allow_missing or not kept):
        wanted = "class maps" if is_store(maps) else "class maps (ID.npz or ID.npy)"
        raise FileNotFoundError(
            f"{len(missing)} of {len(found)} images have no {wanted} in {maps}, among them "
            f"{', '.join(missing[:3])}"
            + ("." if not kept else "; --allow-missing scores the others.")
        )
    truth = truth.only(kept)
    weak = None if labels is None else WeakLabels.load(labels, names=truth.names)
    if weak is not None and (unknown := [name for name in truth.ids if name not in weak]):
        raise ValueError(
            f"{labels} has no row for {len(unknown)} of {len(kept)} images, among them "
            f"{', '.join(unknown[:3])}."
        )
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)

    swept = sweep_maps(
        truth,
        [one for one in found if one is not None],
        labels=weak,
        normalize="minmax" if normalize == "minmax" else None,
        workers=workers or os.cpu_count() or 1,
    )
    protocol = EvaluationProtocol(
        dataset=truth.dataset,
        split=truth.split,
        num_images=len(kept),
        scales=scales,
        flip=None if flip is None else flip == "yes",
        refiner=refiner or "not stated",
        labels_used=True,
        ground_truth_hash=swept.masks_hash,
        missing=len(missing),
    )
    result, classes = swept.sweep.compute(), ("background", *truth.names)
    choices = choose(result, swept.scores, split=truth.split)
    if output is not None:
        facts: dict[str, object] = {
            "normalize": normalize,
            "labelled_classes_without_maps": swept.lacking,
            "sampled_scores": len(swept.scores),
        }
        write(output, result, choices, classes, protocol=protocol, facts=facts)
    print(f"{protocol.describe()}\n\n{report(result, choices, classes)}")
    if swept.lacking:
        print(f"\n{swept.lacking} times a class that {labels} names has no map.")
    if output is not None:
        print(f"\nwrote {output / 'sweep.json'} and {output / 'sweep.png'}")
    return 0
