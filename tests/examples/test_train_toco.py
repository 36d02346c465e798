"""The ToCo example end to end, on few and small images."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import train_toco  # noqa: E402
from train_toco import PRESETS, Config, main  # noqa: E402

from wsss_blocks.data import images as image_files  # noqa: E402

# All losses from the first step on, and small images: what is tested is the wiring.
FAST = {
    "steps": 2, "batch_size": 2, "contrast_start": 0, "seg_start": 0, "layer_until": 1, "warmup": 0,
    "workers": 0, "eval_images": 2, "weights": None, "device": "cpu", "size": 48, "crops": (3, 16),
    "cam_scales": (1.0,), "eval_scales": (1.0,), "decoder": (8, 1), "evaluate": False,
    "refine": "none",
}  # fmt: skip
TERMS = {"cls", "aux", "ptc", "ctc", "seg", "energy"}
pytestmark = pytest.mark.usefixtures("few_scenes")


@pytest.fixture(autouse=True)
def small_head(monkeypatch):
    head = train_toco.heads.DINOHead
    small = lambda dim: head(dim, 16, hidden_dim=32, bottleneck_dim=8)  # noqa: E731
    monkeypatch.setattr(train_toco.heads, "DINOHead", small)


def config(preset: str, output: Path, **changes) -> Config:
    if preset != "scenes":  # the same code, smaller
        changes = {"encoder": "vit_tiny_patch16_224"} | changes
    return dataclasses.replace(PRESETS[preset], output=output, **(FAST | changes))


def recorded(cfg: Config) -> list[dict[str, float]]:
    """The losses of a run, step by step."""
    seen, forward = [], train_toco.ToCo.forward

    def losses(module, *args):
        terms = forward(module, *args)
        seen.append({name: term.item() for name, term in terms.items()})
        return terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_toco.ToCo, "forward", losses)
        main(cfg)
    return seen


@pytest.mark.parametrize("preset", ["voc", "coco"])  # scenes: the next test
def test_each_preset_trains_and_says_where_its_values_come_from(
    preset, tmp_path, voc, coco, capsys
):
    root = {"voc": voc, "coco": coco}[preset]
    (terms,) = recorded(config(preset, tmp_path, root=root, steps=1))
    assert set(terms) == TERMS
    assert all(abs(v) < 100 for v in terms.values())
    told = capsys.readouterr().out
    assert re.search(r"^ptc_weight +0.2 +ToCo, released code", told, re.M)
    start = r"0 +inferred" if preset == "voc" else r"0 +changed \(preset: 12000\)"
    assert re.search(rf"^contrast_start +{start}", told, re.M)


def test_scenes_are_scored_and_segmented(tmp_path):
    cfg = config("scenes", tmp_path, evaluate=True)
    results = main(cfg)
    assert {"cam_miou", "layer_cam_miou", "pseudo_label_miou", "seg_miou"} <= set(results)
    assert all(0 <= value <= 1 for value in results.values())
    for name in ("metrics.json", "config.json", "segmenter.safetensors"):
        assert (tmp_path / name).is_file(), name


def test_losses_start_when_they_should_and_the_teacher_follows(tmp_path):
    cfg = config("scenes", tmp_path, steps=3, contrast_start=1, seg_start=2, save_every=1)
    seen = recorded(cfg)
    first, second = {"cls", "aux"}, {"cls", "aux", "ptc", "ctc"}
    assert [set(terms) for terms in seen] == [first, second, TERMS]
    state = load_file(next(tmp_path.glob("checkpoint/step-*/model.safetensors")))
    assert int(state["teacher.num_updates"]) == 3
    student, teacher = state["project.prototypes"], state["teacher.model.prototypes"]
    assert 0 < (student - teacher).abs().max() < 0.01  # it moved, a tenth of the way


def test_targets_come_from_the_earlier_layer_and_the_crops_fit(tmp_path):
    cfg = config("scenes", tmp_path)
    torch.manual_seed(0)
    model = train_toco.ToCo(cfg, 3)
    box = torch.tensor([[0, 0, 48, 48], [0, 0, 24, 48]])
    batch = {"image": torch.rand(2, 3, 48, 48), "labels": torch.eye(2, 3), "box": box}
    made = model.targets(batch, frozenset({"contrast", "seg"}), 0)
    assert made["regions"].shape == (2, 6, 6)
    assert made["crops"].shape == (2, 3, 3, 16, 16)
    assert (made["regions"][1, 3:] == 255).all()  # padding
    assert (made["pseudo"][1, 24:] == 255).all()
    assert set(made["pseudo"][0].unique().tolist()) <= {0, 1, 255}
    with torch.no_grad():  # a head without response finds no region: all crops are negative
        model.aux_head.weight.zero_()
    assert not model.targets(batch, frozenset({"contrast"}), 0)["positive"].any()


def test_crops_depend_on_the_number_of_their_image_alone(tmp_path):
    torch.manual_seed(0)
    model, active = train_toco.ToCo(config("scenes", tmp_path), 3), frozenset({"contrast"})
    box = torch.tensor([[0, 0, 48, 48]]).expand(3, 4)
    batch = {"image": torch.rand(3, 3, 48, 48), "labels": torch.eye(3), "box": box}
    whole = model.eval().targets(batch, active, 10)["crops"]
    last = model.targets({key: value[2:] for key, value in batch.items()}, active, 12)["crops"]
    assert torch.equal(last, whole[2:])
    assert not torch.equal(model.targets(batch, active, 11)["crops"], whole)


def test_the_file_is_short():
    assert len((EXAMPLES / "train_toco.py").read_text().splitlines()) <= 200


def test_no_training_path_reads_a_mask(tmp_path, voc, monkeypatch):
    cfg = config("voc", tmp_path / "a", root=voc, steps=1)
    expected = recorded(cfg)

    def refuse(path):
        raise AssertionError(f"training read the mask {path}")

    monkeypatch.setattr(image_files, "read_mask", refuse)
    monkeypatch.setattr("wsss_blocks.data.folder.read_mask", refuse)
    assert recorded(dataclasses.replace(cfg, output=tmp_path / "b")) == expected
    with pytest.raises(AssertionError, match="training read the mask"):  # the guard works
        main(dataclasses.replace(cfg, output=tmp_path / "c", evaluate=True))


class StopError(Exception):
    pass


def test_interrupted_run_resumes_to_the_same_weights(tmp_path, monkeypatch):
    whole = config("scenes", tmp_path / "whole", steps=3, save_every=2, contrast_start=1)
    main(whole)
    parts = dataclasses.replace(whole, output=tmp_path / "parts", resume=True)
    forward, calls = train_toco.ToCo.forward, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise StopError
        return forward(self, *args)

    monkeypatch.setattr(train_toco.ToCo, "forward", interrupted)
    with pytest.raises(StopError):
        main(parts)
    monkeypatch.setattr(train_toco.ToCo, "forward", forward)
    main(parts)
    one, two = (
        load_file(next(cfg.output.glob("checkpoint/step-*/model.safetensors")))
        for cfg in (whole, parts)
    )
    assert one.keys() == two.keys()
    assert int(one["teacher.num_updates"]) == 3
    for key in one:
        assert torch.equal(one[key], two[key]), key
