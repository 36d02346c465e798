"""The guide from a folder to a deployed model, run as it is written, with few images and steps."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.folder_guide import PAGE, ROOT, steps

sys.path.insert(0, str(ROOT / "examples"))

import export_pseudo_labels
import train_dalnet
import train_segmenter

from wsss_blocks import cli, data
from wsss_blocks.cli.main import main as wsss

SCRIPTS = {m.__name__: m for m in (export_pseudo_labels, train_dalnet, train_segmenter)}
FEW = ["--steps", "2", "--batch-size", "4", "--eval-images", "2", "--warmup", "0"]
FEW += ["--device", "cpu"]
LESS = {"train_dalnet": ["--lea-start", "0", "--seg-start", "0"]}


def run(words):
    """Do what a line of the shell does, in this process; return what an example returns."""
    if words[0] == "wsss":
        assert wsss(words[1:]) == 0, words
        return None
    assert words[0] == "python", words
    name = Path(words[1]).stem
    more = LESS.get(name, []) + (FEW if name.startswith("train") else [])
    module = SCRIPTS[name]
    return module.main(cli.parse_config(module.PRESETS, args=[*words[2:], *more]))


@pytest.fixture
def few_images(monkeypatch):
    """Scenes of few images by default; the page writes them to files."""
    real, sizes = data.Scenes, {"train": 20, "val": 4}
    monkeypatch.setattr(data, "Scenes", lambda split: partial(real, size=sizes[split])(split))


def test_the_chain_from_labels_to_onnx(few_images, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    namespace, results, told = {}, {}, {}
    for text, words in steps(PAGE.read_text()):
        capsys.readouterr()
        if words:
            results[Path(words[1]).stem] = run(words)
            told[" ".join(words[:2])] = capsys.readouterr().out
        else:
            exec(compile(text, PAGE.name, "exec"), namespace)

    labels = json.loads(Path("digits/train/labels.json").read_text())
    assert sum(labels["counts"].values()) >= 20
    assert 0 <= results["train_dalnet"]["seg_miou"] <= 1
    assert len(data.CamStore("runs/digits/cams")) == 20
    swept = json.loads(Path("runs/digits/sweep/sweep.json").read_text())
    assert 0 <= swept["results"]["cam_best_miou"] <= 100
    written = sorted(path.stem for path in Path("runs/masks").glob("*.png"))
    assert written == [f"train_{i:05d}" for i in range(20)]
    assert len(json.loads(Path("digits.json").read_text())["images"]) == 20
    scored = json.loads(Path("runs/final/val/metrics.json").read_text())
    assert scored["results"]["segmentation"]["miou"] == pytest.approx(
        100 * results["train_segmenter"]["seg_miou"], abs=1e-3
    ), "wsss evaluate and the training measure alike"
    assert "digits.onnx" in told["wsss deploy"]

    # The deployed file says what the library says.
    (mask,) = (np.asarray(Image.open("val_00000.png")),)
    from wsss_blocks.segmenters import Segmenter

    segmenter = Segmenter.load("runs/final/segmenter.safetensors")
    expected = segmenter.segment("digits/val/images/val_00000.png").mask.numpy()
    assert (mask == expected).mean() > 0.999
