"""CLIP-ES end to end, with a tiny random model: what is tested is the wiring."""

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_open_clip import tiny_weights

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import clip_es  # noqa: E402
from clip_es import CLIPES, PRESETS, Config, main, text_bank  # noqa: E402

from wsss_blocks import backbones, cam, data, refine  # noqa: E402
from wsss_blocks.data import images as image_files  # noqa: E402
from wsss_blocks.metrics import read_metrics  # noqa: E402

NAMES = ("cat", "stop sign", "chair")


@pytest.fixture
def options(monkeypatch, tmp_path, few_scenes):
    model = tiny_weights(monkeypatch, tmp_path)
    return {
        "model": model, "output": tmp_path / "out", "device": "cpu", "eval_size": 32,
        "eval_images": 3, "workers": 0, "logit_scale": 5.0,
    }  # fmt: skip


@pytest.mark.parametrize("preset", list(PRESETS))
def test_each_preset_writes_masks_and_scores_them(preset, options, voc, coco, folder, capsys):
    root = {"voc": voc, "coco": coco, "folder": folder}.get(preset)
    cfg = dataclasses.replace(PRESETS[preset], root=root, **options)
    results = main(cfg)
    assert {"pseudo_label_miou", "every_pixel_miou", "pseudo_label_decided"} <= set(results)
    assert 0 <= results["cam_miou"] <= 1
    assert 0 <= results["spread_miou"] <= 1
    assert results["every_pixel_decided"] == 1.0
    assert 0 < results["pseudo_label_decided"] < 1
    told = capsys.readouterr().out
    assert re.search(r"^prompt +a clean origami {}\. +CLIP-ES, released code", told, re.M)
    protocol = read_metrics(options["output"] / "metrics.json").protocol["pseudo_label_miou"]
    assert protocol.labels_used
    assert read_metrics(options["output"] / "metrics.json").protocol["spread_miou"].labels_used
    assert protocol.refiner.startswith("DenseCRF(iterations=10, gaussian=(1, 3)")
    words = 23 if preset == "coco" else 25
    assert protocol.text.endswith(f"a clean origami {{}}.; {words} background words")
    files = list((options["output"] / "pseudo_labels").iterdir())
    assert len(files) == (8 if root is None else 4 if preset == "folder" else 6)
    ids = np.unique([np.asarray(Image.open(f)) for f in files[:1]])
    assert ids.max() == 255
    assert (options["output"] / "figures" / "segmentation.png").is_file()


def test_only_present_classes_get_pixels_and_no_mask_is_read(options, monkeypatch, voc):
    def refuse(path):
        raise AssertionError(f"the mask {path} was read")

    monkeypatch.setattr(image_files, "read_mask", refuse)
    monkeypatch.setattr("wsss_blocks.data.folder.read_mask", refuse)
    cfg = Config(data="voc", root=voc, evaluate=False, confidence=0.0, refine="none", **options)
    assert main(cfg) == {}
    dataset = data.open_dataset("voc", "train_aug", root=voc)
    for i in range(len(dataset)):
        path = options["output"] / "pseudo_labels" / f"{dataset.ids[i]}.png"
        present = {0, *(1 + dataset[i]["labels"].nonzero().flatten()).tolist()}
        assert set(np.unique(np.asarray(Image.open(path)))) <= present


def test_texts_of_classes_and_background(options):
    model = backbones.OpenCLIPModel.from_name(options["model"])
    bank = text_bank(model, Config(**options), NAMES)
    assert bank.names == NAMES
    assert bank.background.shape == (24, 6)  # "sign" is a part of a class
    rows = model.encode_text(
        *model.tokenize(["a clean origami chair seat.", "a clean origami sky."])
    )
    torch.testing.assert_close(bank.classes[2], rows[0])
    torch.testing.assert_close(bank.background[6], rows[1])
    without = text_bank(model, Config(background=(), **options), NAMES)
    assert without.background.shape == (0, 6)


def test_the_pieces_are_those_of_the_paper(options):
    """The softmax gradient at the last norm, by hand and class by class."""
    system = CLIPES(Config(layers=1, **options), NAMES)
    images, labels = torch.rand(2, 3, 32, 40), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    maps, looked, features = system(images, labels)
    assert looked.shape == (2, 1, 20, 20)
    assert list(features.attention) == [1]
    assert not any(p.requires_grad for p in system.parameters())
    with cam.tap_output(system.blocks[-1].ln_1) as taps:
        found = system.image(images)
        token = torch.nn.functional.normalize(system.image.project(found.global_token), dim=-1)
        logits = 5 * token @ torch.cat([system.bank.classes, system.bank.background]).mT
        for image, own in ((0, (0, 2)), (1, (1,))):
            kept = logits[image][[*own, *range(3, logits.shape[1])]].softmax(0)
            for place, k in enumerate(own):
                (gradient,) = torch.autograd.grad(kept[place], taps[0], retain_graph=True)
                weight = gradient[image, 1:].mean(0)
                by_hand = (taps[0][image, 1:] @ weight).relu().view(1, 1, 4, 5)
                expected = clip_es.normalized(by_hand)[0, 0]
                torch.testing.assert_close(maps[image, k], expected, rtol=1e-3, atol=1e-4)
    assert (maps[0, 1] == 0).all()
    assert (maps[1, ::2] == 0).all()


def test_refiners_and_confidence(options):
    images, labels = torch.rand(1, 3, 32, 32), torch.tensor([[1.0, 0, 1]])
    box = torch.tensor([[0, 0, 32, 24]])
    for name, kind in (("none", refine.NoRefiner), ("par", refine.PixelAdaptiveRefine)):
        system = CLIPES(Config(refine=name, **options), NAMES)
        assert isinstance(system.refiner, kind)
        every = system.pseudo_label(images, labels, box, confidence=0.0)
        assert (every[..., :24] < 4).all()
        assert (every[..., 24:] == 255).all()
        assert (system.train().pseudo_label(images, labels, box, confidence=1.0) == 255).any()
        assert not system.image.training


def test_the_file_is_short():
    assert len((EXAMPLES / "clip_es.py").read_text().splitlines()) <= 200
    assert clip_es.__doc__.count("random weights") == 1
