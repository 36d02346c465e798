"""Train DHR behind the tables of the docs, and write their JSON.

    python -m benchmarks.dhr_tables scenes
    python -m benchmarks.dhr_tables ladder --shared $WSSS_SHARED_DATA

``scenes``: the whole system, and the decoder taught by the initial masks as they are. ``ladder``:
the masks of training images with more and more of the method, on hard scenes and on subsets of VOC
and COCO, one classifier per data set and seed (--ladder). Each training is a process of its own
with one thread (--jobs of them at a time); finished ones are kept below --work.
"""

from dataclasses import dataclass
from typing import Literal

import tyro

from benchmarks._systems import TableOptions, scored_rows, train_all, write_systems

RUNGS = ("none", "ot", "ot+refine", "ot+refine+wss", "ot+refine+uss", "full")
SCENES = {
    "class maps, as they are": ["--ablate", "none"],
    "class maps, rebalanced (DHR)": ["--ablate", "full"],
}
COLUMNS = {
    "CAM": "cam_miou",
    "initial masks": "initial_miou",
    "masks": "rebalanced_miou",
    "masks, several classes": "rebalanced_multi_miou",
    "decoder": "seg_miou",
}
COSTS = {"train, CPU s": "train_cpu_seconds", "evaluate, s": "evaluation_seconds"}
LADDER = {  # heading: preset, steps of classification
    "hard scenes": ("scenes-hard", 800),
    "VOC": ("voc-small", 350),
    "COCO": ("coco-small", 350),
}


@dataclass(frozen=True, kw_only=True)
class Options(TableOptions):
    """What to measure."""

    table: tyro.conf.Positional[Literal["scenes", "ladder"]]


def main(options: Options) -> None:
    if options.table == "scenes":
        systems(options)
    else:
        ladder(options)


def systems(options: Options) -> None:
    base = ["--device", "cpu", *options.extra]
    work = options.work / "dhr-scenes"
    jobs = {
        (name, seed): (work / f"{i}-seed{seed}", [*base, *switches, "--seed", str(seed)])
        for i, (name, switches) in enumerate(SCENES.items())
        for seed in options.seeds
    }
    records = train_all("train_dhr.py", jobs, at_once=options.jobs)
    rows, protocols = scored_rows(SCENES, options.seeds, records, columns=COLUMNS, costs=COSTS)
    notes = [
        "The last checkpoint of each run, never the best; the moving average of the network.",
        "The masks are those of the first 200 training images, of which nothing was chosen but the "
        "thresholds of the column CAM.",
        "Costs were measured with several runs at a time on a shared, busy machine.",
    ]
    how = {"command": "dhr_tables scenes", "records": records, "options": options}
    write_systems("dhr_systems", rows, [*COLUMNS, *COSTS], protocols, notes, **how)


def ladder(options: Options) -> None:
    work, small = options.work / "dhr-ladder", options.shared / "weights"
    weights = str(small / "mobilenetv1_075_imagenet.safetensors")
    roots = {"voc-small": options.shared, "coco-small": options.shared / "coco_small"}
    jobs = {}
    for heading, (preset, steps) in LADDER.items():
        base = ["--preset", preset, "--device", "cpu", "--ladder", "--eval-images", "50"]
        base += ["--steps", str(steps), "--mask-start", str(steps)]
        if preset in roots:
            cache = work / f"{preset}-uss"  # of all seeds
            base += ["--data", preset.split("-")[0], "--root", str(roots[preset])]
            base += ["--weights", weights, "--uss-weights", weights, "--uss-folder", str(cache)]
            base += ["--split", "train"]
        else:
            base += ["--data", preset]
        for seed in options.seeds:
            folder = work / f"{preset}-seed{seed}"
            jobs[heading, seed] = folder, [*base, *options.extra, "--seed", str(seed)]
    # The first seed of a data set fills its cache of features, which the others wait for.
    first = {key: job for key, job in jobs.items() if key[1] == options.seeds[0]}
    records = train_all("train_dhr.py", first, at_once=options.jobs)
    records |= train_all("train_dhr.py", jobs, at_once=options.jobs)
    rows, protocols = [], {}
    for rung in RUNGS:
        seeds: dict[str, dict[str, float]] = {}
        for (heading, seed), record in records.items():
            line = record.protocol[f"rung_{rung}_miou"].describe()
            if rung == RUNGS[-1]:
                protocols[heading] = {"line": line}
            values = {
                heading: record.results[f"rung_{rung}_miou"],
                f"{heading}, several classes": record.results[f"rung_{rung}_multi_miou"],
            }
            scaled = {head: round(100 * value, 2) for head, value in values.items()}
            seeds.setdefault(str(seed), {}).update(scaled)
        rows.append({"name": rung, "seeds": seeds})
    notes = [
        "Masks of the first 50 training images by one network per data set and seed, trained to "
        "classify alone: what differs between rows is what is made of the same class maps.",
        "WSS: on scenes two stages of the small CNN; on photographs MobileNet's stage 4 and a "
        "trained layer on stage 5. USS: on scenes colour and position (BilateralFeatures); on "
        "photographs stage 4 of the same ImageNet-supervised MobileNet at scale 1.5 with "
        "mirror images, which is not self-supervised.",
    ]
    columns = [c for heading in LADDER for c in (heading, f"{heading}, several classes")]
    command = "dhr_tables ladder --shared $WSSS_SHARED_DATA"
    how = {"command": command, "records": records, "options": options}
    write_systems("dhr_ladder", rows, columns, protocols, notes, **how)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
