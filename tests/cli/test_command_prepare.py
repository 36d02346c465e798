import json
import re

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from wsss_blocks.cli.main import main
from wsss_blocks.data import read_mask, write_coco_layout, write_voc_layout


def run(capsys, *words):
    code = main([str(word) for word in ("prepare", *words)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def roots(tmp_path):
    voc = write_voc_layout(tmp_path / "VOC devkit é", train=2, val=1)
    sbd = tmp_path / "SBD é"
    (sbd / "cls").mkdir(parents=True)
    for split, name in (("train", "more"), ("val", "val_00000")):
        (sbd / f"{split}.txt").write_text(f"{name}\n")
        savemat(sbd / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": np.eye(96, dtype="u1")}})
    return voc, sbd


def test_voc_aug(capsys, roots):
    voc, sbd = roots
    code, out, err = run(capsys, "voc-aug", voc.parent, "--sbd", sbd, "--allow-incomplete")
    assert (code, err) == (0, "")
    assert "train_aug.txt: 3 images\nmasks written: 4 " in out
    assert re.search(r"hash of the train_aug masks: [0-9a-f]{16}\n$", out)
    listed = voc / "ImageSets" / "Segmentation" / "train_aug.txt"
    assert listed.read_text() == "more\ntrain_00000\ntrain_00001\n"
    more = voc / "SegmentationClassAug" / "more.png"
    assert np.array_equal(read_mask(more), np.eye(96))
    Image.fromarray(np.zeros((96, 96), np.uint8)).save(more)
    words = ("voc-aug", voc, "--sbd", sbd, "--allow-incomplete", "--workers", "1")
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert "wsss: 1 of 4 masks could not be built" in err
    assert "more.png exists and is another mask" in err
    assert run(capsys, *words, "--overwrite")[0] == 0
    assert np.array_equal(read_mask(more), np.eye(96))


def test_voc_aug_of_another_size(capsys, roots):
    voc, sbd = roots
    code, out, err = run(capsys, "voc-aug", voc, "--sbd", sbd)
    assert (code, out) == (2, "")
    assert "wsss: train_aug must have 10,582 images, got 3: SBD train 1" in err
    assert not (voc / "SegmentationClassAug").exists()
    code, _, err = run(capsys, "voc-aug", voc, "--sbd", voc)
    assert code == 2
    assert "no SBD" in err


def test_coco(capsys, tmp_path):
    root = write_coco_layout(tmp_path, train=2, val=3)
    source = root / "annotations" / "instances_val2014.json"
    output = tmp_path / "masks é"
    code, out, err = run(capsys, "coco", source, "--output", output)
    assert (code, err) == (0, "")
    report = json.loads((output / "masks.json").read_text(encoding="utf-8"))
    assert f"\n3 masks in {output}, 3 of them written now\n" in out
    assert f"masks without any class: 0\nhash of all masks: {report['hash']}\n" in out
    for name, count in report["images_per_class"].items():
        assert re.search(rf"^  {name} +{count}$", out, re.MULTILINE)
    code, out, _ = run(capsys, "coco", source, "--output", output, "--workers", 2)
    assert f"\n3 masks in {output}, 0 of them written now\n" in out
    assert report["hash"] in out
    mask = next(output.glob("*.png"))
    mask.write_bytes(b"")
    code, out, err = run(capsys, "coco", source, "--output", output)
    assert (code, out) == (2, "")
    assert f"{mask.name} exists and is another mask" in err
    code, out, _ = run(capsys, "coco", source, "--output", output, "--overwrite")
    assert "1 of them written now" in out


def test_coco_says_what_has_no_outline(capsys, tmp_path):
    root = write_coco_layout(tmp_path, train=2, val=1)
    source = root / "annotations" / "instances_train2014.json"
    content = json.loads(source.read_text())
    content["annotations"][0]["segmentation"] = []
    source.write_text(json.dumps(content))
    code, out, _ = run(capsys, "coco", source, "--output", tmp_path / "masks")
    assert code == 0
    assert "annotations without an outline, left out: 1\n" in out
    code, _, err = run(capsys, "coco", tmp_path / "gone.json", "--output", tmp_path / "masks")
    assert (code, err) == (2, f"wsss: no annotation file at {tmp_path / 'gone.json'}.\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), ("voc-aug", "coco")),
        (("voc-aug",), ("10,582", "--sbd", "--allow-incomplete", "mark no borders")),
        (("coco",), ("--output", "2 to 3 GB", "iscrowd", "checksum")),
    ],
)
def test_help(capsys, words, told):
    with pytest.raises(SystemExit) as end:
        main(["prepare", *words, "--help"])
    assert end.value.code == 0
    shown = " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().out).split())
    for text in told:
        assert text in shown
