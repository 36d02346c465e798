"""Train the example in several layouts of processes and micro-batches, and compare.

    python tests/processes.py            # prints JSON

The network is one without batch statistics (a small ViT of timm, random weights): batch norm sees
the images of one forward pass, so its networks depend on the layout by construction.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

STEPS = 10
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
# Several CPU processes under accelerate's own launcher would need MPI.
ACCELERATE = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes=1")
LAYOUTS = {  # launcher, micro-batches, images of one forward pass
    "1 x 16": ((), 1, 16),
    "2 ranks x 8": (TORCHRUN, 1, 8),
    "4 micro-batches x 4": (ACCELERATE, 4, 4),
    "2 ranks x 2 micro-batches x 4": (TORCHRUN, 2, 4),
}
SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "train_dalnet.py"


def train(layout: str, output: Path) -> None:
    launcher, accumulate, batch = LAYOUTS[layout]
    options = (
        f"--output {shlex.quote(str(output))} --steps {STEPS} "
        f"--batch-size {batch} --accumulate {accumulate} "
        "--encoder vit_tiny_patch16_224 --layer 9 --skip None --size 64 --lea-start 2 "
        "--seg-start 4 --warmup 2 --lr 1e-3 --log-every 1 --device cpu --no-evaluate"
    )
    command = [sys.executable, *launcher, str(SCRIPT), *shlex.split(options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{layout}: {done.stderr[-3000:]}")


def logged(output: Path) -> torch.Tensor:
    """All losses of all steps, as the run logged them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(output / "log"))
    log.Reload()
    found = {tag: {e.step: e.value for e in log.Scalars(tag)} for tag in log.Tags()["scalars"]}
    assert set(found["loss"]) == set(range(1, STEPS + 1)), sorted(found["loss"])
    rows = [
        [found[tag].get(step, 0.0) for step in range(1, STEPS + 1)]
        for tag in ("loss", "cls", "aux", "gia", "lea", "seg")
    ]
    return torch.tensor(rows, dtype=torch.float64)


def compared(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out the bias of the attention's keys: the softmax does not see it, its gradient is
    rounding noise, and Adam makes whole steps of that."""
    found = {}
    for key, value in weights.items():
        if key.endswith("attn.qkv.bias"):
            query, _, value = value.chunk(3)
            found[f"{key} (queries)"] = query
        found[key] = value.double()
    return found


def differences(output: Path, reference: Path) -> dict[str, float]:
    """Largest relative difference of the losses, and of the weights to the largest of each."""
    ours, theirs = logged(output), logged(reference)
    losses = ((ours - theirs).abs() / theirs.abs().clamp_min(1e-6)).max()
    a, b = (compared(load_file(p / "model.safetensors")) for p in (output, reference))
    weights = max(float((a[k] - b[k]).abs().max() / b[k].abs().max().clamp_min(1e-3)) for k in b)
    return {"losses": float(losses), "weights": weights}


def compare(root: Path, layouts: list[str]) -> dict[str, dict[str, float]]:
    for layout in ["1 x 16", *layouts]:
        train(layout, root / layout)
    return {layout: differences(root / layout, root / "1 x 16") for layout in layouts}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(compare(Path(folder), [name for name in LAYOUTS if name != "1 x 16"])))


if __name__ == "__main__":
    main()
