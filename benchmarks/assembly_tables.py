"""Train ToCo behind the table of the docs, and write its JSON.

    python -m benchmarks.assembly_tables

Of the systems that are assembled of blocks made for others, the one that needs no CLIP. Each
training is a process of its own with one thread (--jobs of them at a time); finished ones are kept
below --work, where benchmarks.stage2_tables finds them, too.
"""

import tyro

from benchmarks._systems import TableOptions, scored_rows, train_all, write_systems

COLUMNS = {
    "CAM": "cam_miou",
    "CAM of the layer": "layer_cam_miou",
    "CAM + PAR": "cam_par_miou",
    "pseudo-label": "pseudo_label_miou",
    "decided": "pseudo_label_decided",
    "decoder": "seg_miou",
}
COSTS = {"whole run, CPU s": "cpu_seconds", "memory, MiB": "peak_memory_mib"}


def main(options: TableOptions) -> None:
    work, base = options.work / "stage2-scenes", ["--device", "cpu", *options.extra]
    jobs = {
        ("ToCo", seed): (work / f"toco-seed{seed}", [*base, "--seed", str(seed)])
        for seed in options.seeds
    }
    records = train_all("train_toco.py", jobs, at_once=options.jobs)
    rows, protocols = scored_rows(["ToCo"], options.seeds, records, columns=COLUMNS, costs=COSTS)
    notes = [
        "The last checkpoint of each run, never the best. Class maps and decoder on validation "
        "images; the threshold of each map is the best on the first 200 training images. "
        "Pseudo-labels: of those training images, at the preset's thresholds.",
        "Costs were measured with several runs at a time on a shared, busy machine.",
    ]
    how = {"command": "assembly_tables", "records": records, "options": options}
    write_systems("toco_scenes", rows, [*COLUMNS, *COSTS], protocols, notes, **how)


if __name__ == "__main__":
    main(tyro.cli(TableOptions, description=__doc__))
