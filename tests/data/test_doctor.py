import contextlib
import json
import random
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from doctor_trees import LAYOUTS, NAMES, Tree, write_photo
from PIL import Image

from wsss_blocks.data import (
    COCO_NAMES,
    DIGIT_NAMES,
    VOC2012,
    WeakLabels,
    examine,
    read_mask,
    write_coco_layout,
    write_mask,
    write_voc_layout,
)
from wsss_blocks.data._doctor.files import Item, check_files
from wsss_blocks.data._doctor.kinds import KINDS


@pytest.fixture(params=list(LAYOUTS))
def tree(request, tmp_path) -> Tree:
    return LAYOUTS[request.param](tmp_path / "Übung 1 (données)")


def edit_mask(path: Path, change) -> None:
    ids = read_mask(path).numpy()
    change(ids)
    write_mask(path, ids)


# --- clean data --------------------------------------------------------------------------------


def test_nothing_is_found_in_clean_data_of_each_layout(tree):
    assert tree.examine() == []
    found = examine(tree.root, **tree.options)
    assert found.images == 6
    assert found.names == NAMES
    assert found.describe().endswith("6 images read: nothing found.")
    sizes = [tuple(counts) for counts in found.splits.values()]
    assert sizes in ([(4, 4, 4), (6, 6, 6), (2, 2, 2)], [(4, 4, 4), (2, 2, 2)], [(6, 6, 6)])


def test_nothing_is_found_in_generated_voc_and_coco(tmp_path):
    voc = write_voc_layout(tmp_path / "a b", train=60, val=3)
    for root in (voc, tmp_path / "a b"):
        found = examine(root, names=DIGIT_NAMES)
        assert (found.layout, found.images, found.findings) == ("voc", 63, [])
    coco = write_coco_layout(tmp_path / "coco", train=60, val=3, names=DIGIT_NAMES)
    found = examine(coco)
    assert (found.layout, found.images, found.findings) == ("coco", 63, [])
    assert found.names == DIGIT_NAMES


# --- one file ----------------------------------------------------------------------------------


def empty(tree):
    tree.image["b"].write_bytes(b"")
    return [("empty-file", tree.image["b"])]


def empty_mask(tree):
    tree.mask["b"].write_bytes(b"")
    return [("empty-file", tree.mask["b"])]


def html(tree):
    tree.image["b"].write_text("<html>404 not found</html>")
    return [("unreadable", tree.image["b"])]


def html_mask(tree):
    tree.mask["f"].write_text("<html>404 not found</html>")
    return [("unreadable", tree.mask["f"])]


def cut(tree):
    raw = tree.image["e"].read_bytes()
    tree.image["e"].write_bytes(raw[: len(raw) - 20])
    return [("truncated", tree.image["e"])]


def cut_mask(tree):
    raw = tree.mask["a"].read_bytes()
    tree.mask["a"].write_bytes(raw[: len(raw) // 2])
    return [("truncated", tree.mask["a"])]


def mask_without_its_end(tree):
    tree.mask["a"].write_bytes(tree.mask["a"].read_bytes()[:-8])
    return [("truncated", tree.mask["a"])]


def cmyk(tree):
    Image.open(tree.image["d"]).convert("CMYK").save(tree.image["d"])
    return [("cmyk", tree.image["d"])]


def grey(tree):
    Image.open(tree.image["d"]).convert("L").save(tree.image["d"])
    return [("grey", tree.image["d"])]


def one_pixel(tree):
    write_photo(tree.image["a"], seed=9, size=(1, 5))
    write_mask(tree.mask["a"], np.array([[1], [0], [0], [0], [255]]))
    return [("one-pixel", tree.image["a"])]


def turned(tree, orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(tree.image["b"]).save(tree.image["b"], exif=exif)


def turned_with_a_mask_of_the_stored_size(tree):
    turned(tree)
    return [("size-mismatch", tree.mask["b"]), ("exif-rotated", tree.image["b"])]


def turned_with_a_mask_of_the_upright_size(tree):
    turned(tree, 8)
    write_mask(tree.mask["b"], read_mask(tree.mask["b"]).T)
    return [("exif-rotated", tree.image["b"])]


def upside_down(tree):
    turned(tree, 3)
    return [("exif-rotated", tree.image["b"])]


def another_size(tree):
    write_mask(tree.mask["c"], read_mask(tree.mask["c"])[:, 1:])
    return [("size-mismatch", tree.mask["c"])]


def colour_mask(tree):
    Image.open(tree.mask["e"]).convert("RGB").save(tree.mask["e"])
    return [("rgb-mask", tree.mask["e"])]


def colour_mask_with_transparency(tree):
    Image.open(tree.mask["e"]).convert("RGBA").save(tree.mask["e"])
    return [("rgb-mask", tree.mask["e"])]


def id_above(tree):
    edit_mask(tree.mask["f"], lambda ids: ids.__setitem__((-1, 0), 3))
    return [("mask-id", tree.mask["f"])]


def class_not_in_mask(tree):
    edit_mask(tree.mask["a"], lambda ids: ids.__setitem__(ids == 1, 0))
    return [("label-not-in-mask", tree.mask["a"])]


def class_not_in_label(tree):
    edit_mask(tree.mask["a"], lambda ids: ids.__setitem__((-1, 0), 2))
    return [("mask-not-in-label", tree.mask["a"])]


def no_mask(tree):
    tree.mask["a"].unlink()
    return [("missing-mask", tree.mask["a"].with_stem(tree.image["a"].stem))]


def same_bytes_in_a_split(tree):
    tree.image["d"].write_bytes(tree.image["a"].read_bytes())
    return [("duplicate-content", tree.image["d"])]


def same_bytes_in_two_splits(tree):
    tree.image["f"].write_bytes(tree.image["a"].read_bytes())
    return [("duplicate-content", tree.image["f"])]


def two_files_of_one_id(tree):
    other = write_photo(tree.image["a"].with_suffix(".png"), seed=77)
    if (tree.root / "Annotations").is_dir():  # VOC: JPEG files only
        return []
    return [("duplicate-id", other)]


FAULTS = [
    *(empty, empty_mask, html, html_mask, cut, cut_mask, mask_without_its_end, cmyk, grey),
    *(one_pixel, turned_with_a_mask_of_the_stored_size, turned_with_a_mask_of_the_upright_size),
    *(upside_down, another_size, colour_mask, colour_mask_with_transparency, id_above),
    *(class_not_in_mask, class_not_in_label, no_mask),
    *(same_bytes_in_a_split, same_bytes_in_two_splits, two_files_of_one_id),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_of_one_file_is_found_and_nothing_else(tree, fault):
    expected = [(kind, str(path)) for kind, path in fault(tree)]
    assert tree.examine() == expected


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
def test_every_cut_of_a_file_is_found(tmp_path, suffix):
    path = write_photo(tmp_path / f"a.{suffix}", seed=0, size=(40, 30))
    raw = path.read_bytes()
    assert check_files(Item(str(path), (), None), ()).findings == []
    for kept in [*range(1, len(raw) - 16, 1 + len(raw) // 60), *range(len(raw) - 16, len(raw))]:
        path.write_bytes(raw[:kept])
        (finding,) = check_files(Item(str(path), (), None), ()).findings
        assert finding.kind in ("truncated", "unreadable"), kept
        if kept > 100 and suffix in ("jpg", "png"):
            assert finding.kind == "truncated"


def test_broken_files_are_no_duplicates(tmp_path):
    tree = LAYOUTS["voc"](tmp_path)
    for name in "ab":
        tree.image[name].write_text("<html>404 not found</html>")
    assert tree.examine() == [("unreadable", str(tree.image[name])) for name in "ab"]


def test_all_ids_above_the_classes_but_255_are_found(tmp_path):
    tree = LAYOUTS["voc"](tmp_path)
    edit_mask(tree.mask["a"], lambda ids: ids.__setitem__((-1, 0), 254))
    assert tree.examine() == [("mask-id", str(tree.mask["a"]))]


def test_what_the_details_say(tmp_path):
    tree = LAYOUTS["voc"](tmp_path)
    turned(tree)
    id_above(tree)
    class_not_in_label(tree)
    detail = {f.kind: f.detail for f in examine(tree.root, **tree.options).findings}
    assert "orientation 6, stored as 12 x 9" in detail["exif-rotated"]
    assert "size of the image as stored" in detail["exif-rotated"]
    assert detail["size-mismatch"].startswith("mask 12 x 9, image 9 x 12")
    assert detail["mask-id"].startswith("3 (1 pixels); ids go to 2")
    assert detail["mask-not-in-label"] == "the mask shows dog (1 pixels)"


@pytest.mark.parametrize(("mode", "dtype"), [("L", "uint8"), ("1", "bool"), ("I;16", "uint16")])
def test_masks_of_all_modes_are_read_as_ids(tmp_path, mode, dtype):
    image = str(write_photo(tmp_path / "a.jpg", seed=0, size=(4, 3)))
    ids = np.zeros((3, 4), dtype)
    ids[0, 0] = 1
    Image.fromarray(ids).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as mask:
        assert mask.mode == mode
    for present, expected in ((("cat",), []), ((), ["mask-not-in-label"])):
        item = Item(image, (str(tmp_path / "a.png"),), present)
        assert [f.kind for f in check_files(item, NAMES).findings] == expected


def test_floating_point_images_are_unreadable(tmp_path):
    Image.fromarray(np.zeros((3, 4), np.float32)).save(tmp_path / "a.tif")
    (finding,) = check_files(Item(str(tmp_path / "a.tif"), (), None), ()).findings
    assert finding.kind == "unreadable"
    assert "floating-point" in finding.detail


# --- labels, lists and splits --------------------------------------------------------------------


def list_it(tree, name):
    for path in tree.root.glob("ImageSets/*/train*.txt"):
        path.write_text(path.read_text() + f"{name}\n")


def test_an_image_without_label(tree):
    write_photo(tree.new, seed=50)
    list_it(tree, tree.new.stem)
    assert tree.examine(ignore=["missing-mask"]) == [("file-without-label", str(tree.new))]


def test_an_image_that_no_list_names_is_no_finding(tmp_path):
    tree = LAYOUTS["voc"](tmp_path)
    write_photo(tree.new, seed=50)
    assert tree.examine() == []


@pytest.mark.parametrize("layout", ["voc", "context", "ade20k", "coco", "folder"])
def test_a_label_without_image(tmp_path, layout):
    tree = LAYOUTS[layout](tmp_path)
    tree.image["a"].unlink()
    (finding,) = tree.examine()
    assert finding[0] == "label-without-file"
    name = tree.image["a"].stem
    assert Path(finding[1]).stem == name
    assert Path(finding[1]).parent == tree.image["a"].parent


def test_voc_takes_only_the_suffix_that_its_data_set_opens(tmp_path):
    tree = LAYOUTS["voc"](tmp_path)
    tree.image["a"].rename(tree.image["a"].with_suffix(".JPG"))
    with pytest.raises(FileNotFoundError):
        VOC2012(tree.root, names=NAMES)[0]
    assert tree.examine() == [("label-without-file", str(tree.image["a"]))]


def test_an_annotation_without_image_or_list(tmp_path):
    tree = LAYOUTS["voc"](tmp_path)
    path = tree.root / "Annotations" / "lost.xml"
    path.write_text("<annotation></annotation>")
    assert tree.examine() == [("label-without-file", str(path))]


def test_labels_of_other_spelling_are_matched(tmp_path):
    tree = LAYOUTS["folder"](tmp_path)
    tree.image["a"].rename(tree.image["a"].with_suffix(".JPG"))
    rows = {"a.jpg": ["cat"], "b.jpg": ["dog"], "c": ["cat", "dog"], "d": ["cat"]}
    WeakLabels(NAMES, rows).save(tree.root / "train" / "labels.json")
    assert tree.examine() == []
    rows["a"] = ["cat"]
    WeakLabels(NAMES, rows).save(tree.root / "train" / "labels.json")
    assert tree.examine() == [("duplicate-id", str(tree.root / "train" / "labels.json"))]


BROKEN_LABELS = {
    "voc": "Annotations/a.xml",
    "context": "labels.json",
    "ade20k": "labels.json",
    "coco": "annotations/instances_val2014.json",
    "folder": "train/labels.json",
}


@pytest.mark.parametrize("layout", BROKEN_LABELS)
def test_labels_that_cannot_be_read(tmp_path, layout):
    tree = LAYOUTS[layout](tmp_path)
    path = tree.root / BROKEN_LABELS[layout]
    path.write_text("{")
    assert tree.examine() == [("labels-unreadable", str(path))]


def test_no_labels_at_all(tmp_path):
    voc, coco = LAYOUTS["voc"](tmp_path / "voc"), LAYOUTS["coco"](tmp_path / "coco")
    for path in (voc.root / "Annotations").iterdir():
        path.unlink()
    (voc.root / "Annotations").rmdir()
    assert voc.examine() == [("labels-unreadable", str(voc.root / "Annotations"))]
    path = coco.root / "annotations" / "instances_train2014.json"
    path.unlink()
    assert coco.examine() == [("labels-unreadable", str(path))]
    write_photo(tmp_path / "photos" / "a.jpg", seed=0)
    found = examine(tmp_path / "photos")
    assert [f.kind for f in found.findings] == ["labels-unreadable"]
    assert "labels.csv" in found.findings[0].detail


def test_lists_that_cannot_be_read(tmp_path):
    tree = LAYOUTS["voc"](tmp_path)
    lists = tree.root / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_bytes(b"\xff\xfea")
    (lists / "val.txt").write_text("\n")
    expected = [("labels-unreadable", str(lists / name)) for name in ("train.txt", "val.txt")]
    assert tree.examine() == expected
    for path in lists.iterdir():
        path.unlink()
    assert tree.examine() == [("labels-unreadable", str(lists))]
    empty(tree)
    assert tree.examine()[0] == ("empty-file", str(tree.image["b"]))  # images are read all the same


def test_an_id_in_two_lists_or_twice_in_one(tmp_path):
    tree = LAYOUTS["voc"](tmp_path)
    lists = tree.root / "ImageSets" / "Segmentation"
    (lists / "train_aug.txt").write_text("a\nb\nc\nd\n")
    assert tree.examine() == []
    (lists / "val.txt").write_text("e\nf\na\n")
    assert tree.examine() == [("duplicate-id", str(tree.image["a"]))]
    (lists / "val.txt").write_text("e\nf\ne\n")
    assert tree.examine() == [("duplicate-id", str(lists / "val.txt"))]


def test_one_id_in_the_folders_of_two_splits(tmp_path):
    tree = LAYOUTS["folder"](tmp_path)
    rows = {"a": ["cat"], "e": ["dog"], "f": ["cat"]}
    WeakLabels(NAMES, rows).save(tree.root / "val" / "labels.json")
    write_mask(tree.mask["e"].with_stem("a"), read_mask(tree.mask["a"]))
    rows, columns = np.mgrid[:60, :80]
    smooth = np.stack([3 * columns, 2 * rows + columns, 4 * rows], -1).astype(np.uint8)
    Image.fromarray(smooth).save(tree.image["a"])
    write_mask(tree.mask["a"], rows % 2)
    copy = write_photo(tree.image["e"].with_stem("a"), seed=99)
    assert tree.examine(ignore=["size-mismatch"]) == []  # another picture: both count from 1
    Image.fromarray(smooth).save(copy, quality=40)
    write_mask(tree.mask["e"].with_stem("a"), rows % 2)
    assert copy.read_bytes() != tree.image["a"].read_bytes()
    assert tree.examine() == [("duplicate-id", str(copy))]
    copy.write_bytes(tree.image["a"].read_bytes())
    assert tree.examine() == [("duplicate-content", str(copy))]


def test_the_two_releases_of_coco_share_photographs(tmp_path):
    tree = LAYOUTS["coco"](tmp_path)
    for split, other in (("train2014", "val2017"), ("val2014", "train2017")):
        (tree.root / other).mkdir()
        for path in (tree.root / split).iterdir():
            tail = b"" if path.stem[-1] in "135" else b"\0"  # some with the same bytes
            copy = tree.root / other / f"{path.stem[-12:]}.jpg"
            copy.write_bytes(path.read_bytes() + tail)
        content = (tree.root / "annotations" / f"instances_{split}.json").read_text()
        path = tree.root / "annotations" / f"instances_{other}.json"
        path.write_text(content.replace(f"COCO_{split}_", ""))
    assert tree.examine() == []


def test_an_annotation_file_without_its_folder(tmp_path):
    tree = LAYOUTS["coco"](tmp_path)
    (tree.root / "val2014").rename(tree.root / "vla2014")
    path = tree.root / "annotations" / "instances_val2014.json"
    assert tree.examine() == [("label-without-file", str(path))]


def test_classes_without_images_and_images_without_class(tmp_path):
    tree = LAYOUTS["folder"](tmp_path)
    path = tree.root / "train" / "labels.json"
    rows = {"a": ["cat"], "b": [], "c": ["cat"], "d": ["cat"]}
    WeakLabels(NAMES, rows).save(path)
    found = tree.examine(ignore=["mask-not-in-label"])
    assert found == [("empty-class", str(path)), ("no-class", str(tree.image["b"]))]
    assert tree.examine() == [
        ("empty-class", str(path)),
        ("no-class", str(tree.image["b"])),
        ("mask-not-in-label", str(tree.mask["b"])),
        ("mask-not-in-label", str(tree.mask["c"])),
    ]


def test_an_empty_folder_of_a_class(tmp_path):
    tree = LAYOUTS["classes"](tmp_path)
    (tree.root / "zebra").mkdir()
    assert tree.examine() == [("empty-class", str(tree.root / "zebra"))]


def test_splits_with_different_classes(tmp_path):
    for split, names in (("train", ("bird", "cat", "dog")), ("val", ("cat", "dog"))):
        for number, name in enumerate(names):
            write_photo(tmp_path / split / name / f"{split}.jpg", seed=hash((split, number)) % 999)
    found = examine(tmp_path)
    assert [(f.kind, f.path) for f in found.findings] == [("class-names", str(tmp_path / "val"))]
    assert "2 classes (cat, dog), expected 3 classes (bird, cat, dog)" in found.findings[0].detail


def test_labels_of_other_classes_are_not_compared_with_masks(tmp_path):
    tree = LAYOUTS["folder"](tmp_path)
    path = tree.root / "val" / "labels.json"
    WeakLabels(("Cat", "Dog"), {"e": ["Dog"], "f": ["Cat"]}).save(path)
    assert tree.examine() == [("class-names", str(path))]


@pytest.mark.parametrize("layout", ["context", "coco", "folder"])
def test_classes_that_are_not_those_asked_for(tmp_path, layout):
    tree = LAYOUTS[layout](tmp_path)
    kinds = {kind for kind, _ in tree.examine(names=("cat", "dog", "cow"))}
    assert "class-names" in kinds
    assert kinds <= {"class-names", "empty-class"}


def test_voc_annotations_of_unknown_classes(tmp_path):
    tree = LAYOUTS["voc"](tmp_path)
    path = tree.root / "Annotations" / "b.xml"
    path.write_text("<annotation><object><name>cow</name></object></annotation>")
    assert tree.examine() == [("class-names", str(path))]


def test_a_label_file_serves_all_splits_or_some(tmp_path):
    tree = LAYOUTS["voc"](tmp_path)
    rows = {"a": ["cat"], "b": ["dog"], "c": ["cat", "dog"], "d": ["cat"]}
    WeakLabels(NAMES, rows).save(tmp_path / "labels.json")
    found = examine(tree.root, names=NAMES, labels=tmp_path / "labels.json")
    assert found.findings == []
    assert tuple(found.splits["val"]) == (2, 0, 2)
    WeakLabels(NAMES, {**rows, "lost": ["cat"]}).save(tmp_path / "labels.csv")
    (finding,) = examine(tree.root, names=NAMES, labels=tmp_path / "labels.csv").findings
    assert finding.kind == "label-without-file"


def test_masks_of_another_folder(tmp_path):
    tree = LAYOUTS["voc"](tmp_path / "voc")
    (tree.root / "SegmentationClass").rename(tmp_path / "my masks")
    assert tuple(examine(tree.root, names=NAMES).splits["val"]) == (2, 2, 0)
    assert tree.examine(masks=tmp_path / "my masks") == []
    edit_mask(tmp_path / "my masks" / "a.png", lambda ids: ids.__setitem__((-1, 0), 9))
    assert tree.examine(masks=tmp_path / "my masks") == [
        ("mask-id", str(tmp_path / "my masks" / "a.png"))
    ]


def test_augmented_lists_take_the_augmented_masks(tmp_path):
    tree = LAYOUTS["voc"](tmp_path)
    lists = tree.root / "ImageSets" / "Segmentation"
    (lists / "train_aug.txt").write_text("a\nb\nc\nd\n")
    edited = tree.root / "SegmentationClassAug" / "a.png"
    for name in "abcd":
        write_mask(edited.with_stem(name), read_mask(tree.mask[name]))
    assert tree.examine() == []
    edit_mask(edited, lambda ids: ids.__setitem__((-1, 0), 9))
    assert tree.examine() == [("mask-id", str(edited))]


def test_a_split_of_which_few_images_have_masks_is_no_finding(tmp_path):
    tree = LAYOUTS["folder"](tmp_path)
    for name in "abc":
        tree.mask[name].unlink()
    assert tree.examine() == []
    assert tuple(examine(tree.root).splits["train"]) == (4, 4, 1)


def test_official_splits_of_another_size(tmp_path):
    coco = LAYOUTS["coco"](tmp_path)
    for path in (coco.root / "annotations").iterdir():
        content = json.loads(path.read_text())
        content["categories"] = [{"id": k, "name": name} for k, name in enumerate(COCO_NAMES)]
        for annotation in content["annotations"]:
            annotation["category_id"] = COCO_NAMES.index(NAMES[annotation["category_id"] - 17])
        path.write_text(json.dumps(content))
    found = examine(coco.root, ignore=["empty-class", "label-not-in-mask", "mask-not-in-label"])
    assert [(f.kind, f.path) for f in found.findings] == [
        ("split-size", str(coco.root / "train2014")),
        ("split-size", str(coco.root / "val2014")),
    ]
    assert "got 4" in found.findings[0].detail


@pytest.mark.parametrize("seed", range(10))
def test_any_damage_is_reported_not_raised(tree, seed):
    r = random.Random(f"{seed} {tree.root.parent.name}")
    for _ in range(r.randint(1, 4)):
        path = r.choice(sorted(tree.root.rglob("*")))
        if path.is_dir():
            shutil.rmtree(path)
            if r.random() < 0.5:
                path.write_bytes(b"not a folder")
        else:
            content = path.read_bytes()
            choices = [b"", b"[]", b"{}", b'{"names": 1}', content[: len(content) // 2]]
            path.write_bytes(r.choice([*choices, r.randbytes(50)]))
    labels = tree.options.get("labels")
    options = {k: v for k, v in tree.options.items() if k != "labels" or labels.is_file()}
    if any(path.suffix == ".jpg" for path in tree.root.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # too little is left of the layout
            found = examine(tree.root, **options)
            assert found.describe(limit=None)
            assert sum(found.counts.values()) == len(found.findings)


# --- the examination -----------------------------------------------------------------------------


def test_what_the_user_named_must_be_there(tmp_path):
    tree = LAYOUTS["voc"](tmp_path / "voc")
    for options, error, text in (
        ({"root": tmp_path / "gone"}, FileNotFoundError, "root must be a folder"),
        ({"labels": tmp_path / "gone.csv"}, FileNotFoundError, "labels must be a file"),
        ({"masks": tmp_path / "gone"}, FileNotFoundError, "masks must be a folder"),
        ({"layout": "voc2007"}, ValueError, "layout must be one of"),
        ({"layout": "coco"}, FileNotFoundError, "no coco layout"),
        ({"ignore": ["gray"]}, ValueError, "ignore must be one of .*'grey'"),
        ({"workers": 0}, ValueError, "workers must be at least 1"),
        ({"names": ("cat", "cat")}, ValueError, "names must be unique"),
    ):
        with pytest.raises(error, match=text):
            examine(**{"root": tree.root, "names": NAMES, **options})
    with pytest.raises(FileNotFoundError, match="VOC 2012"):
        examine(tmp_path, layout="voc")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images to examine in"):
        examine(tmp_path / "empty")
    (tmp_path / "rows.txt").write_text("a 0\n")
    with pytest.raises(ValueError, match=r"names must be given for .*rows.txt"):
        examine(tree.image["a"].parent, labels=tmp_path / "rows.txt")


def test_report_and_dictionary_hold_all_findings(tmp_path):
    tree = LAYOUTS["folder"](tmp_path)
    for name in ("a", "b", "c", "d", "e", "f"):
        tree.image[name].write_bytes(b"")
    found = examine(tree.root)
    assert found.counts == {"empty-file": 6}
    assert json.loads(json.dumps(found.to_dict()))["findings"][5] == {
        "kind": "empty-file",
        "path": str(tree.image["f"]),
        "detail": "0 bytes",
    }
    report = found.describe()
    assert "empty-file: 6 (a file of 0 bytes; copy or download it again)" in report
    assert str(tree.image["e"]) in report
    assert str(tree.image["f"]) not in report
    assert "... and 1 more" in report
    assert str(tree.image["f"]) in found.describe(limit=None)
    assert found.summary() == "6 images read: 6 findings."
    assert examine(tree.root, ignore=["empty-file"]).findings == []


def test_each_kind_is_explained():
    for kind, (what, advice) in KINDS.items():
        assert kind == kind.lower().replace(" ", "-")
        assert what
        assert advice


def test_nothing_is_written_and_no_time_is_changed(tree):
    def state():
        return {
            str(p): (p.stat().st_mtime_ns, p.stat().st_mode, p.is_file() and p.read_bytes())
            for p in sorted(tree.root.rglob("*"))
        }

    before = state()
    folders = [p for p in tree.root.rglob("*") if p.is_dir()]
    for path in (tree.root, *folders):
        path.chmod(0o555)
    try:
        expected = state()
        tree.examine()
        assert state() == expected
    finally:
        for path in (tree.root, *folders):
            path.chmod(0o755)
    assert state() == before


def test_memory_does_not_grow_with_the_images(tmp_path):
    def peak(count):
        root = tmp_path / str(count)
        raw = write_photo(root / "cat" / "0.jpg", seed=0, size=(160, 120)).read_bytes()
        for number in range(1, count):
            (root / "cat" / f"{number}.jpg").write_bytes(raw + number.to_bytes(4, "big"))
        tracemalloc.start()
        try:
            assert examine(root, workers=2).images == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    few, many = peak(200), peak(2000)
    # A decoded image of this size is 57,600 bytes, its file about 10,000.
    assert (many - few) / 1800 < 3000


@pytest.mark.real_data
def test_the_real_photographs(shared_data):
    from xml.etree import ElementTree

    root = shared_data / "VOCdevkit" / "VOC2012"
    found = examine(shared_data / "VOCdevkit")
    assert found.images == 472
    names, odd = found.names, set()
    for path in sorted((root / "SegmentationClass").glob("*.png")):
        ids = set(np.unique(np.array(Image.open(path))).tolist()) - {0, 255}
        xml = ElementTree.parse(root / "Annotations" / f"{path.stem}.xml")
        labels = {item.findtext("name") for item in xml.getroot().findall("object")}
        shown = {names[i - 1] for i in ids}
        odd |= {("label-not-in-mask", path.stem)} if labels - shown else set()
        odd |= {("mask-not-in-label", path.stem)} if shown - labels else set()
    kinds = ("label-not-in-mask", "mask-not-in-label")
    assert {(f.kind, Path(f.path).stem) for f in found.findings if f.kind in kinds} == odd
    assert [f.kind for f in found.findings if f.kind not in kinds] == ["split-size"] * 2
