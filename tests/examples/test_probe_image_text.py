"""The probing example on generated folders of classes and on scenes, with tiny models."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_open_clip import tiny_weights

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import probe_image_text  # noqa: E402
from probe_image_text import Config, feature_of, main  # noqa: E402

from wsss_blocks import data  # noqa: E402
from wsss_blocks.cli import load_image_text_model  # noqa: E402
from wsss_blocks.metrics import read_metrics  # noqa: E402
from wsss_blocks.segmenters import create_loda, load_loda, save_loda  # noqa: E402

COLOURS = {"blue_sky": (40, 60, 220), "grass": (30, 200, 50), "red_rose": (230, 30, 40)}
WORDS = ("a", "blue", "grass", "of", "photo", "red", "rose", "sky")
TEMPLATES = ("{}", "a photo of a {}")
QUICK = {"base_lr": 100.0, "batch_norm": True, "epochs": 40, "device": "cpu"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three classes of one colour each, images of two sizes."""
    folder = tmp_path_factory.mktemp("colours")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 8), ("val", 3)):
        for name, colour in COLOURS.items():
            for i in range(count):
                size = (40, 24) if i % 2 else (32, 32)
                noise = torch.randint(-20, 20, (*size, 3), generator=generator)
                pixels = (torch.tensor(colour) + noise).clamp(0, 255).byte().numpy()
                path = folder / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def loda(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("loda") / "model.safetensors"
    save_loda(path, create_loda(words=WORDS, dim=16, image_norm=True, image_k=3), size=32)
    return path


def by_hand(model, dataset, size=None):
    """Share of the images whose own name is the most similar one, image by image."""
    texts = []
    for name in dataset.names:
        said = [t.replace("{}", name.replace("_", " ")) for t in TEMPLATES]
        rows = [model.encode_text(*model.tokenize([text]))[0] for text in said]
        texts.append(torch.stack(rows).mean(0))
    right = 0
    for sample in dataset:
        image = sample["image"][None]
        if size is not None:
            image = F.interpolate(image, (size, size), mode="bilinear", antialias=True)
        scores = [F.cosine_similarity(model.encode_image(image)[0], t, dim=0) for t in texts]
        right += int(torch.stack(scores).argmax() == sample["labels"].argmax())
    return right / len(dataset)


@pytest.mark.parametrize("at_once", [64, 2])
@torch.no_grad()
def test_a_trained_model_on_folders_of_classes(root, loda, tmp_path, at_once):
    found = main(
        Config(root=root, model=str(loda), output=tmp_path, templates=TEMPLATES, at_once=at_once,
               **QUICK)
    )  # fmt: skip
    val = data.open_dataset("folder", "val", root=root)
    assert found["zero_shot_top1"] == pytest.approx(by_hand(load_loda(loda), val, size=32))
    assert found["linear_pooled_top1"] == found["linear_pooled_train_top1"] == 1.0  # colours
    assert found["zero_shot_top5"] == 1.0  # of three
    saved = read_metrics(tmp_path / "metrics.json")
    assert saved.results == pytest.approx(found, abs=1e-4)
    named, probed = saved.protocol["zero_shot_top1"], saved.protocol["linear_pooled_top5"]
    assert (named.dataset, named.num_images, named.size_policy) == ("folder", 9, "32 square")
    assert named.text == "LoDA model.safetensors: 2 templates"
    assert (probed.text, probed.num_images) == (None, 9)
    trained = saved.protocol["linear_pooled_train_top1"]
    assert (trained.split, trained.num_images) == ("train (images of one class)", 24)
    assert json.loads((tmp_path / "config.json").read_text())["base_lr"] == 100.0


@torch.no_grad()
def test_a_model_without_a_size_sees_images_as_they_are(root, tmp_path):
    torch.manual_seed(1)
    model = create_loda(words=WORDS, dim=16, image_norm=True, image_k=3)
    save_loda(tmp_path / "model.safetensors", model)
    cfg = {"root": root, "model": str(tmp_path / "model.safetensors"), "templates": TEMPLATES}
    found = main(Config(output=tmp_path, probe=False, device="cpu", **cfg))
    val = data.open_dataset("folder", "val", root=root)
    assert found["zero_shot_top1"] == pytest.approx(by_hand(model.eval(), val))
    assert set(found) == {"zero_shot_top1", "zero_shot_top5"}
    protocol = read_metrics(tmp_path / "metrics.json").protocol["zero_shot_top1"]
    assert protocol.size_policy == "as they are"


@pytest.mark.parametrize("feature", ["pooled", "mean", "class_token"])
def test_an_open_clip_model(root, tmp_path, monkeypatch, feature):
    name = tiny_weights(monkeypatch, tmp_path)
    cfg = Config(root=root, model=name, output=tmp_path, feature=feature, size=32, **QUICK)
    found = main(cfg)
    assert {f"linear_{feature}_top1", f"linear_{feature}_train_top5"} <= set(found)
    assert found[f"linear_{feature}_top1"] == 1.0
    protocol = read_metrics(tmp_path / "metrics.json").protocol["zero_shot_top1"]
    assert protocol.text.endswith(": 80 templates")


@torch.no_grad()
def test_what_is_probed(monkeypatch, tmp_path):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    clip = load_image_text_model(tiny_weights(monkeypatch, tmp_path))
    token = feature_of(clip, images, "class_token")
    expected = clip.encode_image(images, normalize=False)
    assert torch.allclose(clip.image.project(token), expected, atol=1e-6)
    assert torch.allclose(feature_of(clip, images, "pooled"), expected)
    mean = feature_of(clip, images, "mean")
    assert mean.shape == token.shape
    assert not torch.allclose(mean, token, atol=1e-2)
    # All patches kept, and no norm: pooling is the projected mean.
    loda = create_loda(words=WORDS, dim=16, image_k=64).eval()
    mean = feature_of(loda, images, "mean")
    assert torch.allclose(loda.image.projection(mean), feature_of(loda, images, "pooled"))


def test_scenes_of_a_single_digit(loda, tmp_path, few_scenes):
    found = main(Config(data="scenes", model=str(loda), output=tmp_path, templates=TEMPLATES,
                        **QUICK))  # fmt: skip
    single = [
        sum(int(data.Scenes(split, size=size)[i]["labels"].sum() == 1) for i in range(size))
        for split, size in (("train", 8), ("val", 4))
    ]
    assert 0 < single[1] < 4
    protocols = read_metrics(tmp_path / "metrics.json").protocol
    assert protocols["linear_pooled_train_top1"].num_images == single[0]
    assert protocols["zero_shot_top1"].num_images == single[1]
    assert 0 <= found["linear_pooled_top1"] <= 1


def test_names_are_spoken(root, loda, tmp_path, monkeypatch):
    asked = []

    def bank(model, names, **options):
        asked.append(list(names))
        return zero_shot_bank(model, names, **options)

    zero_shot_bank = probe_image_text.zero_shot_bank
    monkeypatch.setattr(probe_image_text, "zero_shot_bank", bank)
    (tmp_path / "spoken.json").write_text(json.dumps({"grass": "a photo"}))
    options = {"root": root, "model": str(loda), "output": tmp_path, "probe": False}
    main(Config(templates=("{}",), spoken=tmp_path / "spoken.json", device="cpu", **options))
    assert asked == [["blue sky", "a photo", "red rose"]]


def test_splits_that_do_not_fit_are_named(root, loda, tmp_path):
    options = {"model": str(loda), "output": tmp_path, "templates": ("{}",), **QUICK}
    with pytest.raises(SystemExit, match=r"must hold val/CLASS/\*\.jpg, got None"):
        main(Config(**options))
    folder = tmp_path / "set"
    shutil.copytree(root / "val", folder / "val")
    with pytest.raises(SystemExit, match=r"must hold train/CLASS"):
        main(Config(root=folder, **options))
    shutil.copytree(root / "train", folder / "train")
    shutil.rmtree(folder / "train" / "blue_sky")
    with pytest.raises(SystemExit, match="same classes, but differ in: blue_sky"):
        main(Config(root=folder, **options))


def test_the_file_is_short():
    assert len((EXAMPLES / "probe_image_text.py").read_text().splitlines()) <= 150
