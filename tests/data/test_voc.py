import builtins
import io
import os

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader

from wsss_blocks.data import (
    DIGIT_NAMES,
    VOC2012,
    VOC_NAMES,
    Augmented,
    Compose,
    RandomCrop,
    RandomScale,
    Scenes,
    StepSampler,
    WeakLabels,
    collate,
    voc_palette,
    write_voc_layout,
)


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc")
    write_voc_layout(root / "VOCdevkit", train=6, val=3, seed=2)
    return root


def read(layout, split="train", **options):
    return VOC2012(layout, split, names=DIGIT_NAMES, **options)


def test_layout_round_trip(layout):
    folder = layout / "VOCdevkit" / "VOC2012"
    for split, count in (("train", 6), ("val", 3)):
        data = read(layout, split, with_masks=True)
        scenes = Scenes(split, size=count, seed=2, with_masks=True)
        assert data.ids == scenes.ids
        assert len(data) == count
        for found, drawn in zip(data, scenes, strict=False):
            assert torch.equal(found["mask"], drawn["mask"])
            assert torch.equal(found["labels"], drawn["labels"])
            assert (found["image"] - drawn["image"]).abs().mean() < 0.02  # JPEG
    with PIL.Image.open(folder / "SegmentationClass" / "val_00000.png") as mask:
        assert mask.mode == "P"
        assert mask.getpalette() == voc_palette().flatten().tolist()
    assert not [name for _, _, files in os.walk(layout) for name in files if "tmp" in name]


def test_annotated_boxes_are_the_extents_of_the_masks(layout):
    from xml.etree import ElementTree

    data = read(layout, with_masks=True)
    for sample in data:
        path = data.root / "Annotations" / f"{sample['id']}.xml"
        for item in ElementTree.parse(path).getroot().findall("object"):
            k = DIGIT_NAMES.index(item.findtext("name")) + 1
            rows, columns = torch.nonzero(sample["mask"] == k).unbind(1)
            box = [int(item.findtext(f"bndbox/{n}")) for n in ("xmin", "ymin", "xmax", "ymax")]
            assert box == [
                columns.min() + 1,
                rows.min() + 1,
                columns.max() + 1,
                rows.max() + 1,
            ]


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_root_may_be_any_of_three_folders(layout, below):
    assert read(layout / below).root == layout / "VOCdevkit" / "VOC2012"


def test_split_may_be_a_list_of_ids_or_paths(layout, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text(
        "/JPEGImages/train_00002.jpg /SegmentationClassAug/train_00002.png\n\nval_00001\n"
    )
    for split in (ids, str(ids)):
        assert read(layout, split).ids == ["train_00002", "val_00001"]


def test_an_id_may_be_listed_twice(layout, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("train_00002\ntrain_00001\ntrain_00002\n")
    for strict in (True, False):
        data = read(layout, ids, strict=strict)
        assert data.ids == ["train_00002", "train_00001", "train_00002"]
        assert torch.equal(data[0]["labels"], data[2]["labels"])


def test_labels_may_be_given(layout, tmp_path):
    rows = {name: ["nine"] for name in Scenes(size=6).ids}
    labels = WeakLabels(DIGIT_NAMES, rows)
    labels.save(tmp_path / "labels.json")
    for source in (labels, tmp_path / "labels.json", str(tmp_path / "labels.json")):
        data = read(layout, labels=source)
        assert data[0]["labels"].tolist() == [0] * 9 + [1]
        assert data.names == DIGIT_NAMES
    with pytest.raises(ValueError, match=r"3 of 3 ids have no row in labels: 'val_00000'"):
        read(layout, "val", labels=labels)
    with pytest.raises(
        ValueError, match=r"labels must have the classes \(aeroplane, bicycle, bird"
    ):
        VOC2012(layout, labels=labels)


# --- no training path reads a mask ------------------------------------------------------------


def batches(layout):
    data = read(layout)
    train = Augmented(data, Compose(RandomScale(), RandomCrop(64)))
    sampler = StepSampler(len(data), batch_size=2, steps=6)
    return list(DataLoader(train, batch_sampler=sampler, collate_fn=collate))


def test_training_never_opens_a_mask(layout, monkeypatch):
    expected = batches(layout)
    seen = []

    def guarded(function):
        def wrapper(file, *args, **kwargs):
            seen.append(str(file))
            if "Segmentation" in str(file) and "ImageSets" not in str(file):
                raise AssertionError(f"training read the mask {file}")
            return function(file, *args, **kwargs)

        return wrapper

    monkeypatch.setattr(PIL.Image, "open", guarded(PIL.Image.open))
    monkeypatch.setattr(builtins, "open", guarded(builtins.open))
    monkeypatch.setattr(io, "open", guarded(io.open))
    for a, b in zip(batches(layout), expected, strict=True):
        assert "mask" not in a
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["labels"], b["labels"])
        assert a["id"] == b["id"]
    assert any("JPEGImages" in name for name in seen)
    with pytest.raises(AssertionError, match="training read the mask"):  # the guard works
        read(layout, with_masks=True)[0]


def test_training_works_without_any_mask_folder(layout):
    folder = layout / "VOCdevkit" / "VOC2012"
    expected = batches(layout)
    (folder / "SegmentationClass").rename(folder / "Gone")
    try:
        for a, b in zip(batches(layout), expected, strict=True):
            assert torch.equal(a["image"], b["image"])
            assert torch.equal(a["labels"], b["labels"])
        data = read(layout, with_masks=True)
        with pytest.raises(
            FileNotFoundError, match=r"no image at .*SegmentationClass.train_00000.png"
        ):
            data[0]
        aug = read(layout, with_masks=True, mask_folder="Gone")
        assert aug[0]["mask"].shape == (96, 96)
    finally:
        (folder / "Gone").rename(folder / "SegmentationClass")


# --- where the masks are ----------------------------------------------------------------------


def test_paths_of_masks(layout):
    data = read(layout, "val", with_masks=True)
    folder = layout / "VOCdevkit" / "VOC2012" / "SegmentationClass"
    assert [data.mask_path(i) for i in range(3)] == [folder / f"{n}.png" for n in data.ids]
    assert data.mask_ids is None
    with pytest.raises(ValueError, match=r"must be opened with masks"):
        read(layout, "val").mask_path(0)


def test_masks_of_the_augmented_list(tmp_path):
    voc = write_voc_layout(tmp_path, train=2, val=1)
    lists = voc / "ImageSets" / "Segmentation"
    for name in ("train_aug", "trainaug"):
        (lists / f"{name}.txt").write_text((lists / "train.txt").read_text())
    splits = ("train_aug", "trainaug", lists / "train_aug.txt", str(lists / "train_aug.txt"))
    for split in splits:  # nobody has prepared the augmented masks yet
        assert read(voc, split, with_masks=True).mask_path(0).parent.name == "SegmentationClass"
    (voc / "SegmentationClassAug").mkdir()
    name = read(voc).ids[0]
    PIL.Image.fromarray(np.full((96, 96), 3, np.uint8)).save(
        voc / "SegmentationClassAug" / f"{name}.png"
    )
    for split in splits:
        data = read(voc, split, with_masks=True)
        assert data.mask_path(0) == voc / "SegmentationClassAug" / f"{name}.png"
        assert data[0]["mask"].unique().tolist() == [3]
    for split in ("train", "val"):
        data = read(voc, split, with_masks=True)
        assert data.mask_path(0).parent.name == "SegmentationClass"
    data = read(voc, "train_aug", with_masks=True, mask_folder="SegmentationClass")
    assert data.mask_path(0).parent.name == "SegmentationClass"


# --- errors name the file ---------------------------------------------------------------------


def test_missing_files(layout, tmp_path):
    with pytest.raises(FileNotFoundError, match="no VOC 2012 layout"):
        VOC2012(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no id list at .*trainval.txt"):
        read(layout, "trainval")
    ids = tmp_path / "ids.txt"
    ids.write_text("\n")
    with pytest.raises(ValueError, match=r"ids.txt lists no ids"):
        read(layout, ids)
    ids.write_text("train_00000\nnobody\n")
    with pytest.raises(FileNotFoundError, match=r"no annotation at .*nobody.xml; pass labels"):
        read(layout, ids)
    labels = WeakLabels(DIGIT_NAMES, {"train_00000": [], "nobody": []})
    with pytest.raises(FileNotFoundError, match=r"no image at .*nobody.jpg"):
        read(layout, ids, labels=labels)[1]
    with pytest.raises(ValueError, match=r"train_00000.xml names .* not among the 20 names"):
        VOC2012(layout)


def test_lenient_opening(tmp_path):
    voc = write_voc_layout(tmp_path, train=5, val=1)
    (voc / "Annotations" / "train_00000.xml").unlink()
    (voc / "Annotations" / "train_00001.xml").write_text("<annotation>")
    (voc / "JPEGImages" / "train_00003.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"no annotation at .*train_00000.xml"):
        read(tmp_path)
    data = read(tmp_path, strict=False)
    assert data.ids == ["train_00002", "train_00004"]
    assert [data[i]["id"] for i in range(2)] == data.ids
    assert data.path(1) == voc / "JPEGImages" / "train_00004.jpg"
    xml, jpg = voc / "Annotations", voc / "JPEGImages"
    assert data.skipped == {
        "train_00000": f"without labels: no annotation at {xml / 'train_00000.xml'}; "
        "pass labels if there are other ones.",
        "train_00001": f"without labels: {xml / 'train_00001.xml'} is not XML: "
        "no element found: line 1, column 12",
        "train_00003": f"without an image: no file for 'train_00003' in {jpg}",
    }
    labels = WeakLabels(DIGIT_NAMES, {"train_00003": ["one"], "train_00004.jpg": ["two"]})
    given = read(tmp_path, labels=labels, strict=False)
    assert given.ids == ["train_00004"]
    assert given[0]["labels"].nonzero().item() == 2
    # Names that differ are a mistake of the caller, not of one file.
    with pytest.raises(ValueError, match=r"xml names .* not among the 20 names"):
        VOC2012(tmp_path, strict=False)
    labels = WeakLabels(DIGIT_NAMES, {"train_00003": ["one"]})
    with pytest.raises(ValueError, match=r"can be used: 5 skipped: 1 without an im.*, 4 without"):
        read(tmp_path, labels=labels, strict=False)


def test_scenes_under_other_names(tmp_path):
    names = tuple(f"R&D <{i}>" for i in range(12))
    write_voc_layout(tmp_path, train=4, val=1, names=names)
    data, drawn = VOC2012(tmp_path, names=names), Scenes(size=4)
    assert all(torch.equal(data[i]["labels"][:10], drawn[i]["labels"]) for i in range(4))
    for wrong in (DIGIT_NAMES[:9], ("a",) * 10):
        with pytest.raises(ValueError, match="names must be 10 to 254 unique class names, got"):
            write_voc_layout(tmp_path, train=1, val=1, names=wrong)


def test_mask_of_another_size(layout, tmp_path):
    write_voc_layout(tmp_path, train=1, val=1)
    mask = tmp_path / "VOC2012" / "SegmentationClass" / "train_00000.png"
    PIL.Image.fromarray(np.zeros((5, 7), np.uint8)).save(mask)
    with pytest.raises(
        ValueError, match=r"train_00000.png must have the size \(96, 96\) of .*jpg, got \(5, 7\)"
    ):
        read(tmp_path, with_masks=True)[0]


def test_palette_starts_as_voc_says():
    palette = voc_palette()
    assert palette.shape == (256, 3)
    assert palette[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert palette[20].tolist() == [0, 64, 128]
    assert len({tuple(row) for row in palette.tolist()}) == 256


@pytest.mark.real_data
def test_real_voc(shared_data):
    sizes = {"train": 311, "val": 161}
    for split, count in sizes.items():
        data = VOC2012(shared_data / "VOCdevkit", split, with_masks=True)
        assert len(data) == count
        assert data.names == VOC_NAMES
        for index in range(0, count, 40):
            sample = data[index]
            ids = set(sample["mask"].unique().tolist()) - {0, 255}
            assert ids == {i + 1 for i in sample["labels"].nonzero().flatten().tolist()}
            assert sample["image"].shape[-2:] == sample["mask"].shape
    folder = shared_data / "VOCdevkit" / "VOC2012" / "SegmentationClass"
    with PIL.Image.open(next(folder.iterdir())) as mask:
        assert mask.getpalette()[: 21 * 3] == voc_palette()[:21].flatten().tolist()
