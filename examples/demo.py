"""The demo: DALNet on generated scenes, beside what it has to beat, in one table.

    python examples/demo.py                 # three short trainings on the CPU, runs/demo
    python examples/demo.py --seeds 0 1 2   # the same with three seeds

Trained one after the other: ``baseline`` (classification only: its class maps are what everybody
starts from), ``noalign`` (with the decoder, without text) and ``dalnet``. Finished trainings are
kept and an interrupted one goes on, so the command can be stopped and repeated.
"""

import dataclasses
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table
from train_dalnet import PRESETS, Config
from train_dalnet import main as train

from wsss_blocks.cli import load_config
from wsss_blocks.metrics import read_metrics, write_metrics

VARIANTS = {
    "baseline": {"gia": False, "lea": False, "seg": False},
    "noalign": {"gia": False, "lea": False},
    "dalnet": {},
}
COLUMNS = {  # name in metrics.json: (variant, its result)
    "baseline_cam_miou": ("baseline", "cam_miou"),
    "baseline_par_miou": ("baseline", "cam_par_miou"),
    "noalign_seg_miou": ("noalign", "seg_miou"),
    "cam_miou": ("dalnet", "cam_miou"),
    "par_miou": ("dalnet", "cam_par_miou"),
    "pseudo_label_miou": ("dalnet", "pseudo_label_miou"),
    "seg_miou": ("dalnet", "seg_miou"),
}


@dataclass(frozen=True)
class Demo:
    """What to run."""

    output: Path = Path("runs/demo")
    seeds: tuple[int, ...] = (0,)
    steps: int | None = None  # of each training; None: those of the preset
    eval_images: int = 200


def finished(cfg: Config) -> bool:
    """Tell whether this very run has been done."""
    config, metrics = cfg.output / "config.json", cfg.output / "metrics.json"
    if not (config.is_file() and metrics.is_file()):
        return False
    return dataclasses.replace(load_config(config, like=cfg)[0], resume=cfg.resume) == cfg


def run(demo: Demo, variant: str, seed: int) -> Path:
    """Train one variant, unless that has been done; return its folder."""
    preset, switches = PRESETS["scenes"], VARIANTS[variant]
    folder = demo.output / (variant if len(demo.seeds) == 1 else f"seed{seed}/{variant}")
    cfg = dataclasses.replace(
        preset, output=folder, seed=seed, device="cpu", resume=True,
        steps=demo.steps or preset.steps, eval_images=demo.eval_images, **switches,
    )  # fmt: skip
    if not finished(cfg):
        print(f"{variant}, seed {seed}: {cfg.steps} steps into {folder}", flush=True)
        train(cfg)
    return folder


def main(demo: Demo) -> dict[str, float]:
    """Run all variants and seeds; write and print the table."""
    started = time.perf_counter()
    torch.set_num_threads(1)  # networks this small gain little from more, and CPU time counts
    values = {name: [] for name in COLUMNS}
    protocols, cpu_seconds, figures = {}, 0.0, demo.output / "figures"
    for seed in demo.seeds:
        records = {v: (f := run(demo, v, seed), read_metrics(f / "metrics.json")) for v in VARIANTS}
        for name, (variant, result) in COLUMNS.items():
            values[name].append(records[variant][1].results[result])
            protocols[name] = records[variant][1].protocol[result]
        cpu_seconds += sum(float(r.run["train_cpu_seconds"]) for _, r in records.values())
        figures.mkdir(parents=True, exist_ok=True)
        for variant, (folder, _) in records.items():
            for source in (folder / "figures").glob("*.png"):
                tail = "" if len(demo.seeds) == 1 else f"_seed{seed}"
                (figures / f"{variant}_{source.stem}{tail}.png").write_bytes(source.read_bytes())
    means = {name: statistics.fmean(v) for name, v in values.items()}
    write_metrics(
        demo.output / "metrics.json", means, protocols,
        seed=demo.seeds[0] if len(demo.seeds) == 1 else None,
        extra={
            "seeds": list(demo.seeds),
            "per_seed": {n: [round(100 * x, 2) for x in v] for n, v in values.items()},
            "train_cpu_seconds": round(cpu_seconds, 1),
            "wall_seconds": round(time.perf_counter() - started, 1),
        },
    )  # fmt: skip
    table = Table(title=f"scenes, mIoU in per cent, last checkpoint, seeds {demo.seeds}")
    for heading in ("result", "mIoU", "protocol"):
        table.add_column(heading, overflow="fold")
    for name, value in means.items():
        table.add_row(name, f"{100 * value:.1f}", protocols[name].describe())
    Console(width=118).print(table)
    print(f"{cpu_seconds:.0f} CPU-seconds of training; figures in {figures}")
    return means


if __name__ == "__main__":
    main(tyro.cli(Demo, description=__doc__))
