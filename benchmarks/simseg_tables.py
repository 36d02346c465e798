"""Train SimSeg (LoDA) behind the tables of the docs, and write their JSON.

    python -m benchmarks.simseg_tables scenes
    python -m benchmarks.simseg_tables equal
    python -m benchmarks.simseg_tables responses
    python -m benchmarks.simseg_tables masking
    python -m benchmarks.simseg_tables coco --shared $WSSS_SHARED_DATA

``scenes``: LoDA against average pooling, each with and without the LayerNorm in front of the
projection. ``equal``: both for half and twice the steps, to be compared at equal time or at equal
mAP. ``responses``: how many responses are kept, in training and in evaluation alone. ``masking``:
what becomes of padding. ``coco``: captioned photographs and a frozen ImageNet MobileNet.

Each training is a process of its own with one thread (--jobs of them at a time); finished ones are
kept below --work, where tables share them. A row that differs in evaluation alone takes the last
checkpoint of the run that it names.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

from benchmarks._systems import TableOptions, scored_rows, train_all, write_systems


class Row(NamedTuple):
    """One line of a table: options of the training, then those of another evaluation of it."""

    training: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """A name for the training that tables share, and for the evaluation after it."""
        words = [word.removeprefix("--") for word in (*self.training, *self.evaluation)]
        return "-".join(words or ["default"])


AVERAGE, NO_NORM, DOT = ("--pool", "average"), ("--no-image-norm",), ("--similarity", "dot")
SCENES = {
    "LoDA": Row(),
    "LoDA, dot products": Row((), DOT),
    "average": Row(AVERAGE),
    "LoDA, no LayerNorm": Row(NO_NORM),
    "LoDA, no LayerNorm, dot products": Row(NO_NORM, DOT),
    "average, no LayerNorm": Row((*AVERAGE, *NO_NORM)),
    "average, no LayerNorm, dot products": Row((*AVERAGE, *NO_NORM), DOT),
}
EQUAL = {
    f"{name}, {steps} steps": Row((*pool, *(() if steps == 1200 else ("--steps", str(steps)))))
    for name, pool in (("LoDA", ()), ("average", AVERAGE))
    for steps in (600, 1200, 2400)
}
IMAGE_K, TEXT_K = (1, 5, 14, 36), (1, 2, 4)  # the preset's are 14 and 2
RESPONSES = {
    f"trained with {i} and {t}": Row(
        (*(() if i == 14 else ("--image-k", str(i))), *(() if t == 2 else ("--text-k", str(t))))
    )
    for i, t in (*((i, 2) for i in IMAGE_K), *((14, t) for t in TEXT_K if t != 2))
} | {
    f"evaluated with {i} and {t}": Row((), ("--image-k", str(i), "--eval-text-k", str(t)))
    for t in TEXT_K
    for i in IMAGE_K
    if (i, t) != (14, 2)
}
MASKING = {
    "left out in both": Row(),
    "kept in training": Row(("--mask-padding", "False", "True")),
    "kept in both": Row(("--mask-padding", "False", "False")),
}
COCO = {
    "LoDA": Row(),
    "average": Row(AVERAGE),
    "average, no LayerNorm": Row((*AVERAGE, *NO_NORM)),
}
TABLES = {
    "scenes": SCENES,
    "equal": EQUAL,
    "responses": RESPONSES,
    "masking": MASKING,
    "coco": COCO,
}
COLUMNS = {
    "masks": "zero_shot_miou",
    "masks of given classes": "zero_shot_labels_miou",
    "class mAP": "class_ap",
    "image to text": "image_to_text_r1",
    "text to image": "text_to_image_r1",
    "mean recall": "mean_recall",
    "image to text, chance": "chance_image_to_text_r1",
    "text to image, chance": "chance_text_to_image_r1",
}
COSTS = {"train, CPU s": "train_cpu_seconds"}
NOTES = {
    "scenes": "class_token pooling is left out: the global token of the small CNN is the mean of "
    "its map, so that it would be average pooling again.",
    "equal": "The learning rate falls to zero at the end of each run, however long it is.",
    "responses": "Numbers of patches (of 144) and of words kept. Rows that were trained otherwise "
    "keep as many patches in evaluation as in training, and 2 words; the others are the run with "
    "14 and 2, evaluated again.",
    "masking": "What becomes of padding when words are pooled; all captions are padded to 16 "
    "positions. The small text encoder has no tokens for start and end.",
    "coco": "MobileNet is frozen and its maps are cached: what learns is a LayerNorm, a linear "
    "layer and the text encoder. The captioned images are others than those that are scored; the "
    "last 200 are held out for retrieval, with all their captions.",
}


@dataclass(frozen=True, kw_only=True)
class Options(TableOptions):
    """What to measure."""

    table: tyro.conf.Positional[Literal["scenes", "equal", "responses", "masking", "coco"]]
    seeds: tuple[int, ...] = ()  # (): 0 1 2 of scenes and masking, 0 of the others
    rows: tuple[str, ...] = ()  # names of some; (): all of the table


def caption_file(shared: Path, folder: Path) -> Path:
    """Write the captions of the shared COCO photographs as ``ImageTextPairs`` reads them."""
    content = json.loads((shared / "coco_captions" / "index.json").read_text())
    path = folder / "captions.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    captions = {name: about["captions"] for name, about in content["images"].items()}
    path.write_text(json.dumps(captions, indent=1) + "\n")
    return path


def options_of_coco(shared: Path, work: Path) -> list[str]:
    """Return the options of all runs on photographs."""
    captions = caption_file(shared, work)
    weights = shared / "weights" / "mobilenetv1_075_imagenet.safetensors"
    found = ["--preset", "pairs", "--data", "pairs", "--root", str(shared / "coco_captions/images")]
    found += ["--captions", str(captions), "--encoder", "mobilenet", "--weights", str(weights)]
    return [*found, "--eval-data", "coco", "--eval-root", str(shared / "coco_small")]


def copied(trained: Path, folder: Path) -> None:
    """Give another evaluation a finished run to resume, which has no step left to do."""
    if folder.is_dir():
        return
    part = folder.with_name(f"{folder.name}.part")  # half of a run would be trained to its end
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(trained, part, ignore=shutil.ignore_patterns("metrics.json", "figures", "log*"))
    part.rename(folder)


def records_of(
    rows: Mapping[str, Row], seeds: Sequence[int], base: Sequence[str], work: Path, options: Options
) -> dict[Any, Any]:
    """Train what is trained, evaluate the others; the cost of a row is that of its training."""

    def jobs(wanted: Iterator[Row]) -> dict[Any, Any]:
        return {
            (row, seed): (
                work / f"{row.folder}-seed{seed}",
                [*base, *row.training, *row.evaluation, "--seed", str(seed), *options.extra],
            )
            for row in wanted
            for seed in seeds
        }

    first = jobs(row._replace(evaluation=()) for row in rows.values())
    found = train_all("train_simseg.py", first, at_once=options.jobs)
    again = jobs(row for row in rows.values() if row.evaluation)
    for (row, seed), (folder, _) in again.items():
        copied(first[row._replace(evaluation=()), seed][0], folder)
    found |= train_all("train_simseg.py", again, at_once=options.jobs)
    for (row, seed), record in found.items():
        cost = {key: found[row._replace(evaluation=()), seed].run[key] for key in COSTS.values()}
        found[row, seed] = record._replace(run={**record.run, **cost})
    return {(name, seed): found[row, seed] for name, row in rows.items() for seed in seeds}


def main(options: Options) -> None:
    table = options.table
    several = (0, 1, 2) if table in ("scenes", "masking") else (0,)
    options = replace(options, seeds=options.seeds or several)
    rows = {n: row for n, row in TABLES[table].items() if n in options.rows or not options.rows}
    work = options.work / ("simseg-coco" if table == "coco" else "simseg-scenes")
    base = ["--device", "cpu", *(options_of_coco(options.shared, work) if table == "coco" else ())]
    records = records_of(rows, options.seeds, base, work, options)
    found, protocols = scored_rows(rows, options.seeds, records, columns=COLUMNS, costs=COSTS)
    notes = [
        "The last checkpoint of each run, never the best. Masks of validation images from class "
        "names alone; with given classes, the image labels say which. The threshold of the maps is "
        "the best on the first 200 training images, chosen anew for each row; the protocol shows "
        "that of the first. Class mAP: of the cosines of images and names.",
        "Retrieval is R@1 among held-out images and their captions; equal captions count as one. "
        "The mean is that of R@1, R@5 and R@10 both ways, a sixth of the papers' RSUM.",
        NOTES[table],
        "Costs were measured with several runs at a time on a shared, busy machine.",
    ]
    shown = " --shared $WSSS_SHARED_DATA" if table == "coco" else ""
    how = {"command": f"simseg_tables {table}{shown}", "records": records, "options": options}
    write_systems(f"simseg_{table}", found, [*COLUMNS, *COSTS], protocols, notes, **how)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
