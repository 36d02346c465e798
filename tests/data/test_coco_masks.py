import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import coco_masks as oracle
from PIL import Image
from pycocotools import mask as coder

from wsss_blocks.data import (
    COCO_NAMES,
    CocoMasks,
    WeakLabels,
    build_coco_masks,
    read_mask,
    write_coco_layout,
)
from wsss_blocks.data.coco_masks import RULE

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 90, "name": "cow"}]


def annotation(number, category, outline, *, image=1, crowd=0):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "iscrowd": crowd,
        "segmentation": outline,
    }


def box(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def write(path, annotations, *, images=None, categories=CATEGORIES, size=(8, 10)):
    height, width = size
    images = images or [{"id": 1, "file_name": "a b.jpg", "height": height, "width": width}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path


def painted(tmp_path, annotations, **options):
    build_coco_masks(write(tmp_path / "i.json", annotations), tmp_path / "out", **options)
    return read_mask(tmp_path / "out" / "a b.png").numpy()


def test_the_smaller_region_is_seen(tmp_path):
    cat, dog = annotation(1, 3, box(1, 1, 4, 4)), annotation(2, 7, box(0, 0, 8, 6))
    expected = np.zeros((8, 10), int)
    expected[:6, :8] = 2  # dog is the second category by id
    expected[1:4, 1:4] = 1
    assert np.array_equal(painted(tmp_path, [cat, dog]), expected)
    assert np.array_equal(painted(tmp_path, [dog, cat]), expected)


def test_of_equals_the_later_id_is_seen(tmp_path):
    both = [annotation(5, 3, box(0, 0, 4, 4)), annotation(4, 7, box(0, 0, 4, 4))]
    assert np.unique(painted(tmp_path, both)).tolist() == [0, 1]
    assert np.unique(painted(tmp_path, both[::-1])).tolist() == [0, 1]


def test_crowds_take_their_turn(tmp_path):
    crowd = np.zeros((8, 10), np.uint8, order="F")
    crowd[:4] = 1
    code = coder.encode(crowd)
    code["counts"] = code["counts"].decode()
    small, large = annotation(1, 3, box(0, 0, 2, 2)), annotation(2, 7, box(0, 0, 10, 8))
    ids = painted(tmp_path, [annotation(3, 90, code, crowd=1), small, large])
    expected = np.full((8, 10), 2)
    expected[:4] = 255
    expected[:2, :2] = 1
    assert np.array_equal(ids, expected)


@st.composite
def drawings(draw):
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    regions = []
    for number in draw(st.permutations(range(1, draw(st.integers(0, 5)) + 1))):
        flat = draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
        counts, value = [0], False
        for pixel in flat:
            if pixel != value:
                counts.append(0)
                value = pixel
            counts[-1] += 1
        category = draw(st.sampled_from([3, 7, 90]))
        regions.append((number, category, draw(st.integers(0, 1)), counts))
    return height, width, regions


@given(drawings())
def test_against_the_oracle(tmp_path_factory, drawing):
    height, width, regions = drawing
    folder = tmp_path_factory.mktemp("coco")
    listed = [
        annotation(number, category, {"size": [height, width], "counts": counts}, crowd=crowd)
        for number, category, crowd, counts in regions
    ]
    source = write(folder / "i.json", listed, size=(height, width))
    found = build_coco_masks(source, folder / "out", workers=1)
    expected = oracle.mask(regions, [3, 7, 90], height, width)
    assert read_mask(folder / "out" / "a b.png").tolist() == expected
    values = {value for row in expected for value in row}
    assert list(found.counts.values()) == [k in values for k in (1, 2, 3)]
    assert found.empty == ([] if values & {1, 2, 3} else ["a b"])


@pytest.fixture
def several(tmp_path):
    images = [
        {"id": 9, "file_name": "x/COCO_train2014_000000000009.jpg", "height": 5, "width": 6},
        {"id": 2, "file_name": "COCO_train2014_000000000002.jpg", "height": 4, "width": 3},
        {"id": 4, "file_name": "Café.png", "height": 1, "width": 1},
    ]
    listed = [
        annotation(1, 3, box(0, 0, 2, 2), image=9),
        annotation(2, 90, box(0, 0, 3, 4), image=2, crowd=1),
        annotation(3, 7, [], image=9),
        annotation(4, 7, [[0, 0, 4, 4]], image=9),
    ]
    return write(tmp_path / "instances.json", listed, images=images)


def test_files_and_report(several, tmp_path):
    out = tmp_path / "masks é" / "train2014"
    found = build_coco_masks(several, out)
    assert isinstance(found, CocoMasks)
    nine, two = "COCO_train2014_000000000009", "COCO_train2014_000000000002"
    assert found.ids == [two, nine, "Café"]
    assert found.written == 3
    assert found.counts == {"cat": 1, "dog": 0, "cow": 0}
    assert found.empty == [two, "Café"]
    assert found.without_outline == [3, 4]
    assert sorted(os.listdir(out)) == sorted([*(f"{i}.png" for i in found.ids), "masks.json"])
    with Image.open(out / f"{nine}.png") as image:
        assert (image.mode, image.size) == ("P", (6, 5))
        assert image.getpalette()[3:6] == [128, 0, 0]
    assert read_mask(out / f"{two}.png").unique().tolist() == [255]
    assert read_mask(out / "Café.png").tolist() == [[0]]
    report = json.loads((out / "masks.json").read_text(encoding="utf-8"))
    assert report["rule"] == RULE
    assert report["source"] == "instances.json"
    assert len(report["source_sha256"]) == 64
    assert report["images_per_class"] == found.counts
    assert (report["masks"], report["masks_without_class"]) == (3, 2)
    assert report["hash"] == found.hash
    again = build_coco_masks(several, out, workers=1)
    assert again == found._replace(written=0)
    (out / f"{nine}.png").write_bytes(b"")
    with pytest.raises(FileExistsError, match=rf"{nine}.png exists and is another mask"):
        build_coco_masks(several, out)
    assert build_coco_masks(several, out, overwrite=True) == found._replace(written=1)


def test_the_hash_does_not_depend_on_the_order_of_the_file(several, tmp_path):
    content = json.loads(several.read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps({k: v[::-1] for k, v in content.items()}))
    first = build_coco_masks(several, tmp_path / "1")
    assert build_coco_masks(other, tmp_path / "2").hash == first.hash
    content["annotations"][0]["category_id"] = 90
    other.write_text(json.dumps(content))
    assert build_coco_masks(other, tmp_path / "3").hash != first.hash


def test_masks_of_the_generated_layout(tmp_path):
    root = write_coco_layout(tmp_path, train=4, val=2)
    for split in ("train2014", "val2014"):
        source = root / "annotations" / f"instances_{split}.json"
        found = build_coco_masks(source, tmp_path / split / "masks")
        for name in found.ids:
            own = read_mask(root / "SegmentationClass" / split / f"{name}.png")
            assert read_mask(tmp_path / split / "masks" / f"{name}.png").equal(own)
        labels = WeakLabels.from_coco_json(source)
        assert list(labels.names) == list(COCO_NAMES)
        assert found.counts == labels.counts()


RLE = {"size": [8, 10], "counts": [0, 80]}


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        ({"size": [8, 10], "counts": [3]}, "run lengths of 3 pixels"),
        ({"size": [8, 10], "counts": [0, 81]}, "run lengths of 81 pixels"),
        ({"size": [10, 8], "counts": [0, 80]}, None),  # 80 pixels, but of another shape
        ({"size": [2, 2], "counts": "04"}, r"size \[2, 2\], but the image has \[8, 10\]"),
        ({"size": [8, 10], "counts": "zzzzzzzzzzzzzzzz"}, "Invalid RLE"),
        ({"counts": "04"}, "'size'"),
        ("a string", "indices"),
    ],
)
def test_broken_outlines(tmp_path, outline, message):
    if message is None:
        message = r"size \[10, 8\], but the image has \[8, 10\]"
    annotations = [annotation(1, 3, RLE), annotation(42, 3, outline)]
    text = rf"i.json: the outline of annotation 42 cannot be read: .*{message}"
    with pytest.raises(ValueError, match=text):
        painted(tmp_path, annotations)
    assert not (tmp_path / "out" / "masks.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [annotation(5, 3, RLE, image=8)]}, "annotation 5 names image 8 and"),
        ({"annotations": [annotation(5, 4, RLE)]}, "category 4, of which one is not listed"),
        ({"categories": [*CATEGORIES, {"id": 3, "name": "cat2"}]}, "must have different ids"),
        ({"categories": [*CATEGORIES, {"id": 4, "name": "cat"}]}, "names must be unique"),
        ({"categories": [{"id": k, "name": str(k)} for k in range(255)]}, "at most 254, got 255"),
        ({"categories": []}, "at least one"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}]}, "KeyError.'height'"),
        ({"images": [{"id": k, "file_name": "a", "height": 1, "width": 1} for k in "ab"]}, "'a'"),
        ({"annotations": [{"id": 1}]}, "KeyError"),
        ({"annotations": None}, "TypeError"),
    ],
)
def test_other_json_files(tmp_path, change, message):
    path = write(tmp_path / "i.json", [])
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=rf"i.json is not a COCO instances file: .*{message}"):
        build_coco_masks(path, tmp_path / "out")


def test_other_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no annotation file at .*gone.json"):
        build_coco_masks(tmp_path / "gone.json", tmp_path / "out")
    path = write(tmp_path / "boxes.json", [annotation(1, 3, None), annotation(2, 3, [])])
    with pytest.raises(ValueError, match=r"boxes.json must hold outlines .* got boxes alone"):
        build_coco_masks(path, tmp_path / "out")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"boxes.json is not a COCO instances file"):
        build_coco_masks(path, tmp_path / "out")
    with pytest.raises(ValueError, match="workers must be at least 1"):
        build_coco_masks(write(path, []), tmp_path / "out", workers=0)


@pytest.mark.real_data
@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_that_somebody_else_made(shared_data, tmp_path, split):
    root = shared_data / "coco_small"
    found = build_coco_masks(root / "annotations" / f"instances_{split}.json", tmp_path)
    assert len(found.ids) == {"train": 294, "val": 92}[split]
    theirs = [read_mask(root / "masks" / split / f"{name}.png") for name in found.ids]
    ours = [read_mask(tmp_path / f"{name}.png") for name in found.ids]
    assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))  # not one pixel differs
