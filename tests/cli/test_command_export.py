import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import coco

from wsss_blocks.cam import cam_to_label
from wsss_blocks.cli.main import main
from wsss_blocks.data import (
    DIGIT_NAMES,
    CamStore,
    CamStoreWriter,
    read_mask,
    write_mask,
    write_voc_layout,
)
from wsss_blocks.metrics import EvaluationProtocol
from wsss_blocks.segmenters import SegmentationNetwork, Segmenter


def run(capsys, *words):
    code = main([str(word) for word in ("export", *words)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def voc(tmp_path):
    return write_voc_layout(tmp_path / "VOC é", train=2, val=1)


@pytest.fixture
def names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(DIGIT_NAMES))
    return path


def test_masks_to_coco(capsys, tmp_path, voc, names):
    path = tmp_path / "out é" / "masks.json"
    masks = voc / "SegmentationClass"
    words = (masks, "--to", "coco-json", "--names", names, "--images", voc / "JPEGImages")
    code, out, err = run(capsys, *words, "--output", path, "--segmentation", "polygon")
    assert (code, err) == (0, "")
    assert f"\n3 masks in {path}\n" in out
    assert "left out" not in out
    reader = coco.COCO(str(path))
    for number, image in reader.imgs.items():
        wanted = read_mask(masks / f"{image['file_name'][:-4]}.png").numpy()
        found = np.zeros_like(wanted)
        for one in reader.loadAnns(reader.getAnnIds(imgIds=[number])):
            found[reader.annToMask(one) == 1] = one["category_id"]
        assert np.array_equal(found, wanted)
    capsys.readouterr()  # the reader talks
    code, out, err = run(capsys, *words, "--output", path)
    assert (code, out) == (2, "")
    assert "masks.json exists: choose another output, nothing is replaced" in err


def test_splits_and_ignored_pixels(capsys, tmp_path):
    masks = tmp_path / "masks"
    for name in ("a", "x/b 1"):
        write_mask(masks / f"{name}.png", np.array([[0, 1, 255]], np.uint8))
    val = tmp_path / "val.txt"
    val.write_text("x/b 1\n\n")
    words = (masks, "--names", "cat,dog", "--val", val, "--output")
    code, out, err = run(capsys, *words, tmp_path / "yolo", "--to", "yolo-seg")
    assert (code, err) == (0, "")
    assert re.search(r"^  cat +2$", out, re.MULTILINE)
    assert "with ignored pixels, which yolo-seg cannot say (left out): 2\n" in out
    assert (tmp_path / "yolo" / "labels" / "val" / "x" / "b 1.txt").read_text().startswith("0 ")
    code, out, _ = run(capsys, *words, tmp_path / "mmseg", "--to", "mmseg")
    assert "left out" not in out
    assert (tmp_path / "mmseg" / "ann_dir" / "train" / "a.png").is_file()
    code, _, err = run(capsys, *words, tmp_path / "npz", "--to", "npz")
    assert code == 2
    assert "wsss: val_ids is for mmseg and yolo-seg, not for npz" in err


def test_a_segmenter_predicts_the_masks(capsys, tmp_path, voc):
    data = {"dataset": "pets", "split": "val", "num_images": 9}
    views = {"scales": (1.0,), "flip": False, "refiner": "none", "labels_used": False}
    torch.manual_seed(0)
    network = SegmentationNetwork("small-cnn", num_classes=3, hidden_dim=8)
    segmenter = Segmenter(
        network, names=("cat", "dog"), protocol=EvaluationProtocol(**data, **views)
    )
    file, images = tmp_path / "segmenter.safetensors", voc / "JPEGImages"
    segmenter.save(file)
    words = (file, "--to", "npz", "--output", tmp_path / "all.npz")
    code, _, err = run(capsys, *words, "--images", images)
    assert (code, err) == (0, "")
    found = np.load(tmp_path / "all.npz")
    assert found["names"].tolist() == ["background", "cat", "dog"]
    assert len(found["ids"]) == 3
    for name in found["ids"].tolist():
        wanted = segmenter.segment(images / f"{name}.jpg").mask.numpy()
        assert np.array_equal(found[f"masks/{name}"], wanted)
    assert run(capsys, *words)[2] == "wsss: a segmenter needs photographs: give --images.\n"
    code, _, err = run(capsys, *words, "--images", images, "--names", "voc")
    assert (code, "knows 2 classes (cat, dog, ...), leave out --names" in err) == (2, True)


def test_errors_name_the_files(capsys, tmp_path):
    masks, photos = tmp_path / "masks", tmp_path / "photos"
    photos.mkdir()
    write_mask(masks / "a.png", np.full((4, 5), 3, np.uint8))
    Image.new("RGB", (5, 6)).save(photos / "a.jpg")
    words = ("--to", "voc-png", "--output", tmp_path / "out", "--names")
    for given, told in (
        ((masks, *words, "cat,dog"), r"masks/a\.png must hold ids 0\.\.2 .* got 3\."),
        ((masks, *words, "voc", "--images", photos), r"a\.png must have the size .*photos/a\.jpg"),
        ((photos, *words, "voc"), r"no masks \(\*\.png\) in .*photos\."),
        ((tmp_path / "gone", *words, "voc"), "no folder of masks at .*gone"),
        ((masks, *words[:-1]), "--names must say what the ids in the masks mean"),
    ):
        code, out, err = run(capsys, *given)
        assert (code, out) == (2, "")
        assert re.match(f"wsss: .*{told}|wsss: {told}", err), err
    assert not (tmp_path / "out").exists()


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        main(["export", "--help"])
    assert end.value.code == 0
    shown = " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().out).split())
    for text in (
        "voc-server-tar",
        "labelme",
        "--segmentation",
        "reduce_zero_label",
        "whole or not",
    ):
        assert text in shown
    assert json.dumps("") not in shown


@pytest.mark.parametrize("threshold", [(0.4,), (0.3, 0.6)])
def test_stored_class_maps_are_cut_at_the_size_of_their_images(capsys, tmp_path, threshold):
    generator, sizes = torch.Generator().manual_seed(0), {"a": (20, 30), "b/c": (17, 9)}
    labels = torch.tensor([1.0, 0.0, 1.0])
    with CamStoreWriter(tmp_path / "cams", list(sizes), ["cat", "dog", "cow"]) as writer:
        for name, size in sizes.items():
            writer.write(name, torch.rand(3, 4, 5, generator=generator), labels, image_size=size)
    told = ("--to", "voc-png", "--output", tmp_path / "masks", "--threshold", *threshold)
    capsys.readouterr()
    code, out, err = run(capsys, tmp_path / "cams", *told)
    assert (code, err) == (0, "")
    assert "2 masks in" in out
    store = CamStore(tmp_path / "cams")
    for name, size in sizes.items():
        cut = threshold if len(threshold) == 2 else threshold[0]
        expected = cam_to_label(store.dense(name)[None], labels[None], size=size, threshold=cut)
        found = read_mask(tmp_path / "masks" / f"{name}.png")
        assert torch.equal(found.long(), expected[0])
        assert 2 not in found.unique(), "the image shows no dog"
        assert len(found.unique()) > 2


def test_a_store_needs_a_threshold_and_masks_have_none(capsys, tmp_path, voc, names):
    with CamStoreWriter(tmp_path / "cams", ["a", "b"], ["cat"]) as writer:
        writer.write("a", torch.rand(1, 4, 5), torch.ones(1), image_size=(8, 8))
    told, cut = ("--to", "voc-png", "--output", tmp_path / "x"), ("--threshold", 0.4)
    for words, message in (
        ((tmp_path / "cams", *told), "needs --threshold, one value or two"),
        ((tmp_path / "cams", *told, *cut), "lacks the maps of 1 images, among them b"),
        ((voc / "SegmentationClass", *told, *cut, "--names", names), "--threshold is for a store"),
    ):
        code, _, err = run(capsys, *words)
        assert code == 2
        assert message in err
    with CamStoreWriter(tmp_path / "cams", ["a", "b"], ["cat"]) as writer:
        writer.write("b", torch.rand(1, 4, 5), torch.ones(1), image_size=(8, 8))
    code, _, err = run(capsys, tmp_path / "cams", *told, *cut, "--names", "cow,")
    assert code == 2
    assert "cams knows 1 classes (cat, ...), leave out --names" in err
    assert not (tmp_path / "x").exists()
