import json
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from wsss_blocks.cli.main import main
from wsss_blocks.data import COCO_NAMES, VOC_NAMES, WeakLabels, class_table, write_voc_layout


def run(capsys, *words):
    code = main([str(word) for word in ("labels", *words)])
    out, err = capsys.readouterr()
    return code, out, err


def made(capsys, path, *words):
    """Run, and return the labels that were written and what was printed."""
    code, out, err = run(capsys, *words, "--output", path)
    assert (code, err) == (0, "")
    return WeakLabels.load(path), out


def refused(capsys, path, *words):
    """Run, and return the error; nothing was written."""
    before = path.read_bytes() if path.exists() else None
    code, out, err = run(capsys, *words, "--output", path)
    assert (code, out) == (2, "")
    assert (path.read_bytes() if path.exists() else None) == before
    return err


def rows(labels):
    return {image: labels.classes(image) for image in labels}


def save_mask(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(ids, np.uint8)).save(path)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out é" / "labels.json"


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    names = [*VOC_NAMES[:9], "person"]
    root = tmp_path_factory.mktemp("VOC é")
    return write_voc_layout(root / "VOCdevkit", train=4, val=2, names=names)


def test_what_is_printed(capsys, tmp_path, target):
    table = tmp_path / "labels.csv"
    table.write_text("id,labels\na,cat;dog\nb,cat\nc,\n")
    labels, out = made(capsys, target, table, "--from", "csv", "--names", "dog,cow,cat")
    assert labels.names == ("dog", "cow", "cat")
    assert out.splitlines() == [
        "  class     images",
        "  dog            1",
        "  cow            0",
        "  cat            2",
        "",
        "3 images, 3 classes, 1.00 classes an image",
        "images without any class: 1: c",
        "classes without images:   cow",
        f"hash:                     {labels.hash}",
        f"written:                  {target}",
    ]
    content = json.loads(target.read_text())
    assert content["counts"] == {"dog": 1, "cow": 0, "cat": 2}
    assert content["hash"] == labels.hash


def test_many_images_without_a_class_are_not_all_listed(capsys, tmp_path, target):
    table = tmp_path / "labels.csv"
    table.write_text("id,cat\n" + "".join(f"{k},0\n" for k in range(9)))
    _, out = made(capsys, target, table, "--from", "csv")
    assert "images without any class: 9: 0, 1, 2, 3, 4, ...\n" in out


@pytest.mark.parametrize("below", ["", "..", "../..", "Annotations"])
def test_voc_xml(capsys, voc, target, below):
    labels, _ = made(capsys, target, voc / below, "--from", "voc-xml")
    assert labels.names == VOC_NAMES
    assert labels.ids == [*(f"train_{k:05}" for k in range(4)), "val_00000", "val_00001"]
    assert labels == WeakLabels.from_voc_xml(voc / "Annotations", labels.ids)


def test_ids_choose_and_order(capsys, voc, target, tmp_path):
    listed = tmp_path / "ids.txt"
    listed.write_text("/JPEGImages/val_00001.jpg /SegmentationClass/val_00001.png\n\ntrain_00002\n")
    for kind, source in (("voc-xml", voc), ("masks", voc / "SegmentationClass")):
        words = (source, "--from", kind, "--names", "voc", "--ids", listed, "--overwrite")
        assert made(capsys, target, *words)[0].ids == ["val_00001", "train_00002"]
    listed.write_text("val_00001\nnothing\nnaught\n")
    error = refused(capsys, target, voc, "--from", "voc-xml", "--ids", listed, "--overwrite")
    assert re.search(r"2 of the 3 ids in .*ids.txt are not in .*, such as nothing, naught", error)
    assert "It has ids such as train_00000." in error
    table = tmp_path / "labels.csv"
    table.write_text("id,labels\nIMG 1,cat\nIMG 2,dog\nval_00001,cat\n")
    listed.write_text("IMG 2\nval_00001 cat\n")
    words = (table, "--from", "csv", "--ids", listed, "--overwrite")
    assert made(capsys, target, *words)[0].ids == ["IMG 2", "val_00001"]
    listed.write_text("IMG 3\n")
    assert "1 of the 1 ids" in refused(capsys, target, *words)


def test_masks(capsys, tmp_path, target):
    save_mask(tmp_path / "masks" / "b.png", [[0, 2]])
    save_mask(tmp_path / "masks" / "Café 1" / "a.png", [[1, 255]])
    labels, _ = made(capsys, target, tmp_path / "masks", "--from", "masks", "--names", "cat,dog")
    assert rows(labels) == {"Café 1/a": ["cat"], "b": ["dog"]}
    words = (tmp_path / "masks", "--from", "masks", "--overwrite")
    one = tmp_path / "names.txt"
    one.write_text("cat\n")
    assert "b.png has the class id 2" in refused(capsys, target, *words, "--names", one)
    assert "--names is needed: masks" in refused(capsys, target, *words)


@pytest.mark.parametrize("name", ["ade20k", "coco-stuff", "coco-object"])
def test_masks_with_the_ids_of_official_files(capsys, tmp_path, target, name):
    table = class_table(name)
    raw = table.raw_ids
    save_mask(tmp_path / "masks" / "a.png", [[raw[12], raw[0], 255, 200]])
    labels, _ = made(capsys, target, tmp_path / "masks", "--from", "masks", "--names", name)
    assert labels.classes("a") == [table.names[0], table.names[12]]


def test_folders(capsys, tmp_path, target):
    for name in ("cat/1 é.jpg", "dog/2.png", "other/3.jpg"):
        save_mask(tmp_path / "photos" / name, [[0]])
    words = (tmp_path / "photos", "--from", "folders")
    labels, _ = made(capsys, target, *words, "--exclude", "other", "more")
    assert rows(labels) == {"cat/1 é": ["cat"], "dog/2": ["dog"]}
    csv = target.with_suffix(".csv")
    assert made(capsys, csv, *words, "--names", "other,dog,cat")[0].names == ("other", "dog", "cat")


def test_coco_json(capsys, tmp_path, target):
    content = {
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "annotations": [{"image_id": 1, "category_id": 7}],
    }
    (tmp_path / "i.json").write_text(json.dumps(content))
    labels, _ = made(capsys, target, tmp_path / "i.json", "--from", "coco-json")
    assert (labels.names, rows(labels)) == (("cat", "dog"), {"a": ["dog"], "b": []})
    words = (tmp_path / "i.json", "--from", "coco-json", "--overwrite")
    assert "must have the 20 classes of names" in refused(capsys, target, *words, "--names", "voc")


def test_txt_counts_classes_from_0(capsys, tmp_path, target):
    (tmp_path / "train.txt").write_text("COCO_train2014_000000000009 45 79\nx 0\n")
    words = (tmp_path / "train.txt", "--from", "txt")
    labels, _ = made(capsys, target, *words, "--names", "coco")
    assert labels.classes("COCO_train2014_000000000009") == [COCO_NAMES[45], COCO_NAMES[79]]
    assert "--names is needed: txt" in refused(capsys, target, *words, "--overwrite")


def test_npy_says_which_names_fit(capsys, tmp_path, target):
    path = tmp_path / "cls_labels.npy"
    vector = np.eye(20, dtype=np.float32)[3]
    np.save(path, {"2007_000032": vector}, allow_pickle=True)
    words = (path, "--from", "npy")
    assert made(capsys, target, *words, "--names", "voc")[0].classes("2007_000032") == ["boat"]
    hint = "20 columns are those of voc; ids such as 2007_000032 are those of voc."
    assert hint in refused(capsys, target, *words, "--overwrite")
    error = refused(capsys, target, *words, "--names", "coco", "--overwrite")
    assert "has 20 label columns, but names has 80: is it the file of another data set?" in error
    assert hint in error


class Attack:
    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (self.flag,)


def test_nothing_of_a_pickle_is_executed(capsys, tmp_path, target):
    flag = str(tmp_path / "flag")
    np.save(tmp_path / "l.npy", {"a": Attack(flag)}, allow_pickle=True)
    error = refused(capsys, target, tmp_path / "l.npy", "--from", "npy", "--names", "voc")
    assert "l.npy is not a plain pickle of label vectors: it asks for" in error
    (tmp_path / "m.npy").write_bytes(pickle.dumps(Attack(flag)))
    error = refused(capsys, target, tmp_path / "m.npy", "--from", "npy", "--names", "voc")
    assert "m.npy is not a .npy file" in error
    assert not os.path.exists(flag)


def test_refusals(capsys, tmp_path, target, voc):
    words = (voc, "--from", "voc-xml")
    made(capsys, target, *words)
    assert f"{target} exists: --overwrite replaces it" in refused(capsys, target, *words)
    text = target.with_suffix(".txt")
    assert "path must end in .json or .csv" in refused(capsys, text, *words)
    other = target.with_suffix(".csv")
    assert "nothing at" in refused(capsys, other, tmp_path / "gone", "--from", "csv")
    assert "no .xml files in" in refused(capsys, other, tmp_path, "--from", "voc-xml")
    masks = (tmp_path / "out é", "--from", "masks", "--names", "voc")
    assert "no .png files in" in refused(capsys, other, *masks)
    assert "--exclude is for --from folders" in refused(capsys, other, *words, "--exclude", "x")
    assert "names must be one of voc" in refused(capsys, other, *words, "--names", "birds")


def test_help_in_a_process_of_its_own(tmp_path):
    (tmp_path / "labels.csv").write_text("id,labels\na b,cat\n")
    command = [sys.executable, "-m", "wsss_blocks", "labels"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0
    for word in ("voc-xml", "--names", "--exclude", "wsss labels photos --from folders"):
        assert word in shown.stdout
    words = ["labels.csv", "--from", "csv", "--output", "labels.json"]
    for code in (0, 2):
        done = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, timeout=120)
        assert done.returncode == code
    assert b"wsss: labels.json exists: --overwrite replaces it." in done.stderr
    assert rows(WeakLabels.load(tmp_path / "labels.json")) == {"a b": ["cat"]}


@pytest.mark.real_data
def test_the_fields_files(capsys, shared_data, target):
    folder = shared_data / "labels" / "voc12"
    listed = folder / "train_aug.txt"
    words = (folder / "cls_labels_onehot.npy", "--from", "npy", "--names", "voc", "--ids", listed)
    _, out = made(capsys, target, *words)
    assert "10,582 images, 20 classes, 1.5" in out
    assert "images without any class: 0\nclasses without images:   none\n" in out
    for split, count in (("train", "82,081"), ("val", "40,137")):
        path = shared_data / "labels" / "coco14" / f"{split}.txt"
        _, out = made(capsys, target, path, "--from", "txt", "--names", "coco", "--overwrite")
        assert f"{count} images, 80 classes" in out
