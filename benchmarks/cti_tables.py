"""Train CTI behind the tables of the docs, and write their JSON.

    python -m benchmarks.cti_tables scenes
    python -m benchmarks.cti_tables voc --shared $WSSS_SHARED_DATA

Each rung of the ladder adds a part of CTI (--method); "tokenless" has the background loss without
the background token. ``scenes``: beside them the MCTformers. ``voc``: the real subset, a small
transformer on the frozen features of an ImageNet MobileNet. Each training is a process of its own
with one thread (--jobs of them at a time); finished ones are kept below --work.
"""

from dataclasses import dataclass
from typing import Literal

import tyro

from benchmarks._systems import TableOptions, scored_rows, train_all, write_systems

LADDER = {
    "baseline": "baseline",
    "+ background loss alone": "tokenless",
    "+ background token and loss": "bgt",
    "+ intra-image infusion": "intra",
    "+ cross-image infusion (CTI)": "cti",
}
OTHERS = {"MCTformer-V1": "mctformer-v1", "MCTformer-V2": "mctformer-v2"}
OTHERS |= {"MCTformer+": "mctformer-plus"}
COLUMNS = {
    "token mAP": "token_ap",
    "patch mAP": "patch_ap",
    "stem": "stem_miou",
    "patch CAM": "cam_miou",
    "attention": "attention_miou",
    "fused": "fused_miou",
    "fused, spread": "spread_miou",
    "masks": "pseudo_label_miou",
}
COSTS = {"train, CPU s": "train_cpu_seconds", "memory, MiB": "peak_memory_mib"}


@dataclass(frozen=True, kw_only=True)
class Options(TableOptions):
    """What to measure."""

    table: tyro.conf.Positional[Literal["scenes", "voc"]]
    methods: tuple[str, ...] = ()  # of --method; (): all of the table


def main(options: Options) -> None:
    base = ["--device", "cpu", "--no-masks", *options.extra]
    names = LADDER | OTHERS if options.table == "scenes" else LADDER
    if options.table == "voc":
        weights = str(options.shared / "weights" / "mobilenetv1_075_imagenet.safetensors")
        base += ["--preset", "voc-small", "--data", "voc", "--root", str(options.shared)]
        base += ["--split", "train", "--weights", weights]
    names = {n: m for n, m in names.items() if m in options.methods or not options.methods}
    work = options.work / f"cti-{options.table}"
    jobs = {
        (name, seed): (work / f"{m}-seed{seed}", [*base, "--method", m, "--seed", str(seed)])
        for seed in options.seeds
        for name, m in names.items()
    }
    records = train_all("train_cti.py", jobs, at_once=options.jobs)
    rows, protocols = scored_rows(names, options.seeds, records, columns=COLUMNS, costs=COSTS)
    notes = [
        "The last checkpoint of each run, never the best. mAP and class maps on validation images; "
        "the threshold of each map is the best on the first 200 training images. Masks: of those "
        "training images, at the preset's threshold.",
        "MCTformer-V1 learns from its class tokens alone: its patch classifier is untrained.",
        "Costs were measured with several runs at a time on a shared, busy machine.",
    ]
    shown = " --shared $WSSS_SHARED_DATA" if options.table == "voc" else ""
    how = {"command": f"cti_tables {options.table}{shown}", "records": records, "options": options}
    write_systems(f"cti_{options.table}", rows, [*COLUMNS, *COSTS], protocols, notes, **how)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
