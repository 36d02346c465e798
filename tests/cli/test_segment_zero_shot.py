import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from tiny_open_clip import NAME, tiny_weights
from torch import nn

from wsss_blocks import cli
from wsss_blocks.cli.main import main
from wsss_blocks.data import COCO_NAMES, VOC_NAMES, read_mask
from wsss_blocks.metrics import EvaluationProtocol
from wsss_blocks.segmenters import SegmentationNetwork, Segmenter


@pytest.fixture
def model(monkeypatch, tmp_path):
    """A text that names a tiny model, from a folder of its own with two photographs."""
    text = tiny_weights(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("a.jpg", "b.png")):
        (tmp_path / "photos").mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    return text


def run(*words):
    return main(["segment", *map(str, words), "--size", "48"])


def expected(model, names, photo, **options):
    made = cli.segmenter_of_names(cli.load_image_text_model(model), names, size=48, **options)
    return made.segment(photo).mask


def test_photographs_by_names_alone(model, tmp_path, capsys):
    assert run("photos", "--classes", "dog, grass", "--model", model) == 0
    assert capsys.readouterr().out == "2 masks in masks\n"
    files = sorted(p.name for p in (tmp_path / "masks").iterdir())
    assert files == ["a.png", "a_overlay.png", "b.png", "b_overlay.png", "protocol.json"]
    for name, photo in (("a.png", "photos/a.jpg"), ("b.png", "photos/b.png")):
        mask = read_mask(tmp_path / "masks" / name)
        assert torch.equal(mask, expected(model, ["dog", "grass"], photo))
        assert mask.any()
    stated = json.loads((tmp_path / "masks" / "protocol.json").read_text())
    stated.pop("line")
    protocol = EvaluationProtocol.from_dict(stated)
    assert protocol.text == f"open_clip {NAME} tiny.pt: 80 templates; the 5 best names"
    assert protocol.refiner.startswith("binary DenseCRF(iterations=3, ")
    assert protocol.labels_used is False


def test_files_further_images_prompts_and_options(model, tmp_path):
    words = ("--classes", "dog", "--model", model, "--prompts", "a {}.", "the {}")
    assert run("photos/a.jpg", "photos/b.png", *words, "--refiner", "none", "--output", "x") == 0
    assert run("photos/a.jpg", "--images", "photos/b.png", *words, "--sigma", "1",
               "--output", "y") == 0  # fmt: skip
    wanted = expected(model, ["dog"], "photos/b.png", templates=["a {}.", "the {}"], crf=False)
    assert torch.equal(read_mask(tmp_path / "x" / "b.png"), wanted)
    # Of one name and the background none stands out by a deviation.
    assert not read_mask(tmp_path / "y" / "a.png").any()
    assert not read_mask(tmp_path / "y" / "b.png").any()


def test_scores_are_printed_and_drawn(model, tmp_path, capsys):
    names = ",".join(f"thing {i}" for i in range(11))
    assert run("photos", "--classes", names, "--model", model, "--scores") == 0
    made = cli.segmenter_of_names(cli.load_image_text_model(model), names.split(","), size=48)
    assert made.sigma == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "2 masks in masks"
    for line, photo in zip(lines, ("photos/a.jpg", "photos/b.png"), strict=False):
        found = made.segment_scored(photo)
        assert line.startswith(f"{photo[7:]}: threshold {found.threshold:.4f}; ")
        said = line.partition("; ")[2].split(", ")
        best = found.scores.argsort(descending=True)[:10].tolist()
        assert said == [
            f"{'*' if found.taken[i] else ''}{found.names[i]} {found.scores[i]:.4f}" for i in best
        ]
        # All that is taken beats the threshold, and nothing else does but the background.
        assert all(found.scores[i] >= found.threshold for i in found.taken.nonzero().flatten())
    with Image.open(tmp_path / "masks" / "class_scores.png") as figure:
        assert figure.format == "PNG"
    assert run("photos/a.jpg", "--classes", "dog,cat", "--model", model, "--scores",
               "--output", "few") == 0  # fmt: skip
    assert "a.jpg: threshold none needed; " in capsys.readouterr().out
    (tmp_path / "photos" / "a.jpg").rename(tmp_path / "class_scores.jpg")
    words = ("--classes", "dog", "--model", model, "--scores", "--output", "clash")
    assert run("class_scores.jpg", *words) == 2
    assert "class_scores.png is the mask of an image" in capsys.readouterr().err
    assert read_mask(tmp_path / "clash" / "class_scores.png").shape == (40, 50)


def test_masks_can_be_scored(model, tmp_path, capsys):
    assert run("photos", "--classes", "dog,grass", "--model", model) == 0
    (tmp_path / "truth").mkdir()
    for name in ("a.png", "b.png"):
        mask = Image.open(tmp_path / "masks" / name)
        Image.fromarray(np.asarray(mask)).save(tmp_path / "truth" / name)
    words = ["evaluate", "masks", "--masks", "truth", "--names", "dog,grass"]
    assert main([*words, "--replicates", "0", "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "image labels not used" in out
    assert f"text: open_clip {NAME} tiny.pt: 80 templates; the 5 best names" in out


def test_the_trained_form_still_works(model, tmp_path, capsys):
    protocol = EvaluationProtocol(
        dataset="toy", split="val", num_images=1, scales=(1.0,), flip=False, refiner="none",
        labels_used=False,
    )  # fmt: skip
    network = SegmentationNetwork("small-cnn", num_classes=3, hidden_dim=8)
    segmenter = Segmenter(network, names=("cat", "dog"), protocol=protocol)
    segmenter.save(tmp_path / "s.safetensors")
    assert run("s.safetensors", "--images", "photos", "--output", "old") == 0
    assert run("s.safetensors", "photos/a.jpg", "photos/b.png") == 0
    assert capsys.readouterr().out == "2 masks in old\n2 masks in masks\n"
    for folder in ("old", "masks"):
        found = read_mask(tmp_path / folder / "b.png")
        assert torch.equal(found, segmenter.segment(tmp_path / "photos" / "b.png").mask)
    assert run("s.safetensors") == 2
    assert "say which images to segment" in capsys.readouterr().err
    assert run("s.safetensors", "photos", "--scores") == 2
    assert "--scores are those of class names" in capsys.readouterr().err


def test_what_cannot_be_done_is_said(model, monkeypatch, capsys):
    def offline(config):
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    for words, message in (
        (["photos"], "say what to look for, as --classes dog,grass, or begin with the .safete"),
        ([], "got nothing"),
        (["--classes", "dog"], "say which images to segment"),
        (["photos", "--classes", " "], "--classes must hold a name"),
        (["photos", "--classes", "dog,dog"], "names must be unique"),
        (["photos", "--classes", "dog"], "Give a local file of these weights, as 'ViT-B-16-quick"),
        (["photos", "--classes", "dog", "--model", "clop"], "model must be 'ARCH/TAG' or 'ARCH/P"),
        (["photos", "--classes", "dog", "--model", model, "--prompts", "a"], "templates must each"),
        (["gone", "--classes", "dog", "--model", model], "no image or folder at gone"),
    ):
        assert run(*words) == 2
        assert message in capsys.readouterr().err


def test_names_are_spoken_as_words(model, tmp_path):
    tiny = cli.load_image_text_model(model)
    assert not tiny.training
    assert not any(p.requires_grad for p in tiny.parameters())
    assert tiny.patches == "value"
    voc = cli.segmenter_of_names(tiny, VOC_NAMES, templates=["{}"])
    assert voc.names == VOC_NAMES
    assert "tvmonitor: tv monitor" in voc.bank.source
    assert (voc.sigma, voc.size, voc.most, voc.top) == (1.0, 288, 5, 10)
    # Where the words are a name of their own, each keeps its spelling.
    both = cli.segmenter_of_names(tiny, ["tvmonitor", "tv monitor"], templates=["{}"])
    assert (both.sigma, both.bank.source) == (None, f"open_clip {NAME} tiny.pt: {{}}")
    assert cli.segmenter_of_names(tiny, ["dog"], templates=["{}"], sigma=0.5).sigma == 0.5
    (tmp_path / "names.txt").write_text("dog\ngrass\n")
    assert run("photos/a.jpg", "--classes", "names.txt", "--model", model) == 0
    assert run("photos/a.jpg", "--classes", "coco", "--model", model, "--prompts", "{}") == 0
    assert len(COCO_NAMES) == 80


def test_any_object_that_segments_files(tmp_path):
    class Stub(nn.Module):
        protocol = EvaluationProtocol(
            dataset="toy", split="val", num_images=1, scales=(1.0,), flip=False, refiner="none",
            labels_used=False,
        )  # fmt: skip

        def segment(self, image):
            raise AssertionError("no image, no call")

    assert cli.segment_files(Stub(), [], output=tmp_path / "out") == []
