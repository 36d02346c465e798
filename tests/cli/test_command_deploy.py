import json
import re
import sys

import onnxruntime
import pytest
import torch

from wsss_blocks.cli.main import main
from wsss_blocks.metrics import EvaluationProtocol
from wsss_blocks.segmenters import SegmentationNetwork, Segmenter


def run(capsys, *words):
    code = main([str(word) for word in ("deploy", *words)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def source(tmp_path):
    data = {"dataset": "pets", "split": "val", "num_images": 9}
    views = {"scales": (1.0, 1.5), "flip": True, "refiner": "none", "labels_used": False}
    torch.manual_seed(0)
    network = SegmentationNetwork("small-cnn", num_classes=3, hidden_dim=4)
    path = tmp_path / "run é" / "segmenter.safetensors"
    protocol = EvaluationProtocol(**data, **views)
    Segmenter(network, names=("cat", "dog"), protocol=protocol).save(path)
    return path


def test_onnx(capsys, source, tmp_path):
    path = tmp_path / "out é" / "model.onnx"
    words = ("--returns", "scores", "--views", "one", "--size", "21", "30")
    code, out, err = run(capsys, source, "--output", path, *words)
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert re.fullmatch(rf"{path}: \d\.\d MB, images of 21 x 30 to scores", first)
    assert re.fullmatch(
        r"compared with the segmenter: scores differ by up to \S+, \S+ % of the pixels of another "
        "class",
        second,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = torch.rand(2, 3, 21, 30)
    (scores,) = session.run(None, {"images": images.numpy()})
    assert scores.shape == (2, 3, 21, 30)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["names"]) == ["background", "cat", "dog"]
    assert json.loads(about["views"]) == "one"


def test_torch(capsys, source, tmp_path):
    path = tmp_path / "model.PT2"
    code, out, err = run(capsys, source, "--output", path, "--views", "one", "--no-check")
    assert (code, err) == (0, "")
    assert out.endswith("MB, images of any size to mask\nnot compared with the segmenter\n")
    with path.open("rb") as file:
        mask = torch.export.load(file).module()(torch.rand(1, 3, 31, 45))
    assert mask.shape == (1, 31, 45)


def test_what_cannot_be_done(capsys, source, tmp_path, monkeypatch):
    code, out, err = run(capsys, source, "--output", tmp_path / "model.tflite")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"wsss: --output must end in \.onnx or \.pt2, got .*model\.tflite\.\n", err)
    path = tmp_path / "model.onnx"
    code, _, err = run(capsys, tmp_path / "none.safetensors", "--output", path)
    assert code == 2
    assert "no segmenter at" in err
    code, _, err = run(capsys, source, "--output", path, "--opset", "9")
    assert (code, err) == (2, "wsss: opset must be 18 to 23, got 9.\n")
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, err = run(capsys, source, "--output", path)
    assert code == 2
    assert "export_onnx needs onnx: pip install 'wsss-blocks[export]'" in err
    assert not path.exists()


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["deploy", "--help"])
    assert "--output pets.onnx --views one" in capsys.readouterr().out
