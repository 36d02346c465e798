"""The example trains under every preset, resumes to the bit, and never reads a mask to learn."""

import dataclasses
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook
from two_ranks import run_example_on_two_ranks

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import demo  # noqa: E402
import train_dalnet  # noqa: E402
from train_dalnet import PRESETS, Config, main  # noqa: E402

from wsss_blocks import backbones, data  # noqa: E402
from wsss_blocks.data import images as image_files  # noqa: E402
from wsss_blocks.metrics import read_metrics  # noqa: E402

# All loss terms from the first step on, and small images: what is tested is the wiring.
FAST = {
    "steps": 2, "batch_size": 2, "lea_start": 0, "seg_start": 0, "warmup": 0, "workers": 0,
    "eval_images": 2, "weights": None, "device": "cpu", "eval_every": 0,
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("few_scenes")

CREATE_MODEL = open_clip.create_model


@pytest.fixture(scope="session")
def random_clip():
    """CLIP's text tower as open_clip builds it, with random weights."""
    return CREATE_MODEL("ViT-B-16", pretrained=None, force_quick_gelu=True)


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch, request):
    def build(name, **options):
        assert (name, options["force_quick_gelu"]) == ("ViT-B-16", True)
        return request.getfixturevalue("random_clip")

    monkeypatch.setattr("wsss_blocks.backbones.create_text._download", lambda *a: "weights")
    monkeypatch.setattr(open_clip, "create_model", build)


def config(preset: str, output: Path, **changes) -> Config:
    cfg = PRESETS[preset]
    if cfg.size > 96:
        changes = {"size": 64, "cam_scales": cfg.cam_scales[:1], "eval_scales": (1.0,)} | changes
        changes = {"eval_size": cfg.eval_size and 64} | changes
    return dataclasses.replace(cfg, output=output, **(FAST | changes))


@pytest.mark.parametrize("preset", list(PRESETS))
def test_each_preset_trains_evaluates_and_draws(
    preset, tmp_path, voc, coco, folder, capsys, monkeypatch
):
    if preset == "voc":  # the state that others resume from takes a gigabyte
        monkeypatch.setattr("wsss_blocks.cli.loop.save_run_state", lambda *args, **options: None)
    changes = {"root": {"voc": voc, "coco": coco, "folder": folder}.get(PRESETS[preset].data)}
    if preset in ("coco", "folder"):  # the code is the same for each name, that of VOC is large
        changes["encoder"] = "vit_tiny_patch16_224"
    results = main(config(preset, tmp_path, **changes))
    told = capsys.readouterr().out
    if preset in ("voc", "coco"):
        assert re.search(r"^layer +9 +DIAL, supplement, Tab. 5", told, re.M)
        assert re.search(r"^seg_weight +0.1 +inferred", told, re.M)
        assert re.search(r"^steps +2 +changed \(preset: [28]0000\)", told, re.M)
    expected = {"cam_miou", "cam_par_miou", "text_cam_miou", "pseudo_label_miou", "seg_miou"}
    assert expected <= set(results)
    assert all(0 <= value <= 1 for value in results.values())
    for name in (
        "metrics.json", "config.json", "model.safetensors", "segmenter.safetensors",
        "figures/segmentation.png", "figures/similarity.png",
    ):  # fmt: skip
        assert (tmp_path / name).is_file(), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_clip_bounds_the_gradient_of_a_step(accumulate, tmp_path):
    norms = []

    def note(optimizer, *_):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm([g for g in grads if g is not None]).item())

    hook = register_optimizer_step_pre_hook(note)
    try:
        for clip in (0.0, 0.05):
            options = {"clip": clip, "accumulate": accumulate, "evaluate": False}
            main(config("scenes", tmp_path / str(clip), **options))
    finally:
        hook.remove()
    assert min(norms[:2]) > 0.1
    assert norms[2:] == pytest.approx([0.05, 0.05], rel=1e-3)


def test_a_run_is_scored_raw_with_several_views_and_behind_a_crf(tmp_path):
    trained = config("scenes", tmp_path, steps=2)
    plain = main(dataclasses.replace(trained, refine="none"))
    assert not [name for name in plain if "_par" in name or "_crf" in name or "_raw" in name]
    again = dataclasses.replace(trained, resume=True, refine="crf", eval_scales=(1.0, 1.5))
    results = main(again)
    assert results["cam_miou"] == plain["cam_miou"]
    assert results["seg_raw_miou"] == plain["seg_miou"]
    protocol = read_metrics(tmp_path / "metrics.json").protocol
    assert protocol["seg_raw_miou"].scales == (1.0,)
    for name in ("cam_crf_miou", "text_cam_crf_miou", "seg_crf_miou"):
        assert 0 <= results[name] <= 1
        assert "bilateral=(121.0, 5.0, 4.0)" in protocol[name].refiner
    assert protocol["seg_crf_miou"].scales == (1.0, 1.5)
    assert not [name for name in results if "_par" in name]


def losses_of(cfg: Config) -> list[dict[str, float]]:
    """Train and record the loss terms of each step."""
    seen, forward = [], train_dalnet.DALNet.forward

    def spy(self, *args):
        terms = forward(self, *args)
        seen.append({name: term.item() for name, term in terms.items()})
        return terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_dalnet.DALNet, "forward", spy)
        main(cfg)
    return seen


def test_no_training_path_reads_a_mask(tmp_path, voc, monkeypatch):
    cfg = config("voc-small", tmp_path / "a", root=voc, evaluate=False)
    expected = losses_of(cfg)

    def refuse(path):
        raise AssertionError(f"training read the mask {path}")

    monkeypatch.setattr(image_files, "read_mask", refuse)
    monkeypatch.setattr("wsss_blocks.data.folder.read_mask", refuse)
    assert losses_of(dataclasses.replace(cfg, output=tmp_path / "b")) == expected
    # The guard works: evaluation does read masks.
    with pytest.raises(AssertionError, match="training read the mask"):
        main(dataclasses.replace(cfg, output=tmp_path / "c", evaluate=True))


def test_masks_may_be_absent(tmp_path, voc):
    root = tmp_path / "data"
    root.mkdir()
    for name in ("JPEGImages", "Annotations", "ImageSets"):
        (root / "VOC2012").mkdir(exist_ok=True)
        (root / "VOC2012" / name).symlink_to(voc / "VOC2012" / name)
    cfg = config("voc-small", tmp_path / "run", root=root, evaluate=False)
    assert losses_of(cfg) == losses_of(dataclasses.replace(cfg, root=voc, output=tmp_path / "ref"))


class StopError(Exception):
    pass


def test_interrupted_run_resumes_to_the_same_weights(tmp_path, monkeypatch):
    whole = config("scenes", tmp_path / "whole", steps=5, save_every=2, evaluate=False, warmup=1)
    main(whole)
    parts = dataclasses.replace(whole, output=tmp_path / "parts", resume=True)
    forward, calls = train_dalnet.DALNet.forward, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 4:
            raise StopError
        return forward(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(train_dalnet.DALNet, "forward", interrupted)
        with pytest.raises(StopError):
            main(parts)
    main(parts)
    a, b = (load_file(c.output / "model.safetensors") for c in (whole, parts))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_one_batch_is_overfitted(tmp_path, monkeypatch):
    monkeypatch.setattr(
        data.Scenes, "__len__", lambda self: 2 if self.split == "train" else self.size
    )
    seen = losses_of(
        config("scenes", tmp_path, steps=25, evaluate=False, gia=False, lea=False, seg=False)
    )
    assert seen[-1]["cls"] < 0.5 * seen[0]["cls"]


def test_predict_writes_masks_of_any_size(tmp_path):
    cfg = config("scenes", tmp_path, evaluate=False)
    main(cfg)
    photo = tmp_path / "ein Bild é.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 71, 3), np.uint8)).save(photo)
    main(dataclasses.replace(cfg, predict=(photo,)))
    mask = Image.open(tmp_path / "predictions" / "ein Bild é.png")
    assert mask.size == (71, 50)
    assert mask.mode == "P"
    assert np.asarray(mask).max() <= 10


def test_text_bank_from_a_file_is_used_and_checked(tmp_path):
    bank = backbones.TextBank.stand_in(data.DIGIT_NAMES, dim=16, seed=3)
    bank.save(tmp_path / "text.safetensors")
    cfg = config(
        "scenes", tmp_path / "run", text=str(tmp_path / "text.safetensors"), evaluate=False
    )
    main(cfg)
    saved = load_file(tmp_path / "run" / "model.safetensors")
    torch.testing.assert_close(saved["bank.classes"], bank.classes)
    backbones.TextBank.stand_in(("a", "b"), dim=16, seed=3).save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="names"):
        main(dataclasses.replace(cfg, text=str(tmp_path / "other.safetensors")))


def test_demo_finishes_skips_what_is_done_and_writes_the_table(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "scenes", dataclasses.replace(PRESETS["scenes"], **FAST))
    options = demo.Demo(output=tmp_path, steps=2, eval_images=2)
    first = demo.main(options)
    assert set(first) == set(demo.COLUMNS)
    assert (tmp_path / "figures" / "dalnet_segmentation.png").is_file()
    assert (tmp_path / "figures" / "dalnet_similarity_centred.png").is_file()
    assert not (tmp_path / "figures" / "baseline_similarity.png").exists()  # nothing was aligned
    monkeypatch.setattr(demo, "train", lambda cfg: pytest.fail(f"{cfg.output} was trained twice"))
    assert demo.main(options) == pytest.approx(first, abs=1e-4)


@pytest.mark.ddp
def test_two_processes_train_together(tmp_path, voc):
    run_example_on_two_ranks(
        "train_dalnet.py", "--preset", "voc-small", "--data", "voc", "--root", voc, "--output",
        tmp_path, "--steps", "2", "--batch-size", "2", "--lea-start", "0", "--seg-start", "0",
        "--size", "64", "--eval-size", "64", "--eval-images", "4",
    )  # fmt: skip
    assert (tmp_path / "model.safetensors").is_file()
    # Each process scored half of the images; the counts of both make the result.
    assert read_metrics(tmp_path / "metrics.json").protocol["seg_miou"].num_images == 2


def test_compiled_training_equals_eager(tmp_path, monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend="eager"))
    eager = config("scenes", tmp_path / "eager", evaluate=False)
    main(eager)
    main(dataclasses.replace(eager, output=tmp_path / "compiled", compile=True))
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in ("eager", "compiled"))
    for key in a:  # in the mean: where a gradient is all rounding, Adam steps either way
        torch.testing.assert_close(
            (a[key] - b[key]).float().abs().mean().item(), 0.0, rtol=0, atol=1e-2 * eager.lr,
            msg=lambda m, k=key: f"{k}: {m}",
        )  # fmt: skip


def test_bfloat16_training_stays_near_float32(tmp_path):
    exact = losses_of(config("scenes", tmp_path / "a", evaluate=False))
    AcceleratorState._reset_state()  # one precision per process is all that Accelerate allows
    mixed = losses_of(config("scenes", tmp_path / "b", evaluate=False, mixed_precision="bf16"))
    for a, b in zip(exact, mixed, strict=True):
        assert a.keys() == b.keys()
        assert all(b[name] == pytest.approx(a[name], rel=0.2, abs=0.05) for name in a)
    AcceleratorState._reset_state()


def test_pseudo_labels_come_from_the_layer_first(tmp_path, monkeypatch):
    sources, label = [], train_dalnet.DALNet.pseudo_label

    def spy(self, *args):
        sources.append(args[-1])
        return label(self, *args)

    monkeypatch.setattr(train_dalnet.DALNet, "pseudo_label", spy)
    main(config("scenes", tmp_path, steps=3, layer_until=2, evaluate=False))
    assert sources == ["layer", "layer", "classifier"]


def test_another_preset_or_strict_broken_files_end_the_run(tmp_path, folder):
    run = config("scenes", tmp_path / "run", evaluate=False)
    main(run)
    with pytest.raises(ValueError, match=r"preset 'scenes' as in .* got 'scenes-vit'"):
        main(config("scenes-vit", tmp_path / "run", evaluate=False, resume=True))
    root = tmp_path / "photos"
    shutil.copytree(folder, root)
    broken = next((root / "train" / "images").iterdir())
    broken.write_bytes(broken.read_bytes()[:50])
    cfg = config("folder-small", tmp_path / "b", root=root, evaluate=False)
    main(cfg)
    with pytest.raises(ValueError, match=rf"all images must be usable, got 1 .*{broken.name}"):
        main(dataclasses.replace(cfg, strict=True))
