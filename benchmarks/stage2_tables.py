"""Train second stages on the masks of the systems behind the tables of the docs; write their JSON.

    python -m benchmarks.stage2_tables scenes
    python -m benchmarks.stage2_tables voc --shared $WSSS_SHARED_DATA

Each system is trained with its default command, masks of the training images are exported (of its
network, for CTI of its class maps, behind PAR: examples/export_pseudo_labels.py), and one network
learns from them and from the ground truth (examples/train_segmenter.py). ``voc``: the real subset,
the small presets. Each training is a process of its own with one thread (--jobs of them at a time);
finished ones are kept below --work.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from benchmarks._systems import ROOT, TableOptions, scored_rows, train, write_systems
from benchmarks.dalnet_tables import clip_text
from wsss_blocks.metrics import RecordedMetrics, read_metrics

FULL = "ground truth (fully supervised)"
SYSTEMS = {"DALNet": "dalnet", "DHR": "dhr", "CTI": "cti", "ToCo": "toco"}
CUTS = {"scenes": ["0.1", "0.15"], "voc": ["0.2", "0.4"]}  # of class maps behind PAR, as DALNet's
SMALL = {"DALNet": "dalnet", "CTI": "cti"}  # those that a CPU trains on photographs
COLUMNS = {"masks": "train_mask_miou", "decided": "train_mask_decided", "network": "seg_miou"}
COSTS = {"train, CPU s": "train_cpu_seconds"}
SHARE = "weak / full, %"


@dataclass(frozen=True, kw_only=True)
class Options(TableOptions):
    """What to measure."""

    table: tyro.conf.Positional[Literal["scenes", "voc"]]
    systems: tuple[str, ...] = ()  # of the rows; (): all of the table


def second_stage(name: str, seed: int, options: Options) -> RecordedMetrics:
    """Train a system, export its masks, train a network on them; return what it scored."""
    work, base = options.work / f"stage2-{options.table}", ["--device", "cpu", "--seed", str(seed)]
    base += options.extra
    if options.table == "voc":
        weights = str(options.shared / "weights" / "mobilenetv1_075_imagenet.safetensors")
        data = ["--data", "voc", "--root", str(options.shared), "--split", "train"]
        base += [*data, "--preset", "voc-small", "--weights", weights]
    folder = work / f"full-seed{seed}"
    if name == FULL:
        return read_metrics(train("train_segmenter.py", folder, [*base, "--supervision", "masks"]))
    system = SYSTEMS[name]
    source = work / f"{system}-seed{seed}"
    text = ["--text", str(work / "voc_text.safetensors")] if options.table == "voc" else []
    more = {"DALNet": text, "CTI": ["--cams", "seed", "--no-masks"]}.get(name, [])
    train(f"train_{system}.py", source, [*base, *more])
    made = source / ("cams" if name == "CTI" else "segmenter.safetensors")
    masks = exported(made, source / "masks", options)
    folder = work / f"from-{system}-seed{seed}"
    return read_metrics(train("train_segmenter.py", folder, [*base, "--masks", str(masks)]))


def exported(made: Path, output: Path, options: Options) -> Path:
    """Write the masks of all training images; those that are there already stay."""
    command = [sys.executable, str(ROOT / "examples" / "export_pseudo_labels.py")]
    command += ["--source", str(made), "--refiner", "par", "--output", str(output)]
    command += ["--device", "cpu", "--thresholds", *CUTS[options.table]]
    if options.table == "voc":
        command += ["--data", "voc", "--root", str(options.shared), "--split", "train"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return output


def main(options: Options) -> None:
    known = SYSTEMS if options.table == "scenes" else SMALL
    names = [FULL, *(name for name in known if name in options.systems or not options.systems)]
    if options.table == "voc":
        clip_text(options.shared, options.work / "stage2-voc")
    jobs = [(name, seed) for seed in options.seeds for name in names]
    with ThreadPoolExecutor(options.jobs) as pool:
        found = pool.map(lambda job: second_stage(*job, options), jobs)
        records = dict(zip(jobs, found, strict=True))
    rows, protocols = scored_rows(names, options.seeds, records, columns=COLUMNS, costs=COSTS)
    full = {seed: scores["network"] for seed, scores in rows[0]["seeds"].items()}
    for row in rows[1:]:
        for seed, scores in row["seeds"].items():
            scores[SHARE] = round(100 * scores["network"] / full[seed], 2)
    notes = [
        "Masks: those learnt from, of the first 200 training images; undecided pixels (column "
        "decided) teach nothing and are left out of that score. Network: validation images, no "
        "image labels, the last checkpoint. The share is of the fully supervised network with "
        "the same seed.",
        "The same network, steps and options in all rows; costs are those of the second stage "
        "alone, with several runs at a time on a shared, busy machine.",
    ]
    shown = " --shared $WSSS_SHARED_DATA" if options.table == "voc" else ""
    how = {"command": f"stage2_tables {options.table}{shown}", "records": records}
    columns = [*COLUMNS, SHARE, *COSTS]
    write_systems(
        f"stage2_{options.table}", rows, columns, protocols, notes, options=options, **how
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
