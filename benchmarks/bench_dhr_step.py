"""What rebalancing adds to a training step of DHR, forward and backward: switched on and off.

Run ``python -m benchmarks.bench_dhr_step``. Off is ``--ablate none``: the decoder learns from the
masks of the class maps as they are. On a GPU the network is the paper's, in float16.
"""

import dataclasses
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._harness import Candidate, Options, compare, run
from wsss_blocks.data import Scenes, collate

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SEG = frozenset(("seg",))
OFF = "off: class maps to masks"


def cases(options: Options) -> Iterator[dict[str, Any]]:
    sys.path.insert(0, str(EXAMPLES))
    try:
        import train_dhr
    except ImportError as error:  # the example needs more than the blocks do
        print(f"not measured: {error}")
        return
    scenes = train_dhr.PRESETS["scenes"]
    voc = dataclasses.replace(train_dhr.PRESETS["voc"], weights=None, uss="bilateral")
    for device in options.devices:
        batch = 2 if options.quick else scenes.batch_size
        yield steps("small CNN, 96 x 96", scenes, batch, options, device)
        if device == "cuda" and not options.quick:
            yield steps("ResNet-101 DeepLabV3+, 512 x 512", voc, voc.batch_size, options, device)


def steps(case: str, cfg: Any, batch: int, options: Options, device: str) -> dict[str, Any]:
    """Compare the step without rebalancing, with its parts, and with all of it."""
    from train_dhr import DHR, REFINERS

    torch.manual_seed(0)
    scenes = Scenes(size=batch)
    inputs = collate([scenes[i] for i in range(batch)])
    size = (cfg.size, cfg.size)
    images = torch.nn.functional.interpolate(inputs["image"], size, mode="bilinear")
    box = torch.tensor([[0, 0, *size]]).expand(batch, 4).contiguous()
    inputs = {"image": images, "labels": inputs["labels"], "box": box}
    inputs = {name: value.to(device) for name, value in inputs.items()}
    model = DHR(cfg, scenes.names).to(device, memory_format=torch.channels_last)

    def step(ablate: str, refiner: str = cfg.refiner) -> Tensor:
        model.cfg = dataclasses.replace(cfg, ablate=ablate)
        model.refiner = REFINERS[refiner]()
        model.zero_grad()
        with torch.enable_grad():
            with torch.autocast(device, torch.float16, enabled=device == "cuda"):
                loss = torch.stack(list(model(inputs, SEG).values())).sum()
            loss.backward()
        return loss.detach().float()

    candidates: dict[str, Candidate] = {
        OFF: partial(step, "none"),
        "on, without a refiner": partial(step, "full", "none"),
        "on, without unsupervised features": partial(step, "ot+refine+wss"),
        f"on: all of it, refiner {cfg.refiner}": partial(step, "full"),
    }
    return compare(
        f"{case}, batch {batch}",
        candidates,
        reference=OFF,
        options=options,
        device=device,
    )


if __name__ == "__main__":
    run("bench_dhr_step", cases)
