"""The CTI example end to end, on few and small images."""

import dataclasses
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from two_ranks import run_example_on_two_ranks

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import train_cti  # noqa: E402
from train_cti import METHODS, PRESETS, SOURCES, Config, main  # noqa: E402

from wsss_blocks import cli, data  # noqa: E402
from wsss_blocks.data import images as image_files  # noqa: E402
from wsss_blocks.metrics import read_metrics  # noqa: E402

# All losses from the first step on, and small images: what is tested is the wiring.
FAST = {
    "steps": 2, "batch_size": 2, "stem_steps": 0, "background_start": 0, "infusion_start": 0,
    "walk_start": 0, "bank": 1, "warmup": 0, "workers": 0, "eval_images": 2, "weights": None,
    "device": "cpu", "masks": False,
}  # fmt: skip
VIT = {"encoder": "vit_tiny_patch16_224", "size": 64}
pytestmark = pytest.mark.usefixtures("few_scenes")


def config(preset: str, output: Path, **changes) -> Config:
    cfg = PRESETS[preset]
    if cfg.size > 96:
        changes = {"size": 64, "eval_size": cfg.eval_size and 64} | changes
    if cfg.encoder.startswith("deit"):  # the same code, smaller
        changes = {"encoder": VIT["encoder"]} | changes
    return dataclasses.replace(cfg, output=output, **(FAST | changes))


class Recorded(list):
    """The losses of a run, step by step."""

    def __init__(self, cfg: Config):
        super().__init__()
        forward = train_cti.CTISystem.forward

        def losses(module, *args):
            terms = forward(module, *args)
            self.append({name: term.item() for name, term in terms.items()})
            return terms

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train_cti.CTISystem, "forward", losses)
            self.results = main(cfg)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_each_preset_trains_evaluates_and_draws(
    preset, tmp_path, voc, coco, folder, capsys, monkeypatch
):
    root = {"voc": voc, "coco": coco, "folder": folder}.get(PRESETS[preset].data)
    cfg = config(preset, tmp_path, root=root, masks=True, cams="seed")
    drawn = ["figures/segmentation.png", "figures/background.png"]
    if preset in ("scenes", "voc"):
        drawn.append("figures/class_tokens.png")
    else:  # t-SNE takes longer than all of the rest, and does the same for each preset
        monkeypatch.setattr(cli, "draw_class_tokens", lambda *args, **options: None)
    results = main(cfg)
    told = capsys.readouterr().out
    if preset in SOURCES:
        assert re.search(r"^infuse_layer +3 +CTI, released code", told, re.M)
        assert re.search(r"^clip +0 +ours", told, re.M)
    expected = {"seed_miou", "cam_miou", "attention_miou", "fused_miou", "spread_miou"}
    assert expected | {"token_ap", "patch_ap", "pseudo_label_miou"} <= set(results)
    assert ("stem_miou" in results) == ("stem_ap" in results) == cfg.stem
    assert all(0 <= value <= 1 for value in results.values())
    for name in ("metrics.json", "config.json", "model.safetensors", *drawn):
        assert (tmp_path / name).is_file(), name
    masks = list((tmp_path / "pseudo_labels").iterdir())
    assert len(data.CamStore(tmp_path / "cams")) == len(masks)
    assert len(masks) == (8 if root is None else 6 if preset[0] in "vc" else 4)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("method", list(METHODS))
def test_each_method_is_what_it_says(method, tmp_path):
    cfg = config("scenes", tmp_path, method=method, evaluate=False, size=48)
    seen, parts = Recorded(cfg), METHODS[method]
    expected = {"stem", "cls", *parts.losses} | ({"contrast"} if parts.contrast else set())
    assert [set(terms) for terms in seen] == [expected] * 2
    assert all(v == v for terms in seen for v in terms.values())
    weights = load_file(tmp_path / "model.safetensors")
    tokens = 10 + int(parts.token)
    assert ("encoder.class_tokens.background_token" in weights) == parts.token
    assert weights["encoder.class_tokens.position"].shape[0] == tokens
    assert len(weights["head.bias"]) == 10 + int("background" in parts.losses)
    assert bool(weights["bank.num_pushed"].any()) == ("cross" in parts.losses)


@pytest.mark.parametrize("walk", ["psa", "irn"])
def test_scores_walk_along_learnt_affinities(walk, tmp_path):
    cfg = config("scenes", tmp_path, walk=walk, steps=3, walk_start=1, size=48)
    seen = Recorded(cfg)
    assert ["walk" in terms for terms in seen] == [False, True, True]
    assert 0 <= seen.results["pseudo_label_miou"] <= 1


def test_masks_are_within_the_labels(tmp_path):
    cfg = config("scenes", tmp_path, masks=True, evaluate=False, threshold=0.01)
    main(cfg)
    for sample in data.Scenes(size=8):
        mask = data.read_mask(tmp_path / "pseudo_labels" / f"{sample['id']}.png")
        assert mask.shape == sample["image"].shape[-2:]
        known = {0, *(sample["labels"].nonzero().flatten() + 1).tolist()}
        assert set(mask.unique().tolist()) <= known


def test_no_training_path_reads_a_mask(tmp_path, voc, monkeypatch):
    cfg = config("voc-small", tmp_path / "a", root=voc, evaluate=False, masks=True, walk="psa")
    expected = Recorded(cfg)
    assert {"cross", "walk"} <= set(expected[0])

    def refuse(path):
        raise AssertionError(f"training read the mask {path}")

    monkeypatch.setattr(image_files, "read_mask", refuse)
    monkeypatch.setattr("wsss_blocks.data.folder.read_mask", refuse)
    assert Recorded(dataclasses.replace(cfg, output=tmp_path / "b")) == expected
    # The guard works: evaluation does read masks.
    with pytest.raises(AssertionError, match="training read the mask"):
        main(dataclasses.replace(cfg, output=tmp_path / "c", evaluate=True))


class StopError(Exception):
    pass


@pytest.mark.parametrize(("preset", "stops"), [("scenes", (4, 6)), ("voc", (5,))])
def test_interrupted_run_resumes_to_the_same_weights(preset, stops, tmp_path, voc, monkeypatch):
    changes = {"steps": 6, "stem_steps": 1, "background_start": 2, "infusion_start": 3}
    changes |= {"save_every": 2, "warmup": 1, "evaluate": False, "bank": 2, "walk": "psa"}
    changes |= {"walk_start": 4, "root": voc} if preset == "voc" else {"size": 48}
    whole = config(preset, tmp_path / "whole", **changes)
    main(whole)
    expected = load_file(whole.output / "model.safetensors")
    assert int(expected["bank.num_pushed"].sum()) > 0
    forward = train_cti.CTISystem.forward
    for stop in stops:
        parts = dataclasses.replace(whole, output=tmp_path / str(stop), resume=True)
        calls = []

        def interrupted(self, *args, calls=calls, stop=stop):
            calls.append(1)
            if len(calls) == stop:
                raise StopError
            return forward(self, *args)

        monkeypatch.setattr(train_cti.CTISystem, "forward", interrupted)
        with pytest.raises(StopError):
            main(parts)
        monkeypatch.setattr(train_cti.CTISystem, "forward", forward)
        main(parts)
        found = load_file(parts.output / "model.safetensors")
        assert found.keys() == expected.keys()
        for key in expected:
            assert torch.equal(found[key], expected[key]), (stop, key)


def test_two_processes_train_together(tmp_path, voc):
    run_example_on_two_ranks(
        "train_cti.py", "--preset", "voc-small", "--data", "voc", "--root", voc, "--output",
        tmp_path, "--steps", "2", "--batch-size", "2", "--stem-steps", "0", "--background-start",
        "0", "--infusion-start", "0", "--bank", "1", "--size", "64", "--eval-size", "64",
        "--eval-images", "2",
    )  # fmt: skip
    # Each process scored, and made the masks of, half of the images.
    assert read_metrics(tmp_path / "metrics.json").protocol["seed_miou"].num_images == 2
    assert len(list((tmp_path / "pseudo_labels").iterdir())) == 6
    pushed = load_file(tmp_path / "model.safetensors")["bank.num_pushed"]
    assert int(pushed.sum()) >= 8  # of the images of both: two steps, two processes, two images


def test_micro_batches_add_up_to_one_batch(tmp_path, voc):
    # Without batch norm, and without cross-image infusion, whose bank grows between them.
    changes = {"method": "intra", "root": voc, "mask_absent": True, "evaluate": False}
    whole = config("voc", tmp_path / "whole", batch_size=4, **changes)
    parts = config("voc", tmp_path / "parts", batch_size=2, accumulate=2, **changes)
    one, two = Recorded(whole), Recorded(parts)
    for term in one[0]:
        assert sum(t[term] for t in two[:2]) == pytest.approx(one[0][term], rel=1e-4), term


@pytest.mark.slow
def test_compiled_training_equals_eager(tmp_path, monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend="eager"))
    eager = config("scenes", tmp_path / "eager", size=48, evaluate=False)
    first = Recorded(eager)
    second = Recorded(dataclasses.replace(eager, output=tmp_path / "compiled", compile=True))
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


def test_bfloat16_training_stays_near_float32(tmp_path):
    exact = Recorded(config("scenes", tmp_path / "a", evaluate=False))
    AcceleratorState._reset_state()  # one precision per process is all that Accelerate allows
    mixed = Recorded(config("scenes", tmp_path / "b", evaluate=False, mixed_precision="bf16"))
    AcceleratorState._reset_state()
    for a, b in zip(exact, mixed, strict=True):
        assert a.keys() == b.keys()
        assert all(b[name] == pytest.approx(a[name], rel=0.2, abs=0.1) for name in a)
