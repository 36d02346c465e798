"""Where the time of a DALNet training step goes: CPU time per stage, all losses of a preset on.

Run ``python -m benchmarks.profile_dalnet --label after [--output FILE]``. The library and the
example that are measured are those that Python imports, so that another version is measured by
this same script from its checkout: ``PYTHONPATH=OTHER/src python -m benchmarks.profile_dalnet
--label before``.
"""

import argparse
import functools
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

import wsss_blocks
from benchmarks._harness import command
from wsss_blocks.data import VOC_NAMES, write_voc_layout
from wsss_blocks.metrics import hardware

STAGES = (
    "data", "encoder", "class maps", "map to label", "refinement to label", "decoder",
    "heads and losses", "backward", "optimiser", "rest",
)  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "scenes": {},
    "voc-small": {},
    # The paper's recipe, multi-scale class maps included, with the smallest ViT of its family.
    "voc": {
        "encoder": "vit_tiny_patch16_224", "weights": None, "text": "stand-in", "batch_size": 2,
    },
}  # fmt: skip
FIRST = 3  # steps that are not counted
ROOT = Path(wsss_blocks.__file__).resolve().parents[2]


class Clock:
    """Process CPU time per step and stage; a stage within a stage counts as the outer one."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._started = time.process_time()
        self._inside = False

    def next_step(self) -> None:
        """End a step and begin another."""
        now = time.process_time()
        if self.steps:
            self.steps[-1]["rest"] = now - self._started - sum(self.steps[-1].values())
        self.steps.append(dict.fromkeys(STAGES[:-1], 0.0))
        self._started = now

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that adds its time to a stage."""

        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            if self._inside or not self.steps:
                return function(*arguments, **options)
            self._inside, start = True, time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                self._inside = False
                self.steps[-1][stage] += time.process_time() - start

        return call

    def medians(self) -> dict[str, float]:
        """Return milliseconds per step and stage; the last step, which saves, is not counted."""
        counted = self.steps[FIRST:-2]  # and the one that the end of the data began
        return {
            stage: float(f"{1e3 * statistics.median(step[stage] for step in counted):.4g}")
            for stage in STAGES
        }


def measure(preset: str, options: dict[str, Any], steps: int, folder: Path) -> dict[str, float]:
    """Train for a few steps and return the milliseconds of each stage."""
    sys.modules.pop("train_dalnet", None)
    example, clock = importlib.import_module("train_dalnet"), Clock()
    watch(example, clock)
    cfg = replace(
        example.PRESETS[preset],
        **options,
        **{f"{term}_start": 0 for term in ("gia", "lea", "seg")},
        root=None if preset == "scenes" else voc_folder(folder),
        split="train",
        output=folder / preset,
        steps=FIRST + steps + 1,
        warmup=1,
        workers=0,
        save_every=10**9,
        evaluate=False,
        eval_every=0,
        device="cpu",
    )
    example.main(cfg)
    return clock.medians()


def watch(example: ModuleType, clock: Clock) -> None:
    """Put the clock around what the training script calls, in this copy of its names."""
    import accelerate

    cam, losses, cli = example.cam, example.losses, example.cli
    own = {
        "cam_to_label": clock.timed("map to label", cam.cam_to_label),
        "multi_scale_cam": clock.timed("class maps", cam.multi_scale_cam),
        "normalize_cam": clock.timed("class maps", cam.normalize_cam),
    }
    example.cam = SimpleNamespace(**vars(cam) | own)
    own = {n: clock.timed("heads and losses", f) for n, f in vars(losses).items() if callable(f)}
    example.losses = SimpleNamespace(**vars(losses) | own)
    example.refine_to_label = clock.timed("refinement to label", example.refine_to_label)

    class Steps(cli.TrainingSteps):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Iterator[Any]:
            batches = super().__iter__()
            fetch = clock.timed("data", lambda: next(batches, None))
            while True:
                clock.next_step()
                batch = fetch()
                if batch is None:
                    return
                yield batch

    example.cli = SimpleNamespace(
        **{name: getattr(cli, name) for name in cli.__all__} | {"TrainingSteps": Steps}
    )

    class Network(example.DALNet):  # type: ignore[misc, name-defined]
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.encode = clock.timed("encoder", self.encode)
            self.maps = clock.timed("class maps", self.maps)
            self.net.decode = clock.timed("decoder", self.net.decode)
            for head in (self.head, self.aux_head, self.project):
                if head is not None:
                    head.forward = clock.timed("heads and losses", head.forward)

    example.DALNet = Network
    optimizer = accelerate.optimizer.AcceleratedOptimizer
    for owner, name, stage in (
        (accelerate.Accelerator, "backward", "backward"),
        (optimizer, "step", "optimiser"),
        (optimizer, "zero_grad", "optimiser"),
    ):
        bare = getattr(getattr(owner, name), "__wrapped__", getattr(owner, name))
        setattr(owner, name, clock.timed(stage, bare))


def voc_folder(folder: Path) -> Path:
    """Write scenes in VOC's layout, under its names and at the usual size of its photographs."""
    from PIL import Image

    base = write_voc_layout(folder / "voc", train=24, val=1, names=VOC_NAMES)
    for path in (base / "JPEGImages").iterdir():
        with Image.open(path) as image:
            large = image.resize((500, 375))
        large.save(path, quality=95)
    return folder / "voc"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_dalnet")
    parser.add_argument("--label", required=True, help="name of this version in the table")
    parser.add_argument("--steps", type=int, default=24, help="steps that are counted")
    parser.add_argument("--presets", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--output", type=Path, help="JSON file; other labels in it are kept")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT / "examples"))
    found: dict[str, dict[str, float]] = {}
    for preset in chosen.presets:
        with tempfile.TemporaryDirectory() as folder:
            found[preset] = measure(preset, RUNS[preset], chosen.steps, Path(folder))
        whole = sum(found[preset].values())
        print(f"\n{preset}: {whole:.4g} ms per step")
        for stage, ms in found[preset].items():
            print(f"  {stage:20}{ms:10.4g} ms {100 * ms / whole:7.1f} %", flush=True)
    if chosen.output is not None:
        write(chosen.output, chosen.label, found)


def write(path: Path, label: str, found: dict[str, dict[str, float]]) -> None:
    """Add runs to the file of results, beside those of other labels."""
    content: dict[str, Any] = {"labels": {}, "runs": {}}
    if path.is_file():
        content = json.loads(path.read_text())
    content["labels"][label] = {
        "command": command("profile_dalnet"),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
    }
    for preset, stages in found.items():
        content["runs"].setdefault(preset, {})[label] = stages
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)
    print(f"wrote {path}")


def commit() -> str:
    """Return the commit of the library that was measured."""

    def git(*arguments: str) -> str:
        asked = ["git", "-C", str(ROOT), *arguments]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        return done.stdout.strip() if not done.returncode else ""

    found = git("rev-parse", "HEAD")
    changed = found and git("status", "--porcelain", "src", "examples")
    return f"{found} with changes" if changed else found or "unknown"


if __name__ == "__main__":
    main()
