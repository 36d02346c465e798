"""The whole training step of DALNet, compiled and in bfloat16."""

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import train_dalnet

from wsss_blocks.backbones import TextBank
from wsss_blocks.data import Scenes, collate

ALL = frozenset(("gia", "lea", "seg", "final"))
NETWORKS = {
    "small-cnn": {},
    "frozen CNN": {"encoder": "mobilenet", "neck": 32, "layer": None, "skip": None, "top_k": 1.0},
    "timm ViT, several scales": {
        "encoder": "vit_tiny_patch16_224", "layer": 9, "skip": None, "top_k": 0.0,
        "cam_scales": (1.0, 0.5),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        name if name == "small-cnn" else pytest.param(name, marks=pytest.mark.slow)
        for name in NETWORKS
    ],
)
def test_network_and_losses_compile_as_one_graph(name):
    torch.manual_seed(0)
    torch._dynamo.reset()
    cfg = dataclasses.replace(train_dalnet.PRESETS["scenes"], **NETWORKS[name])
    scenes = Scenes(size=2)
    model = train_dalnet.DALNet(cfg, TextBank.stand_in(scenes.names, dim=64, seed=0)).eval()
    batch = collate([scenes[0], scenes[1]])
    batch = {key: batch[key] for key in ("image", "labels", "box")}
    eager = model(batch, ALL)
    # aot_eager: forward and backward graphs as for any compiler, run by eager kernels.
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(batch, ALL)
    assert eager.keys() == compiled.keys() >= {"cls", "gia", "lea", "seg"}
    for term in eager:
        torch.testing.assert_close(compiled[term], eager[term], rtol=1e-5, atol=1e-6)
    sum(compiled.values()).backward()
    grads = [p.grad for p in model.net.decoder.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in grads)


@pytest.mark.slow  # test_train_dalnet compares the first steps
def test_bfloat16_stays_near_float32_for_200_steps(tmp_path, monkeypatch):
    cfg = dataclasses.replace(
        train_dalnet.PRESETS["scenes"], steps=200, batch_size=4, size=48, lea_start=60,
        seg_start=100, evaluate=False, device="cpu", save_every=1000, log_every=1000,
    )  # fmt: skip
    forward, curves = train_dalnet.DALNet.forward, {}

    for precision in ("no", "bf16"):
        seen = curves[precision] = []

        def spy(self, *args, seen=seen):
            terms = forward(self, *args)
            seen.append({name: float(term.detach()) for name, term in terms.items()})
            return terms

        monkeypatch.setattr(train_dalnet.DALNet, "forward", spy)
        AcceleratorState._reset_state()  # one precision per process is all Accelerate allows
        output = tmp_path / precision
        train_dalnet.main(dataclasses.replace(cfg, output=output, mixed_precision=precision))
    AcceleratorState._reset_state()
    assert all(math.isfinite(v) for step in curves["bf16"] for v in step.values())
    # Single steps part ways, as two runs with other rounding do; what is learnt does not.
    for term in ("cls", "aux", "gia", "lea", "seg"):
        means = [
            sum(step[term] for step in curves[precision][-50:]) / 50 for precision in ("no", "bf16")
        ]
        assert means[1] == pytest.approx(means[0], rel=0.1), (term, means)
