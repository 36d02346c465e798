"""Kill a training run with SIGKILL at chosen points and compare what it reaches when resumed.

    python tests/kill_points.py --help

Each attempt runs in a forked child, so that the imports are paid once. A *step* point dies inside
an optimiser step. A *save* point dies at one operation of the checkpoint's writing: before a folder
is made, half-way through a file, before a rename, before the data is flushed, while old checkpoints
are deleted. Then the run is resumed to its end and its final files are compared with those of a run
that was left alone.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sklearn.datasets  # noqa: F401  the children need it
import torch
import torch._dynamo  # likewise: every optimiser imports it
from torch import nn

from wsss_blocks import backbones, data, heads, losses, memory, training
from wsss_blocks.data import opening

Train = Callable[[Path, int], None]  # (folder, workers): train to the end, resuming what is there


def small_run(folder: Path, workers: int, *, steps: int = 12, save_every: int = 3) -> None:
    """Train with dropout, an average, mixed precision, and noise from every generator there is."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    scenes = data.Scenes(size=7)
    head = heads.ClassHead(128, 10)
    model = nn.ModuleDict({"encoder": backbones.SmallCNN(), "drop": nn.Dropout(0.3), "head": head})
    average = memory.EMA(model, decay=0.9, average_buffers=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
    schedule = training.polynomial_schedule(optimizer, total_steps=steps, warmup_steps=2)
    stateful = {
        "model": model, "average": average, "optimizer": optimizer, "scaler": scaler,
        "schedule": schedule,
    }  # fmt: skip
    checkpoint, start = folder / "checkpoint", 0
    if (checkpoint / "latest.json").exists():
        start = training.load_run_state(checkpoint, stateful=stateful, identity={"kind": "small"})
    loader = data.step_loader(
        scenes, data.training_transform(32), batch_size=3, steps=steps, start=start,
        workers=workers,
    )  # fmt: skip
    for step, batch in enumerate(loader, start=start + 1):
        noise = 0.1 * random.random() + 0.1 * np.random.rand()  # noqa: NPY002
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = model["encoder"](batch["image"]).feature_map
            x = model["drop"](x + noise * torch.randn_like(x))
            loss = losses.multi_label_soft_margin_loss(model["head"](x).logits, batch["labels"])
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        average.update(model)
        if step % save_every == 0:
            training.save_run_state(
                checkpoint, step=step, stateful=stateful, identity={"kind": "small"}
            )
    training.save_weights(folder / "model.safetensors", model)
    training.save_weights(folder / "average.safetensors", average)
    (folder / "scale.json").write_text(json.dumps([scaler.get_scale(), schedule.get_last_lr()]))


def dalnet_run(folder: Path, workers: int) -> None:
    """Train the example, all of its losses on, for a few steps."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
    import train_dalnet

    class Few(data.Scenes):
        def __init__(self, split="train", **options):
            super().__init__(split, size=10, **options)

    opening.Scenes = Few
    cfg = dataclasses.replace(
        train_dalnet.PRESETS["scenes"], output=folder, steps=7, batch_size=2, lea_start=1,
        seg_start=2, warmup=1, save_every=2, evaluate=False, device="cpu", workers=workers,
        resume=True,
    )  # fmt: skip
    train_dalnet.main(cfg)


RUNS: dict[str, Train] = {"small": small_run, "dalnet": dalnet_run}
LENGTHS = {"small": (4, 12), "dalnet": (3, 7)}  # steps after the first checkpoint


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_step(number: int) -> None:
    """Die after the ``number``-th optimiser step changed the weights, before anything else."""
    real, calls = torch.optim.AdamW.step, []

    def step(self, *args, **kwargs):
        result = real(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == number:
            die()
        return result

    torch.optim.AdamW.step = step


def kill_in_save(number: int, report: Path | None = None) -> None:
    """Die at the ``number``-th file operation of all checkpoint writing; 0 counts them only."""
    import safetensors.torch

    state = {"inside": False, "calls": 0}

    def hook(name: str, real, halfway: Callable | None = None):
        def call(*args, **kwargs):
            if not state["inside"]:
                return real(*args, **kwargs)
            state["calls"] += 1
            if report is not None:
                with report.open("w") as file:
                    file.write(str(state["calls"]))
            if state["calls"] == number:
                if halfway is not None:
                    halfway(real, *args, **kwargs)
                die()
            return real(*args, **kwargs)

        return call

    def half_file(real, content, path, *args, **kwargs):
        real(content, path, *args, **kwargs)
        os.truncate(path, os.path.getsize(path) // 2)

    def half_folder(real, path, *args, **kwargs):
        next(iter(sorted(Path(path).iterdir()))).unlink()

    save = training.save_run_state

    def watched(*args, **kwargs):
        state["inside"] = True
        try:
            return save(*args, **kwargs)
        finally:
            state["inside"] = False

    # random states are packed through torch.save into memory: only files count
    real_save = torch.save

    def save_file(content, target, *args, **kwargs):
        if not isinstance(target, str | os.PathLike):
            return real_save(content, target, *args, **kwargs)
        return hooked_save(content, target, *args, **kwargs)

    hooked_save = hook("torch.save", real_save, half_file)
    torch.save = save_file
    safetensors.torch.save_file = hook("save_file", safetensors.torch.save_file, half_file)
    shutil.rmtree = hook("rmtree", shutil.rmtree, half_folder)
    os.fsync = hook("fsync", os.fsync)
    Path.mkdir = hook("mkdir", Path.mkdir)
    Path.replace = hook("replace", Path.replace)
    Path.write_text = hook("write_text", Path.write_text)
    training.save_run_state = watched


def in_child(run: Callable[[], None]) -> int:
    """Run in a forked child; return its exit code, negative for a signal."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            run()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def final_files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name in FINAL}


FINAL = ("model.safetensors", "average.safetensors", "scale.json")


def undisturbed(run: Train, folder: Path) -> dict[str, bytes]:
    assert in_child(lambda: run(folder, 0)) == 0
    return final_files(folder)


def operations(run: Train, folder: Path) -> int:
    """Count the file operations of all checkpoints of a whole run."""
    report = folder.with_suffix(".calls")

    def counted() -> None:
        kill_in_save(0, report)
        run(folder, 0)

    assert in_child(counted) == 0
    return int(report.read_text())


def attempt(
    run: Train, folder: Path, expected: dict[str, bytes], arm: Callable[[], None], workers: int
) -> str:
    """Kill once, resume, compare: "exact", or what went wrong."""

    def doomed() -> None:
        arm()
        run(folder, workers)

    code = in_child(doomed)
    if code != -signal.SIGKILL:
        return f"was not killed (exit {code})"
    code = in_child(lambda: run(folder, workers))
    if code != 0:
        return f"did not resume (exit {code})"
    if final_files(folder) != expected:
        return "differs"
    # Killed while it deletes the last but one checkpoint, the last save leaves that behind.
    left = sorted(p.name for p in (folder / "checkpoint").iterdir())
    return "exact" if left[0] == "latest.json" and len(left) in (2, 3) else f"leaves {left}"


def storm(name: str, *, steps: int, saves: int | None, seed: int) -> dict[str, object]:
    """Kill at ``steps`` random steps and at ``saves`` random operations of saving (None: all)."""
    run, draw = RUNS[name], random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        expected = undisturbed(run, root / "whole")
        total = 0 if saves == 0 else operations(run, root / "counted")
        first, last = LENGTHS[name]
        points = [("step", n) for n in sorted(draw.sample(range(first, last + 1), steps))]
        every = range(1, total + 1)
        points += [("save", n) for n in (every if saves is None else draw.sample(every, saves))]
        results = {}
        for i, (kind, number) in enumerate(points):
            arm = kill_at_step if kind == "step" else kill_in_save
            workers = (0, 2)[i % 2]
            results[f"{kind} {number}, {workers} workers"] = attempt(
                run, root / str(i), expected, lambda a=arm, n=number: a(n), workers
            )
    return {"run": name, "operations": total, "seed": seed, "results": results}


def forget_random_states() -> None:
    """Break the resume, to see that the comparison notices."""
    from wsss_blocks.training import run_state

    run_state.set_random_state = lambda packed: None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", choices=RUNS, default="small")
    parser.add_argument("--steps", type=int, default=2, help="random steps to die at")
    parser.add_argument("--saves", type=int, help="random operations of saving; default: each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--forget", action="store_true", help="lose the random states on purpose")
    args = parser.parse_args()
    if args.forget:
        forget_random_states()
    torch.set_num_threads(1)
    print(json.dumps(storm(args.run, steps=args.steps, saves=args.saves, seed=args.seed)))


if __name__ == "__main__":
    main()
