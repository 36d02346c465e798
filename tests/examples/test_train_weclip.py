"""WeCLIP end to end, with a tiny random model: what is tested is the wiring."""

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_open_clip import tiny_weights

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import train_weclip  # noqa: E402
from train_weclip import PRESETS, Config, Step, WeCLIP, main  # noqa: E402

from wsss_blocks import losses  # noqa: E402
from wsss_blocks.data import images as image_files  # noqa: E402
from wsss_blocks.metrics import read_metrics  # noqa: E402

NAMES = ("cat", "dog", "chair")


@pytest.fixture
def tiny(monkeypatch, tmp_path, few_scenes):
    model = tiny_weights(monkeypatch, tmp_path)

    def config(name: str = "out", preset: str = "scenes", **changes) -> Config:
        small = {
            "model": model, "output": tmp_path / name, "device": "cpu", "size": 32, "steps": 2,
            "batch_size": 2, "warmup": 0, "workers": 0, "hidden": 8, "heads": 2, "eval_size": 32,
            "decoder_layers": 1, "iterations": 2, "eval_images": 2, "logit_scale": 5.0,
            "learnt_start": 1, "eval_scales": (1.0,),
        }  # fmt: skip
        return dataclasses.replace(PRESETS[preset], **(small | changes))

    return config


def losses_of(cfg: Config) -> list[dict[str, float]]:
    """Train and record the loss terms of each step."""
    seen, forward = [], Step.forward

    def spy(self, *args):
        terms = forward(self, *args)
        seen.append({name: term.item() for name, term in terms.items()})
        return terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "forward", spy)
        main(cfg)
    return seen


def step_losses(model: WeCLIP, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The losses of a step of one batch."""
    batch = batch | model.targets(batch)
    pixels = losses.balanced_segmentation_counts(batch["pseudo"])
    return Step(model)(batch, pixels, losses.affinity_matrix_counts(batch["pairs"]))


@pytest.mark.parametrize("preset", list(PRESETS))
def test_each_preset_trains_and_evaluates(preset, tiny, voc, coco, folder, capsys):
    root = {"voc": voc, "coco": coco, "folder": folder}.get(preset)
    cfg = tiny(preset=preset, root=root)
    results = main(cfg)
    expected = {"seg_miou", "pseudo_label_miou", "pseudo_label_decided", "cam_miou", "spread_miou"}
    assert expected <= set(results)
    assert ("seg_crf_miou" in results) == (preset in ("voc", "coco"))
    assert all(0 <= value <= 1 for value in results.values())
    told = capsys.readouterr().out
    assert re.search(r"^affinity_weight +0\.1 +WeCLIP, released code", told, re.M)
    assert re.search(r"^prompt +a clean origami {}\. +CLIP-ES, released code", told, re.M)
    protocol = read_metrics(cfg.output / "metrics.json").protocol
    assert not protocol["seg_miou"].labels_used
    for name in ("pseudo_label_miou", "cam_miou", "spread_miou"):
        assert protocol[name].labels_used
        assert protocol[name].scales == (1.0,)
    for name in ("decoder.safetensors", "config.json", "figures/segmentation.png"):
        assert (cfg.output / name).is_file(), name
    # The frozen model is not in the files of a run.
    assert all(key.split(".")[0] != "clip" for key in load_file(cfg.output / "decoder.safetensors"))


def test_losses_are_finite_and_no_mask_is_read(tiny, voc, monkeypatch):
    def refuse(path):
        raise AssertionError(f"training read the mask {path}")

    monkeypatch.setattr(image_files, "read_mask", refuse)
    monkeypatch.setattr("wsss_blocks.data.folder.read_mask", refuse)
    cfg = tiny("a", data="voc", root=voc, evaluate=False, steps=3, accumulate=2)
    seen = losses_of(cfg)
    assert len(seen) == 6
    assert all(np.isfinite(v) and v > 0 for terms in seen for v in terms.values())
    with pytest.raises(AssertionError, match="training read the mask"):
        main(dataclasses.replace(cfg, evaluate=True, steps=1))


class StopError(Exception):
    pass


def test_interrupted_run_resumes_to_the_same_weights(tiny, monkeypatch):
    whole = tiny("whole", steps=4, save_every=2, evaluate=False, learnt_start=3)
    main(whole)
    parts = dataclasses.replace(whole, output=whole.output.parent / "parts", resume=True)
    forward, calls = Step.forward, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 4:
            raise StopError
        return forward(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Step, "forward", interrupted)
        with pytest.raises(StopError):
            main(parts)
    main(parts)
    a, b = (load_file(c.output / "decoder.safetensors") for c in (whole, parts))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_what_learns_and_what_teaches(tiny):
    torch.manual_seed(0)
    model = WeCLIP(tiny(learnt_start=5, par_start=9), NAMES)
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"decoder"}
    batch = {
        "image": torch.rand(2, 3, 32, 40), "labels": torch.tensor([[1.0, 0, 1], [0, 1, 0]]),
        "box": torch.tensor([[0, 0, 32, 40], [0, 0, 32, 24]]),
    }  # fmt: skip
    model.active = frozenset({"learnt", "par"})
    sum(step_losses(model, batch).values()).backward()
    assert all(p.grad is not None for p in model.decoder.parameters())
    assert all(p.grad is None for p in model.clip.parameters())
    model.eval()
    labels, maps = [], []
    for active in ((), ("learnt",), ("par",), ("learnt", "par")):
        model.active = frozenset(active)
        labels.append(model.pseudo_label(*batch.values()))
        maps.append(model.class_maps(batch["image"], batch["labels"]))
    assert all((x[1, :, 24:] == 255).all() and (x[0] < 255).all() for x in labels)
    assert all(set(x[0].unique().tolist()) <= {0, 1, 3} for x in labels)
    assert len({tuple(x.flatten().tolist()) for x in labels}) == 4
    assert [torch.equal(x["cam"], maps[0]["cam"]) for x in maps] == [True] * 4
    assert [torch.equal(x["spread"], maps[0]["spread"]) for x in maps] == [True, False] * 2
    absent = batch["labels"] == 0
    assert all((x[absent] == 0).all() and x.min() >= 0 and x.max() <= 1
               for found in maps for x in found.values())  # fmt: skip
    assert WeCLIP(tiny(steps=6, learnt_start=5, par_start=9), NAMES).active == {"learnt"}
    assert model(batch["image"]).shape == (2, 4, 4, 5)


def test_the_affinity_chooses_layers(tiny):
    """By hand: layers not further from the affinity than the mean, averaged, times it."""
    model = WeCLIP(tiny(choose=3), NAMES)
    looked = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    affinity = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(2))
    found = model.chosen(looked, affinity)
    for b in range(2):
        far = [float((affinity[b] - looked[b, i]).abs().sum()) for i in (1, 2, 3)]
        kept = [looked[b, i] for i, d in zip((1, 2, 3), far, strict=True) if d <= sum(far) / 3]
        assert 0 < len(kept) < 3
        torch.testing.assert_close(found[b], affinity[b] * sum(kept) / len(kept))
    one = model.chosen(looked[:, :1], affinity)
    torch.testing.assert_close(one, looked[:, 0] * affinity)


def test_affinity_is_learnt_where_labels_are_known(tiny, monkeypatch):
    """The affinity loss falls when one batch is learnt again and again."""
    torch.manual_seed(0)
    model = WeCLIP(tiny(radius=1), NAMES)
    model.active = frozenset({"par"})
    batch = {
        "image": torch.rand(1, 3, 32, 32), "labels": torch.tensor([[1.0, 0, 0]]),
        "box": torch.tensor([[0, 0, 32, 32]]),
    }  # fmt: skip
    optimizer = torch.optim.Adam(model.decoder.parameters(), lr=1e-2)
    seen = []
    for _ in range(20):
        terms = step_losses(model, batch)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        seen.append(terms["affinity"].item())
    assert seen[-1] < 0.8 * seen[0]


@pytest.mark.slow
def test_compiled_training_equals_eager(tiny, monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend="eager"))
    eager = losses_of(tiny("eager", evaluate=False, dropout=0.0))
    compiled = losses_of(tiny("compiled", evaluate=False, dropout=0.0, compile=True))
    for a, b in zip(eager, compiled, strict=True):
        assert a == pytest.approx(b, rel=1e-3)


def test_predict(tiny, tmp_path):
    cfg = tiny(evaluate=False, steps=1)
    main(cfg)
    photo = tmp_path / "ein Bild.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 71, 3), np.uint8)).save(photo)
    main(dataclasses.replace(Config(device="cpu", output=cfg.output), predict=(photo,)))
    mask = Image.open(cfg.output / "predictions" / "ein Bild.png")
    assert mask.size == (71, 50)


def test_the_file_is_short():
    assert len((EXAMPLES / "train_weclip.py").read_text().splitlines()) <= 200
    assert "random weights" in train_weclip.__doc__
