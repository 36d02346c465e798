import json

import numpy as np
import PIL.Image
import pytest
import torch

from wsss_blocks.data import (
    COCO,
    COCO_NAMES,
    DIGIT_NAMES,
    Scenes,
    WeakLabels,
    collate,
    open_dataset,
    training_transform,
    write_coco_layout,
)

TRAIN = [f"COCO_train2014_{i:012d}" for i in (1, 2, 3, 4)]
VAL = [f"COCO_val2014_{i:012d}" for i in (500001, 500002)]


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    return write_coco_layout(tmp_path_factory.mktemp("coco") / "root", train=4, val=2, seed=3)


@pytest.fixture
def copy(layout, tmp_path):
    """A layout to damage."""
    import shutil

    return shutil.copytree(layout, tmp_path / "copy")


# --- round trip -------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "ids"), [("train", TRAIN), ("val", VAL)])
def test_layout_round_trip(layout, split, ids):
    data = COCO(layout, split, with_masks=True)
    scenes = Scenes(split, size=len(ids), seed=3, with_masks=True)
    assert data.split == f"{split}2014"
    assert data.ids == ids
    assert len(data) == len(ids)
    assert data.names == COCO_NAMES
    assert data.skipped == {}
    for index, (found, drawn) in enumerate(zip(data, scenes, strict=False)):
        assert found["id"] == ids[index]
        assert data.path(index) == layout / f"{split}2014" / f"{ids[index]}.jpg"
        assert torch.equal(found["mask"], drawn["mask"])
        assert torch.equal(found["labels"][:10], drawn["labels"])
        assert not found["labels"][10:].any()
        assert (found["image"] - drawn["image"]).abs().mean() < 0.02  # JPEG
    assert not [p for p in layout.rglob("*") if "tmp" in p.name]


def test_annotations_are_those_of_coco(layout):
    content = json.loads((layout / "annotations" / "instances_train2014.json").read_text())
    ids = [category["id"] for category in content["categories"]]
    assert len(ids) == 80
    assert [i for i in range(1, 91) if i not in ids] == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert [category["name"] for category in content["categories"]] == list(COCO_NAMES)
    numbers = [image["id"] for image in content["images"]]
    assert numbers == [1, 2, 3, 4]
    assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"])
    scenes = Scenes("train", size=4, seed=3, with_masks=True)
    seen = {number: set() for number in numbers}
    for annotation in content["annotations"]:
        mask = scenes[annotation["image_id"] - 1]["mask"].numpy()
        k = ids.index(annotation["category_id"])
        seen[annotation["image_id"]].add(k)
        code = annotation["segmentation"]
        flat, value = [], 0
        for run in code["counts"]:
            flat += [value] * run
            value = 1 - value
        decoded = np.array(flat).reshape(code["size"][::-1]).T
        assert np.array_equal(decoded, mask == k + 1)
        left, top, width, height = annotation["bbox"]
        inside = decoded[top : top + height, left : left + width]
        assert annotation["area"] == decoded.sum() == inside.sum()
        for edge in (
            decoded[top],
            decoded[top + height - 1],
            decoded[:, left],
            decoded[:, left + width - 1],
        ):
            assert edge.any()
    for number in numbers:
        present = set(scenes[number - 1]["labels"].nonzero().flatten().tolist())
        assert seen[number] == present


def test_runs_may_start_with_the_object():
    from wsss_blocks.data.coco_layout import _describe

    found = _describe(np.array([[True, False], [True, True]]))
    assert found["segmentation"] == {"size": [2, 2], "counts": [0, 2, 1, 1]}
    assert found["bbox"] == [0, 0, 2, 2]
    assert found["area"] == 3


def test_official_category_ids_of_the_first_ten(layout):
    content = json.loads((layout / "annotations" / "instances_val2014.json").read_text())
    ids = {category["name"]: category["id"] for category in content["categories"]}
    known = {"person": 1, "fire hydrant": 11, "stop sign": 13, "backpack": 27, "toothbrush": 90}
    assert {name: ids[name] for name in known} == known


def test_other_names(tmp_path):
    write_coco_layout(tmp_path, train=2, val=1, names=DIGIT_NAMES)
    assert COCO(tmp_path, "train", names=DIGIT_NAMES)[0]["labels"].shape == (10,)
    with pytest.raises(
        ValueError,
        match=r"labels \(from .*instances_train2014.json\) must have the classes \(person.*80 names"
        r"\), got \(zero, one, two, ...; 10 names\)",
    ):
        COCO(tmp_path, "train")
    for names in (DIGIT_NAMES[:9], ("a",) * 12, [str(i) for i in range(81)]):
        with pytest.raises(ValueError, match="names must be 10 to 80 unique class names, got"):
            write_coco_layout(tmp_path, train=1, val=1, names=names)


# --- layouts ----------------------------------------------------------------------------------


def test_images_in_a_folder_of_their_own_and_splits_by_year(copy):
    (copy / "images").mkdir()
    (copy / "train2014").rename(copy / "images" / "train2014")
    assert COCO(copy).ids == COCO(copy, "train").ids == TRAIN
    (copy / "images" / "train2014").rename(copy / "train2017")
    for name in TRAIN:
        (copy / "train2017" / f"{name}.jpg").rename(copy / "train2017" / f"{name[-12:]}.jpg")
    (copy / "annotations" / "instances_train2014.json").rename(
        copy / "annotations" / "instances_train2017.json"
    )
    (copy / "SegmentationClass").rename(copy / "masks")
    (copy / "masks" / "train2014").rename(copy / "masks" / "train2017")
    data = COCO(copy, "train")
    assert data.split == "train2017"
    assert data.ids == [name[-12:] for name in TRAIN]  # the rows are COCO_train2014_...
    assert data[0]["labels"].any()
    assert COCO(copy, "val").split == "val2014"
    (copy / "images" / "train2014").mkdir()
    (copy / "train").mkdir()
    with pytest.raises(FileNotFoundError, match="instances_train2014"):  # 2014 comes first
        COCO(copy, "train")


def test_masks_are_found_in_three_places_and_by_number(copy, tmp_path):
    expected = COCO(copy, "val", with_masks=True)[1]["mask"]
    folder = copy / "SegmentationClass" / "val2014"
    for name in VAL:
        (folder / f"{name}.png").rename(folder / f"{name[-12:]}.png")
    assert torch.equal(COCO(copy, "val", with_masks=True)[1]["mask"], expected)
    (copy / "SegmentationClass").rename(copy / "masks")
    assert torch.equal(COCO(copy, "val", with_masks=True)[1]["mask"], expected)
    (copy / "masks").rename(tmp_path / "elsewhere")
    for masks in (tmp_path / "elsewhere", tmp_path / "elsewhere" / "val2014"):
        data = COCO(copy, "val", with_masks=True, masks_dir=masks)
        assert torch.equal(data[1]["mask"], expected)
    with pytest.raises(
        FileNotFoundError, match=r"no COCO masks in any of: .*Class/val2014, .*mask"
    ):
        COCO(copy, "val", with_masks=True)
    (tmp_path / "elsewhere" / "val2014" / f"{VAL[1][-12:]}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no image at .*000000500002.png"):
        COCO(copy, "val", with_masks=True, masks_dir=tmp_path / "elsewhere")[1]


def test_paths_of_masks(copy):
    data = COCO(copy, "val", with_masks=True)
    folder = copy / "SegmentationClass" / "val2014"
    assert [data.mask_path(i) for i in range(2)] == [folder / f"{name}.png" for name in VAL]
    assert data.mask_ids is None
    (folder / f"{VAL[0]}.png").rename(folder / f"{VAL[0][-12:]}.png")
    assert data.mask_path(0) == folder / f"{VAL[0][-12:]}.png"
    with pytest.raises(ValueError, match=r"must be opened with masks"):
        COCO(copy, "val").mask_path(0)


def test_no_mask_is_read_unless_asked(copy, monkeypatch):
    import shutil

    shutil.rmtree(copy / "SegmentationClass")
    opened = []
    real = PIL.Image.open
    monkeypatch.setattr(PIL.Image, "open", lambda p, *a: opened.append(str(p)) or real(p, *a))
    transform = training_transform(32)
    samples = [transform(s, torch.Generator().manual_seed(0)) for s in COCO(copy)]
    assert "mask" not in collate(samples)
    assert [name for name in opened if not name.endswith(".jpg")] == []
    assert len(opened) == 4


def test_missing_layout_names_what_was_tried(copy, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        COCO(tmp_path / "empty", "train")
    for tried in ("empty/train2014,", "empty/images/train2017,", "empty/images/train."):
        assert tried in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"no COCO images in any of: .*copy/test2015"):
        COCO(copy, "test2015")
    (copy / "annotations" / "instances_val2014.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no annotation file at .*instances_val2014.json"):
        COCO(copy, "val")
    (copy / "annotations" / "instances_train2014.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"instances_train2014.json is not a COCO instances file"):
        COCO(copy)


# --- labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spell", ["{}", "{:012d}", "COCO_train2014_{:012d}.jpg", "COCO_train2014_{:012d}"]
)
@pytest.mark.parametrize("kind", ["npy", "txt", "json", "csv", "object"])
def test_given_labels_choose_the_images(layout, tmp_path, kind, spell):
    rows = {spell.format(3): ["toothbrush"], spell.format(1): ["person", "car"]}
    labels, path = WeakLabels(COCO_NAMES, rows), tmp_path / f"labels.{kind}"
    if kind == "npy":
        np.save(path, {name: labels[name].numpy() for name in rows}, allow_pickle=True)
    elif kind == "txt":
        path.write_text(f"{spell.format(3)} 79\n{spell.format(1)} 0 2\n")
    elif kind == "object":
        path = labels
    else:
        labels.save(path)
    data = COCO(layout, "train", labels=path)
    assert data.ids == [TRAIN[2], TRAIN[0]]
    assert [data.labels.classes(i) for i in data.ids] == [["toothbrush"], ["person", "car"]]
    assert data[1]["labels"].nonzero().flatten().tolist() == [0, 2]


def test_labels_of_other_classes(layout, tmp_path):
    path = tmp_path / "cls_labels.npy"
    np.save(path, {"1": np.zeros(20)}, allow_pickle=True)
    with pytest.raises(ValueError, match=r"cls_labels.npy has 20 label columns, but names has 80"):
        COCO(layout, labels=path)
    WeakLabels(DIGIT_NAMES, {"1": []}).save(tmp_path / "l.csv")
    with pytest.raises(ValueError, match=r"l.csv must have the 80 classes of names, got 10"):
        COCO(layout, labels=tmp_path / "l.csv")
    with pytest.raises(ValueError, match=r"labels must have the classes \(person, .*got \(zero"):
        COCO(layout, labels=WeakLabels(DIGIT_NAMES, {"1": []}))


def test_images_and_rows_that_do_not_meet(copy):
    path = copy / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    content["images"][0] = {"id": 1, "file_name": "COCO_train2014_000000000077.jpg"}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"1 of 5 ids have no row in labels: '\w+0001'.*train2014"):
        COCO(copy)
    data = COCO(copy, strict=False)
    assert data.ids == TRAIN[1:]
    assert data.skipped[TRAIN[0]].startswith("without labels: no row for ")
    assert data.skipped[TRAIN[0]].endswith("train2014/COCO_train2014_000000000001.jpg")
    lost = "COCO_train2014_000000000077"
    assert data.skipped[lost] == f"without an image: no file for {lost!r} in {copy / 'train2014'}"
    (copy / "train2014" / f"{TRAIN[0]}.jpg").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 of 4 ids have no image in .*train2014: '\w+77'"
    ):
        COCO(copy)
    labels = WeakLabels(COCO_NAMES, {"9999": []})
    with pytest.raises(ValueError, match=r"no image in .* can be used: 4 skipped: 1 without an im"):
        COCO(copy, labels=labels, strict=False)


def test_two_names_for_one_image(copy):
    labels = WeakLabels(COCO_NAMES, {"2": [], TRAIN[1]: ["car"]})
    with pytest.raises(
        ValueError, match=r"one row for .*0002.jpg, got '2' and 'COCO_train2014_0+2'"
    ):
        COCO(copy, labels=labels)
    (copy / "train2014" / "000000000002.jpg").touch()
    with pytest.raises(ValueError, match=r"two images with id 'COCO_.*2': .*2.jpg, .*2.jpg"):
        COCO(copy)


def test_by_name(layout):
    train = open_dataset("coco", "train", root=layout)
    assert train.ids == TRAIN
    assert train.names == COCO_NAMES
    assert "mask" in open_dataset("coco", "val", root=layout, with_masks=True)[0]
    labels = layout / "few.csv"
    WeakLabels(COCO_NAMES, {"4": ["car"]}).save(labels)
    try:
        assert open_dataset("coco", "train", root=layout, labels=labels).ids == TRAIN[3:]
    finally:
        labels.unlink()


# --- real data --------------------------------------------------------------------------------


@pytest.mark.real_data
def test_the_small_real_set(shared_data):
    root = shared_data / "coco_small"
    train = COCO(root, "train", with_masks=True)
    assert len(train) == 294
    assert train.path(0).is_file()
    for index in range(0, 294, 60):
        sample = train[index]
        ids = set(sample["mask"].unique().tolist()) - {0, 255}
        assert ids <= {k + 1 for k in sample["labels"].nonzero().flatten().tolist()}
        assert sample["image"].shape[-2:] == sample["mask"].shape
    with pytest.raises(ValueError, match=r"50 of 142 ids have no row in labels"):
        COCO(root, "val")
    val = COCO(root, "val", with_masks=True, strict=False)
    assert (len(val), len(val.skipped)) == (92, 50)
    assert "mask" in val[91]
    listed = COCO(root, "train", labels=shared_data / "labels/coco14/train.txt", strict=False)
    assert 150 < len(listed) <= 294  # train2017 holds images of both splits of 2014
    same = [i for i in listed.ids if listed.labels.classes(i) == train.labels.classes(i)]
    assert len(same) > 0.9 * len(listed)
