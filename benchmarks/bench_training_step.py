"""One training step of DALNet, forward and backward: eager, compiled, and in bfloat16.

Run ``python -m benchmarks.bench_training_step``.
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._harness import Candidate, Options, compare, run
from wsss_blocks.backbones import TextBank
from wsss_blocks.data import Scenes, collate

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
ALL = frozenset(("gia", "lea", "seg", "final"))


def cases(options: Options) -> Iterator[dict[str, Any]]:
    sys.path.insert(0, str(EXAMPLES))
    try:
        import train_dalnet
    except ImportError as error:  # the example needs more than the blocks do
        print(f"not measured: {error}")
        return
    scenes = train_dalnet.PRESETS["scenes"]
    vit = dataclasses.replace(
        scenes, encoder="vit_tiny_patch16_224", layer=9, skip=None, hidden=256, dilation=5
    )
    for device in options.devices:
        yield steps("small CNN, 16 x 96 x 96", scenes, 16, 96, options, device)
        yield steps("ViT-Ti/16, 4 x 224 x 224", vit, 4, 224, options, device)


def steps(
    case: str, cfg: Any, batch: int, side: int, options: Options, device: str
) -> dict[str, Any]:
    """Compare the ways to run one step with all losses on."""
    from train_dalnet import DALNet

    batch = 2 if options.quick else batch
    torch.manual_seed(0)
    samples = Scenes(size=batch)
    inputs = collate([samples[i] for i in range(batch)])
    images = nn.functional.interpolate(inputs["image"], (side, side), mode="bilinear")
    box = torch.tensor([[0, 0, side, side]]).expand(batch, 4).contiguous()
    inputs = {"image": images, "labels": inputs["labels"], "box": box}
    inputs = {name: value.to(device) for name, value in inputs.items()}
    bank = TextBank.stand_in(samples.names, dim=64, seed=0)
    model = DALNet(cfg, bank).to(device, memory_format=torch.channels_last)
    # Batch statistics move with each step; without them every step computes the same.
    model.eval()

    def candidate(network: nn.Module, dtype: torch.dtype | None = None) -> Candidate:
        def step() -> Tensor:
            model.zero_grad()
            with torch.enable_grad():
                with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
                    loss = torch.stack(list(network(inputs, ALL).values())).sum()
                loss.backward()
            return loss.detach().float()

        return step

    return compare(
        case,
        {
            "eager": candidate(model),
            "torch.compile": candidate(torch.compile(model, fullgraph=True)),
            "bfloat16 autocast": candidate(model, torch.bfloat16),
        },
        reference="eager",
        options=options,
        device=device,
        difference=lambda a, b: float((a - b).abs() / b.abs()),
        tolerance=0.1,
    )


if __name__ == "__main__":
    run("bench_training_step", cases)
