"""The second stage end to end, on few and small images."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import train_segmenter  # noqa: E402
from train_segmenter import FULL, PRESETS, SOURCES, Config, main  # noqa: E402

from wsss_blocks import data  # noqa: E402
from wsss_blocks.data import images as image_files  # noqa: E402
from wsss_blocks.metrics import read_metrics  # noqa: E402
from wsss_blocks.segmenters import Segmenter  # noqa: E402

FAST = {
    "steps": 2, "batch_size": 2, "warmup": 0, "workers": 0, "eval_images": 2, "weights": None,
    "device": "cpu", "size": 32, "hidden": 4,
}  # fmt: skip
TINY = "test_resnet"  # timm's
NETWORKS = {
    "large-fov": {},
    "deeplabv2": {"encoder": TINY, "output_stride": 8, "frozen_norms": True},
    "deeplabv3plus": {"encoder": TINY},
    "smp:Unet": {"encoder": TINY},
}
pytestmark = pytest.mark.usefixtures("few_scenes")


def config(output: Path, preset: str = "scenes", **changes) -> Config:
    return dataclasses.replace(PRESETS[preset], output=output, **(FAST | changes))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Masks of scenes that are nearly the truth: a stripe of background, one that is undecided."""
    folder = tmp_path_factory.mktemp("made")
    for sample in data.Scenes(size=8, with_masks=True):
        mask = sample["mask"].clone()
        mask[:7], mask[-9:] = 0, 255
        data.write_mask(folder / f"{sample['id']}.png", mask)
    return str(folder)


def targets_of(cfg: Config) -> list[tuple[float, torch.Tensor]]:
    """Run, and return what each step learnt from, with its loss."""
    seen, inner = [], train_segmenter.losses.segmentation_loss

    def loss(logits, mask, **options):
        found = inner(logits, mask, **options)
        seen.append((found.item(), mask.clone()))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_segmenter.losses, "segmentation_loss", loss)
        main(cfg)
    return seen


@pytest.mark.parametrize("network", list(NETWORKS))
def test_each_network_trains_and_is_scored(network, made, tmp_path):
    cfg = config(tmp_path, masks=made, network=network, flip=True, **NETWORKS[network])
    results = main(cfg)
    expected = {"seg_miou", "train_mask_miou", "train_mask_decided"}
    assert set(results) - {"train_mask_multi_miou"} == expected
    assert results["train_mask_decided"] == pytest.approx(1 - 9 / 96, abs=1e-6)
    assert 0.5 < results["train_mask_miou"] < 1
    recorded = read_metrics(tmp_path / "metrics.json")
    assert recorded.run["supervision"] == made
    assert not recorded.protocol["seg_miou"].labels_used
    names = ["metrics.json", "config.json", "model.safetensors", "figures/segmentation.png"]
    assert all((tmp_path / name).is_file() for name in (*names, "report.html"))
    assert not (tmp_path / "figures" / "thresholds.png").exists()
    saved = tmp_path / "segmenter.safetensors"
    assert saved.is_file() == (not network.startswith("smp"))
    if saved.is_file():
        loaded, weights = Segmenter.load(saved), load_file(tmp_path / "model.safetensors")
        for key, value in loaded.network.state_dict().items():
            assert torch.equal(value, weights[key]), key
        assert loaded.protocol == recorded.protocol["seg_miou"]


def test_it_learns_from_the_masks_that_it_is_given(made, tmp_path):
    cfg = config(
        tmp_path, masks=made, size=96, scale=(1.0, 1.0), colour="none", evaluate=False, steps=4
    )
    seen = targets_of(cfg)
    files = [data.read_mask(path) for path in Path(made).glob("*.png")]
    assert len(seen) == 4
    for loss, masks in seen:
        assert 0 < loss < 20
        assert all(any(torch.equal(mask, file) for file in files) for mask in masks)


def test_padding_and_undecided_pixels_are_not_learnt_from(made, tmp_path):
    cfg = config(tmp_path, masks=made, scale=(0.2, 0.2), evaluate=False, steps=1)
    (_, masks), *_ = targets_of(cfg)
    assert (masks == 255).float().mean() > 1 - (0.25 * 96 / 32) ** 2


def test_the_upper_bound_learns_from_the_truth_and_says_so(made, tmp_path, capsys):
    cfg = config(
        tmp_path / "full", supervision="masks", size=96, scale=(1.0, 1.0), colour="none", steps=1
    )
    (_, masks), *_ = targets_of(cfg)
    assert f"learning from {FULL}" in capsys.readouterr().out
    truth = [sample["mask"] for sample in data.Scenes(size=8, with_masks=True)]
    assert all(any(torch.equal(mask, true) for true in truth) for mask in masks)
    recorded = read_metrics(tmp_path / "full" / "metrics.json")
    assert recorded.run["supervision"] == FULL
    assert not [name for name in recorded.results if name.startswith("train_mask")]
    # A second run is compared with it.
    full = tmp_path / "full" / "metrics.json"
    weak = config(tmp_path / "weak", masks=made, compare_with=full, steps=1)
    results = main(weak)
    expected = 100 * results["seg_miou"] / recorded.results["seg_miou"]
    told = re.search(r"^seg_miou +(\S+) +(\S+) +(\S+)$", capsys.readouterr().out, re.M)
    assert float(told[1]) == pytest.approx(100 * recorded.results["seg_miou"], abs=0.01)
    assert float(told[2]) == pytest.approx(100 * results["seg_miou"], abs=0.01)
    assert float(told[3]) == pytest.approx(expected, abs=0.2)


def test_shares_of_other_runs_are_refused(made, tmp_path):
    paths = {}
    for name, learnt in (("full", FULL), ("weak", "masks"), ("other", FULL)):
        paths[name] = tmp_path / f"{name}.json"
        protocol = train_segmenter.cli.run_protocol(Config(flip=name == "other"))
        train_segmenter.metrics.write_metrics(
            paths[name], {"seg_miou": 0.8 if learnt == FULL else 0.6}, protocol,
            extra={"supervision": learnt},
        )  # fmt: skip
    table = train_segmenter.share_of_full(paths["full"], paths["weak"])
    assert table.splitlines()[1].split() == ["seg_miou", "80.00", "60.00", "75.0"]
    with pytest.raises(ValueError, match=r"weak.json must be of a run with --supervision masks"):
        train_segmenter.share_of_full(paths["weak"], paths["full"])
    with pytest.raises(ValueError, match="flip"):
        train_segmenter.share_of_full(paths["other"], paths["weak"])
    with pytest.raises(FileNotFoundError):
        main(config(tmp_path, masks=made, compare_with=tmp_path / "gone.json"))


@pytest.mark.parametrize("preset", ["voc", "coco"])
def test_recipes(preset, voc, coco, tmp_path, capsys):
    root = {"voc": voc, "coco": coco}[preset]
    cfg = config(
        tmp_path, preset, root=root, encoder=TINY, supervision="masks", eval_scales=(1.0,), steps=1
    )
    results = main(cfg)
    assert {"seg_miou", "seg_raw_miou", "seg_crf_miou"} == set(results)
    told = capsys.readouterr().out
    assert re.search(r"^optimizer +sgd +.*CTI, supplement", told, re.M)
    assert re.search(r"^steps +1 +changed", told, re.M)
    told = train_segmenter.cli.describe_recipe(
        PRESETS[preset], PRESETS[preset], sources=SOURCES[preset]
    )
    assert re.search(rf"^lr +{PRESETS[preset].lr} +(RIB|CTI)", told, re.M)
    assert re.search(r"^size +321 ", told, re.M)


def test_no_training_path_reads_a_mask_of_the_data_set(voc, tmp_path, monkeypatch):
    for line in (voc / "VOC2012/ImageSets/Segmentation/train_aug.txt").read_text().split():
        size = data.read_image(voc / "VOC2012/JPEGImages" / f"{line}.jpg").shape[-2:]
        data.write_mask(tmp_path / "made" / f"{line}.png", torch.ones(size, dtype=torch.uint8))
    options = {"root": voc, "encoder": TINY, "evaluate": False, "steps": 1}
    cfg = config(tmp_path / "a", "voc", masks=str(tmp_path / "made"), **options)

    def refuse(path):
        raise AssertionError(f"training read the mask {path}")

    monkeypatch.setattr(image_files, "read_mask", refuse)
    monkeypatch.setattr("wsss_blocks.data.folder.read_mask", refuse)
    main(cfg)
    # The guard works: the upper bound does read masks.
    with pytest.raises(AssertionError, match="training read the mask"):
        main(config(tmp_path / "b", "voc", supervision="masks", **options))


class StopError(Exception):
    pass


def test_interrupted_run_resumes_to_the_same_weights(made, tmp_path, monkeypatch):
    changes = {"masks": made, "steps": 4, "save_every": 2, "evaluate": False, "accumulate": 2}
    main(config(tmp_path / "whole", **changes))
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    parts = config(tmp_path / "parts", resume=True, **changes)
    inner, calls = train_segmenter.losses.segmentation_loss, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 7:
            raise StopError
        return inner(*args, **options)

    monkeypatch.setattr(train_segmenter.losses, "segmentation_loss", interrupted)
    with pytest.raises(StopError):
        main(parts)
    main(parts)
    assert len(calls) == 7 + 4
    found = load_file(parts.output / "model.safetensors")
    assert found.keys() == expected.keys()
    for key in expected:
        assert torch.equal(found[key], expected[key]), key


def test_errors(made, tmp_path):
    for changes in ({}, {"masks": made, "supervision": "masks"}):
        with pytest.raises(SystemExit, match="either --masks, or --supervision masks"):
            main(config(tmp_path, **changes))
    for changes, message in (
        ({"network": "unet"}, "network must be one of those of Config, got 'unet'"),
        ({"cache": True}, "cache must be off"),
        ({"network": "smp:Unet", "weights": "w.pth"}, "weights must be None or 'pretrained'"),
    ):
        with pytest.raises(ValueError, match=message):
            main(config(tmp_path, masks=made, **changes))


def test_photographs_are_segmented_with_the_result(made, tmp_path):
    main(config(tmp_path, masks=made, evaluate=False, steps=1))
    data.write_mask(tmp_path / "photo.png", torch.zeros(20, 30, dtype=torch.uint8))
    main(config(tmp_path, predict=(tmp_path / "photo.png",)))
    assert data.read_mask(tmp_path / "predictions" / "photo.png").shape == (20, 30)
    assert json.loads((tmp_path / "config.json").read_text())["masks"] == made
