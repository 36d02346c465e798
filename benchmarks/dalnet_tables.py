"""Train the variants of DALNet behind the tables of the docs, and write their JSON.

    python -m benchmarks.dalnet_tables scenes
    python -m benchmarks.dalnet_tables sweep
    python -m benchmarks.dalnet_tables voc-small --shared $WSSS_SHARED_DATA
    python -m benchmarks.dalnet_tables voc-small-crf --shared $WSSS_SHARED_DATA

Each training is a process of its own with one thread (--jobs of them at a time); finished ones
are kept below --work, so the command can be stopped and repeated. ``voc-small`` wants the
VOCdevkit, the ImageNet MobileNet and CLIP's text embeddings below --shared. ``voc-small-crf``
evaluates one of its rows again, from the last checkpoint, with several views and a dense CRF.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from benchmarks._systems import TableOptions, train_all, write_systems
from wsss_blocks.backbones import TextBank
from wsss_blocks.data import VOC_NAMES

PLAIN, NO_GIA, NO_LEA, CLASSIFY = ["--no-gia", "--no-lea"], ["--no-gia"], ["--no-lea"], ["--no-seg"]
SCENES = {
    "classification only": [*PLAIN, *CLASSIFY],
    "decoder, no text": PLAIN,
    "DALNet: + GIA + LEA": [],
    "DALNet, small ViT (--preset scenes-vit)": ["--preset", "scenes-vit"],
}
SHORT = ["--steps", "800", "--clip", "0"]  # measured before gradients were clipped
SWEEP = {
    f"layer {layer}, beta {beta}": [*SHORT, "--layer", str(layer), "--beta", str(beta)]
    for layer, beta in ((1, 0.5), (2, 0.3), (2, 0.5), (3, 0.5))
}
VOC_SMALL = {
    "plain CAM": PLAIN,
    "+ GIA": ["--gia", *NO_LEA],
    "+ LEA": NO_GIA,
    "+ GIA + LEA": ["--gia"],
}
VIEWS = ["--eval-scales", "0.75", "1.0", "1.25"]
CRF = {"+ LEA, evaluated again": [*NO_GIA, "--refine", "crf", *VIEWS]}
ONE_SEED = {"DALNet, small ViT (--preset scenes-vit)", *CRF}  # they take twice as long
COLUMNS = {  # heading: (result, whether it is a share of one)
    "CAM": "cam_miou",
    "CAM + PAR": "cam_par_miou",
    "CAM + CRF": "cam_crf_miou",
    "text map": "text_cam_miou",
    "text map + PAR": "text_cam_par_miou",
    "text map + CRF": "text_cam_crf_miou",
    "pseudo-label": "pseudo_label_miou",
    "decided": "pseudo_label_decided",
    "decoder, one view": "seg_raw_miou",
    "decoder": "seg_miou",
    "decoder + CRF": "seg_crf_miou",
}
COSTS = {
    "train, CPU s": "train_cpu_seconds",
    "evaluate, s": "evaluation_seconds",
    "memory, MiB": "peak_memory_mib",
}


@dataclass(frozen=True, kw_only=True)
class Options(TableOptions):
    """What to measure."""

    table: tyro.conf.Positional[Literal["scenes", "sweep", "voc-small", "voc-small-crf"]]


def clip_text(shared: Path, folder: Path) -> Path:
    """Write the bank of the VOC names; background is the mean of CLIP's 91 stuff classes."""
    path = folder / "voc_text.safetensors"
    classes = np.load(shared / "clip_text" / "zegclip_voc12_single.npy").astype(np.float32)
    coco = np.load(shared / "clip_text" / "zegclip_coco_single.npy").astype(np.float32)
    stuff = coco[80:] / np.linalg.norm(coco[80:], axis=1, keepdims=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    source = "CLIP ViT-B (zegclip_voc12_single), background = mean of 91 stuff classes"
    TextBank.from_arrays(
        classes, stuff.mean(0, keepdims=True), names=VOC_NAMES, source=source
    ).save(path)
    return path


def main(options: Options) -> None:
    tables = {"scenes": SCENES, "sweep": SWEEP, "voc-small": VOC_SMALL, "voc-small-crf": CRF}
    variants, costs = tables[options.table], list(COSTS)
    base, work = ["--device", "cpu", *options.extra], options.work / options.table
    notes = [
        "The last checkpoint of each run, never the best.",
        "Costs were measured with several runs at a time on a shared, busy machine.",
        "The thresholds shown are those of the first run; each run chose its own.",
    ]
    if options.table == "voc-small-crf":
        costs.remove("train, CPU s")
        row = list(VOC_SMALL.values()).index(NO_GIA)
        for seed in options.seeds:  # trained by then, or trained now
            done, folder = options.work / "voc-small" / f"{row}-seed{seed}", work / f"0-seed{seed}"
            if done.is_dir() and not folder.is_dir():
                shutil.copytree(done, folder, ignore=shutil.ignore_patterns("metrics.json"))
    if options.table.startswith("voc-small"):
        text = clip_text(options.shared, work)
        weights = options.shared / "weights" / "mobilenetv1_075_imagenet.safetensors"
        base += ["--data", "voc", "--preset", "voc-small", "--root", str(options.shared)]
        base += ["--split", "train", "--text", str(text), "--weights", str(weights)]
        base += ["--eval-images", "60"]
    jobs = {
        (name, seed): (work / f"{i}-seed{seed}", [*base, *switches, "--seed", str(seed)])
        for i, (name, switches) in enumerate(variants.items())
        for seed in (options.seeds[:1] if name in ONE_SEED else options.seeds)
    }
    records = train_all("train_dalnet.py", jobs, at_once=options.jobs)
    rows, protocols = [], {}
    for name, switches in variants.items():
        seeds = {}
        for seed in options.seeds:
            if (name, seed) not in records:
                continue
            record, values = records[name, seed], {}
            for heading, result in COLUMNS.items():
                untrained = heading.startswith("text") and {"--no-gia", "--no-lea"} <= set(switches)
                if result in record.results and not untrained:
                    values[heading] = round(100 * record.results[result], 2)
                    protocols.setdefault(heading, {"line": record.protocol[result].describe()})
            values |= {heading: record.run[COSTS[heading]] for heading in costs}
            seeds[str(seed)] = {k: round(float(v), 2) for k, v in values.items()}
        rows.append({"name": name, "seeds": seeds})
    shown = " --shared $WSSS_SHARED_DATA" if options.table.startswith("voc-small") else ""
    measured = {column for row in rows for values in row["seeds"].values() for column in values}
    names = {"sweep": "scenes_sweep"}
    name = names.get(options.table, options.table).replace("-", "_")
    how = {"command": f"dalnet_tables {options.table}{shown}", "records": records}
    columns = [column for column in (*COLUMNS, *COSTS) if column in measured]
    write_systems(f"dalnet_{name}", rows, columns, protocols, notes, **how, options=options)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
