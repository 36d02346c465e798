"""PascalContext, ADE20K, COCOStuff and COCOObject on small folders of their layouts."""

import builtins
import io
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from wsss_blocks.data import (
    ADE20K,
    COCO_NAMES,
    COCOObject,
    COCOStuff,
    PascalContext,
    WeakLabels,
    class_table,
    collate,
    open_dataset,
    usable_images,
)

# kind: class, folders of images and masks below root, raw ids, what they are read as
SETS = {
    "context": (
        PascalContext,
        "VOC2010/JPEGImages",
        "VOC2010/SegmentationClassContext",
        [[0, 1, 59], [15, 255, 2]],
        [[0, 1, 59], [15, 255, 2]],
    ),
    "ade20k": (
        ADE20K,
        "ADEChallengeData2016/images/validation",
        "ADEChallengeData2016/annotations/validation",
        [[0, 1, 150], [2, 3, 0]],
        [[255, 1, 150], [2, 3, 255]],
    ),
    "coco-stuff": (
        COCOStuff,
        "val2017",
        "stuffthingmaps/val2017",
        [[0, 10, 12], [89, 91, 181], [255, 255, 11]],  # 11 is one of the gaps
        [[1, 11, 12], [80, 81, 171], [255, 255, 255]],
    ),
    "coco-object": (
        COCOObject,
        "val2017",
        "stuffthingmaps/val2017",
        [[0, 10, 12], [89, 91, 181], [255, 255, 11]],
        [[1, 11, 12], [80, 0, 0], [0, 0, 0]],
    ),
}
IDS = ["000000000139", "000000000285", "000000000632"]
KINDS = pytest.mark.parametrize("kind", SETS)


@pytest.fixture
def root(kind, tmp_path):
    _, images, masks, raw, _ = SETS[kind]
    raw = np.array(raw, np.uint8)
    root = tmp_path / "my data"
    for folder in (images, masks):
        (root / folder).mkdir(parents=True)
    for shade, name in enumerate(IDS):
        picture = np.full((*raw.shape, 3), 40 * shade, np.uint8)
        PIL.Image.fromarray(picture).save(root / images / f"{name}.jpg")
        PIL.Image.fromarray(raw).save(root / masks / f"{name}.png")
    if kind == "context":
        lists = root / "VOC2010" / "ImageSets" / "SegmentationContext"
        lists.mkdir(parents=True)
        (lists / "val.txt").write_text("\n".join(IDS))
    return root


@KINDS
def test_images_and_masks(kind, root):
    cls, images, masks, _, expected = SETS[kind]
    data = cls(root, "val", with_masks=True)
    assert data.ids == IDS
    assert len(data) == 3
    assert data.names == class_table(kind).names
    assert data.labels is None
    assert data.skipped == {}
    assert data.path(1) == root / images / f"{IDS[1]}.jpg"
    assert data.mask_path(1) == root / masks / f"{IDS[1]}.png"
    for name, sample in zip(IDS, (data[i] for i in range(3)), strict=True):
        assert sample["id"] == name
        assert "labels" not in sample
        assert sample["mask"].dtype == torch.int64
        assert sample["mask"].tolist() == expected
        assert sample["image"].shape[-2:] == sample["mask"].shape
    batch = collate([data[0], data[1]])
    assert batch["mask"].shape[0] == 2
    table = class_table(kind)
    if not table.background:
        assert 0 not in data[0]["mask"]
    if kind == "context":
        assert data.mask_ids is None
    else:
        assert data.mask_ids.shape == (256,)
        assert data.mask_ids.dtype == torch.uint8
        assert data.mask_ids[list(table.raw_ids)].tolist() == list(range(1, len(table.names) + 1))
        others = [i for i in range(256) if i not in table.raw_ids]
        assert data.mask_ids[others].unique().tolist() == [0 if kind == "coco-object" else 255]


@KINDS
def test_no_mask_is_touched_unless_asked(kind, root, monkeypatch):
    cls, _, masks, _, _ = SETS[kind]
    seen = []

    def guarded(function):
        def wrapper(file, *args, **kwargs):
            seen.append(str(file))
            if str(file).endswith(".png"):
                raise AssertionError(f"read the mask {file}")
            return function(file, *args, **kwargs)

        return wrapper

    monkeypatch.setattr(PIL.Image, "open", guarded(PIL.Image.open))
    monkeypatch.setattr(io, "open", guarded(io.open))
    monkeypatch.setattr(builtins, "open", guarded(builtins.open))
    monkeypatch.setattr(Path, "open", guarded(Path.open))
    with pytest.raises(AssertionError, match="read the mask"):  # the guard works
        cls(root, "val", with_masks=True)[0]
    shutil.rmtree(root / masks)
    seen.clear()
    data = cls(root, "val")
    assert all("mask" not in data[i] for i in range(3))
    with pytest.raises(ValueError, match=r"must be opened with masks"):
        data.mask_path(0)
    assert usable_images(data).ids == IDS
    assert any(name.endswith(".jpg") for name in seen)
    assert not any(name.endswith(".png") for name in seen)


@KINDS
def test_labels(kind, root, tmp_path):
    cls = SETS[kind][0]
    names = class_table(kind).names
    rows = {name: [names[0], names[-1]] for name in IDS}
    given = WeakLabels(names, rows)
    given.save(tmp_path / "labels.json")
    for labels in (given, tmp_path / "labels.json", str(tmp_path / "labels.json")):
        data = cls(root, "val", labels=labels)
        assert data[0]["labels"].nonzero().flatten().tolist() == [0, len(names) - 1]
    with pytest.raises(ValueError, match=r"labels must have the classes \(.*got \(cat; 1 names\)"):
        cls(root, "val", labels=WeakLabels(("cat",), {name: [] for name in IDS}))
    few = WeakLabels(names, {IDS[0]: [], "lost": []})
    error, words = FileNotFoundError, r"1 of 2 ids have no image in .*: 'lost'"
    if kind == "context":
        error, words = ValueError, r"2 of 3 ids have no row in labels"
    with pytest.raises(error, match=words):
        cls(root, "val", labels=few)
    data = cls(root, "val", labels=few, strict=False)
    assert data.ids == IDS[:1]
    kinds = {name: why.split(":")[0] for name, why in data.skipped.items()}
    expected = dict.fromkeys(IDS[1:], "without labels")
    assert kinds == (expected if kind == "context" else {**expected, "lost": "without an image"})


@KINDS
def test_by_name(kind, root, tmp_path):
    data = open_dataset(kind, "val", root=root, with_masks=True)
    assert type(data) is SETS[kind][0]
    assert data[0]["mask"].tolist() == SETS[kind][4]
    view = usable_images(data)
    assert view.mask_path(2) == data.mask_path(2)
    if data.mask_ids is None:
        assert view.mask_ids is None
    else:
        assert torch.equal(view.mask_ids, data.mask_ids)
    names = class_table(kind).names
    WeakLabels(names, dict.fromkeys(IDS, names[:2])).save(tmp_path / "labels.csv")
    labelled = open_dataset(kind, "val", root=root, labels=tmp_path / "labels.csv")
    assert labelled[1]["labels"].sum() == 2
    assert "mask" not in labelled[1]
    with pytest.raises(ValueError, match=f"root must be given for '{kind}' data"):
        open_dataset(kind, "val")


@KINDS
def test_what_is_missing_is_named(kind, root, tmp_path):
    cls, images, masks, _, _ = SETS[kind]
    with pytest.raises(FileNotFoundError, match=r"nowhere"):
        cls(tmp_path / "nowhere", "val")
    with pytest.raises(FileNotFoundError, match=r"train"):
        cls(root, "train")
    (root / masks / f"{IDS[1]}.png").unlink()
    with pytest.raises(FileNotFoundError, match=rf"no image at .*{IDS[1]}.png"):
        cls(root, "val", with_masks=True)[1]
    for name in IDS:
        (root / images / f"{name}.jpg").unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=r"no image"):
        cls(root, "val")


@KINDS
def test_a_mask_of_16_bits_with_large_ids(kind, root):
    cls, _, masks, raw, _ = SETS[kind]
    wide = np.array(raw, np.uint16)
    wide[0, 0] = 300
    PIL.Image.fromarray(wide).save(root / masks / f"{IDS[0]}.png")
    data = cls(root, "val", with_masks=True)
    if kind == "context":
        assert data[0]["mask"].max() == 300  # no lookup; evaluation refuses it
    else:
        with pytest.raises(ValueError, match=rf"{IDS[0]}.png must hold ids below 256, got 300"):
            data[0]


# --- what only one of them does ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["context"])
def test_roots_and_lists_of_context(kind, root):
    for below in ("", "VOC2010"):
        assert PascalContext(root / below, "val").root == root / "VOC2010"
    lists = root / "VOC2010" / "ImageSets" / "SegmentationContext"
    (lists / "mine.txt").write_text(f"{IDS[2]}\nlost\n{IDS[0]}\n")
    data = PascalContext(root, "mine", strict=False)
    assert data.ids == [IDS[2], IDS[0]]
    assert list(data.skipped) == ["lost"]
    with pytest.raises(FileNotFoundError, match=r"1 of 3 ids have no image in .*JPEG.*: 'lost'"):
        PascalContext(root, "mine")
    with pytest.raises(FileNotFoundError, match=r"no id list at .*SegmentationContext.other.txt"):
        PascalContext(root, "other")


@pytest.mark.parametrize("kind", ["ade20k"])
def test_splits_of_ade20k_by_both_names(kind, root):
    inner = root / "ADEChallengeData2016"
    for split in ("val", "validation"):
        for folder in (root, inner):
            assert ADE20K(folder, split).split == "validation"
    (inner / "images" / "validation").rename(inner / "images" / "training")
    assert ADE20K(root).ids == ADE20K(root, "train").ids == ADE20K(root, "training").ids == IDS


@pytest.mark.parametrize("kind", ["coco-stuff", "coco-object"])
def test_places_of_the_maps(kind, root):
    cls, *_, expected = SETS[kind]
    (root / "images").mkdir()
    (root / "val2017").rename(root / "images" / "val2017")
    for name in ("stuffthingmaps_trainval2017", "annotations", "elsewhere"):
        source = next(root.glob("*/val2017/*.png")).parents[1]
        source.rename(root / name)
        if name != "elsewhere":
            assert cls(root, "val2017", with_masks=True)[0]["mask"].tolist() == expected
    with pytest.raises(
        FileNotFoundError, match=r"no COCO stuff and thing maps in any of: .*stuffthingmaps/val2017"
    ):
        cls(root, "val2017", with_masks=True)


@pytest.mark.parametrize("kind", ["coco-object"])
def test_labels_of_the_things_serve_for_coco_object(kind, root):
    labels = WeakLabels(COCO_NAMES, {IDS[0]: ["cat"]})
    assert COCOObject(root, "val", labels=labels).labels.classes(IDS[0]) == ["cat"]
