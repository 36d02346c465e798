from importlib import resources

import pytest
import torch

from wsss_blocks.data import (
    CLASS_TABLES,
    COCO_NAMES,
    VOC_NAMES,
    check_split_size,
    class_table,
    voc_palette,
)

CLASSES = {
    "voc": 20,
    "coco": 80,
    "coco-object": 80,
    "context": 59,
    "ade20k": 150,
    "coco-stuff": 171,
}


def test_every_data_set_has_a_table():
    assert set(CLASSES) == set(CLASS_TABLES)
    files = resources.files("wsss_blocks.data") / "tables"
    assert {f.name for f in files.iterdir()} == {f"{n.replace('-', '_')}.json" for n in CLASSES}


@pytest.mark.parametrize("name", CLASSES)
def test_counts_and_uniqueness(name):
    table = class_table(name)
    classes = CLASSES[name]
    assert len(table.names) == len(set(table.names)) == classes
    assert len(table.raw_ids) == len(set(table.raw_ids)) == classes
    assert list(table.raw_ids) == sorted(table.raw_ids)
    assert all(text == text.strip().lower() and text.isprintable() for text in table.names)
    assert 0 <= min(table.raw_ids) <= max(table.raw_ids) <= 254
    assert table.palette.shape == (classes + 1, 3)
    assert table.palette.dtype == torch.uint8
    assert table.palette[0].tolist() == [0, 0, 0]
    assert table.background == (name not in ("ade20k", "coco-stuff"))
    assert len(table.source) > 20
    assert len(table.notes) > 20
    assert all(sizes and min(sizes) > 0 for sizes in table.sizes.values())


def test_ids_and_their_gaps():
    for name in ("voc", "context", "ade20k"):
        assert class_table(name).raw_ids == tuple(range(1, CLASSES[name] + 1))
    things = class_table("coco").raw_ids
    gaps = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}  # specification of SimSeg, 1.7
    pixels = tuple(i for i in range(91) if i not in gaps)
    assert things == tuple(i + 1 for i in pixels)
    assert class_table("coco-object").raw_ids == pixels
    assert class_table("coco-stuff").raw_ids == (*pixels, *range(91, 182))


def test_names():
    assert class_table("voc").names is VOC_NAMES
    assert class_table("coco").names is COCO_NAMES
    assert class_table("coco-object").names == COCO_NAMES
    assert class_table("coco-stuff").names[:80] == COCO_NAMES
    known = {
        "voc": {0: "aeroplane", 14: "person", 19: "tvmonitor"},
        "coco": {0: "person", 11: "stop sign", 12: "parking meter", 79: "toothbrush"},
        "context": {0: "aeroplane", 10: "table", 20: "bag", 51: "bedclothes", 58: "wood"},
        "ade20k": {0: "wall", 1: "building", 2: "sky", 7: "bed", 12: "person", 149: "flag"},
        "coco-stuff": {80: "banner", 137: "road", 157: "tree", 170: "wood"},
    }
    for name, expected in known.items():
        names = class_table(name).names
        assert {k: names[k] for k in expected} == expected
    # Pixel values of the maps: labels.txt of the data set minus 1.
    stuff = class_table("coco-stuff")
    of_pixel = dict(zip(stuff.raw_ids, stuff.names, strict=True))
    for pixel, name in {0: "person", 89: "toothbrush", 91: "banner", 148: "road"}.items():
        assert of_pixel[pixel] == name


def test_colours():
    for name in ("voc", "context", "coco", "coco-object"):
        assert torch.equal(class_table(name).palette, voc_palette(CLASSES[name] + 1))
    assert class_table("ade20k").palette[[1, 3, 150]].tolist() == [
        [120, 120, 120],
        [6, 230, 230],
        [92, 0, 255],
    ]
    assert class_table("coco-stuff").palette[[1, 171]].tolist() == [[0, 192, 64], [64, 64, 0]]


def test_a_table_cannot_be_spoilt():
    class_table("voc").palette.zero_()
    assert class_table("voc").palette[1].tolist() == [128, 0, 0]
    with pytest.raises(TypeError):
        class_table("voc").sizes["train"] = (1,)


@pytest.mark.parametrize(
    ("table", "split", "counts"),
    [
        ("voc", "train", [1464]),
        ("voc", "val", [1449]),
        ("voc", "test", [1456]),
        ("voc", "train_aug", [10582]),
        ("coco", "train2014", [82081, 82783]),
        ("coco", "val2014", [40137, 40504]),
        ("coco", "train2017", [118287, 117266]),
        ("coco", "val2017", [5000, 4952]),
        ("context", "train", [4998, 4996]),
        ("context", "val", [5105, 5104]),
        ("ade20k", "training", [20210]),
        ("ade20k", "validation", [2000]),
        ("coco-stuff", "val2017", [5000]),
        ("coco-object", "train2017", [118287]),
    ],
)
def test_sizes_of_splits(table, split, counts):
    assert class_table(table).sizes[split] == tuple(counts)
    for count in counts:
        check_split_size(table, split, count)
        for other in (count - 3, 0):
            with pytest.raises(ValueError, match=rf"split '{split}' of '{table}' must have .*got"):
                check_split_size(table, split, other)


def test_errors():
    check_split_size("voc", "my_list", 3)
    with pytest.raises(
        ValueError,
        match=r"^split 'train2014' of 'coco' must have 82,081 or 82,783 images, got 294: a sub",
    ):
        check_split_size("coco", "train2014", 294)
    with pytest.raises(ValueError, match=r"name must be one of .*voc.*, got 'pascal'"):
        class_table("pascal")
    with pytest.raises(ValueError, match=r"table must be one of"):
        check_split_size("pascal", "train", 3)
    with pytest.raises(ValueError, match=r"count must be .* 0, got -1"):
        check_split_size("voc", "my_list", -1)
    with pytest.raises(TypeError, match=r"count must be an int"):
        check_split_size("voc", "train", 1464.0)
