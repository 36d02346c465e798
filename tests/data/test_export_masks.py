import io
import json
import tarfile
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from mask_drawing import AWKWARD, K, drawn_masks
from PIL import Image, ImageDraw
from pycocotools import coco as pycoco
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2

from wsss_blocks.data import (
    COCO_NAMES,
    VOC_NAMES,
    VOC_SPOKEN_NAMES,
    build_coco_masks,
    class_table,
    export_masks,
    read_mask,
    voc_palette,
    write_coco_layout,
    write_mask,
)

NAMES = ("cat", "dog", 'a "cow": é')
SERVER = "results/VOC2012/Segmentation/comp6_val_cls"


def polygon_pixels(shape, points):
    """Paint with the outline, as labelme does."""
    image = Image.new("1", shape[::-1])
    ImageDraw.Draw(image).polygon([tuple(point) for point in points], outline=1, fill=1)
    return np.array(image)


def read_labelme(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    ids = np.zeros((content["imageHeight"], content["imageWidth"]), np.uint8)
    for shape in content["shapes"]:
        assert shape["shape_type"] == "polygon"
        ids[polygon_pixels(ids.shape, shape["points"])] = NAMES.index(shape["label"]) + 1
    return ids


def read_yolo(path, shape):
    ids = np.zeros(shape, np.uint8)
    for line in path.read_text().splitlines():
        number, *values = line.split(" ")
        points = np.array(values, np.float64).reshape(-1, 2)
        assert ((points >= 0) & (points <= 1)).all()
        ids[polygon_pixels(shape, points * shape[::-1])] = int(number) + 1
    return ids


def read_coco(path, images=None):
    reader, found = pycoco.COCO(str(path)), {}
    for number, image in reader.imgs.items():
        ids = np.zeros((image["height"], image["width"]), np.uint8)
        for one in reader.loadAnns(reader.getAnnIds(imgIds=[number])):
            pixels = reader.annToMask(one).astype(bool)
            assert not ids[pixels].any(), "two objects share a pixel"
            ids[pixels] = one["category_id"]
            rows, columns = np.nonzero(pixels)
            left, top, width, height = one["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
            assert one["area"] == pixels.sum()
            assert one["iscrowd"] == 0
        found[Path(image["file_name"]).stem] = ids
    return found


def known(ids):
    return np.where(ids == 255, 0, ids)


def check_formats(masks):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for ids in masks.values():
            assert ids.max() in (*range(K + 1), 255)

        def export(output, to, **options):
            done = export_masks(masks, folder / output, to=to, names=NAMES, workers=1, **options)
            assert done.ids == sorted(masks)
            assert done.ignored == [one for one in sorted(masks) if (masks[one] == 255).any()]
            assert list(done.counts) == list(NAMES)
            for k, count in enumerate(done.counts.values(), 1):
                assert count == sum(bool((ids == k).any()) for ids in masks.values())
            return folder / output

        png, mmseg = export("png", "voc-png"), export("mm", "mmseg")
        labelme, yolo = export("labelme", "labelme"), export("yolo", "yolo-seg")
        several, one = export("npz", "npz"), np.load(export("all.npz", "npz"))
        coco = [
            read_coco(export(f"{s}_{i}.json", "coco-json", segmentation=s, instances=i))
            for s in ("rle", "polygon")
            for i in ("components", "classes")
        ]
        assert one["ids"].tolist() == sorted(masks)
        assert one["names"].tolist() == ["background", *NAMES]
        for id_, ids in masks.items():
            for path in (png / f"{id_}.png", mmseg / "ann_dir" / "train" / f"{id_}.png"):
                with Image.open(path) as image:
                    assert image.mode == "P"
                    assert image.getpalette() == voc_palette().flatten().tolist()
                    assert np.array_equal(np.array(image), ids)
            assert np.array_equal(np.load(several / f"{id_}.npz")["mask"], ids)
            assert np.array_equal(one[f"masks/{id_}"], ids)
            assert np.array_equal(read_labelme(labelme / f"{id_}.json"), known(ids))
            text = yolo / "labels" / "train" / f"{id_}.txt"
            assert np.array_equal(read_yolo(text, ids.shape), known(ids))
            for found in coco:
                assert np.array_equal(found[id_], known(ids))


@given(drawn_masks(largest=7))
def test_each_format_gives_drawn_masks_back(ids):
    check_formats({"b": ids, "a 1": ids[::-1].copy()})


def test_each_format_gives_awkward_masks_back():
    check_formats(AWKWARD)


def disc(side=160):
    y, x = np.mgrid[:side, :side] - side / 2
    ids = (np.hypot(y, x) < 0.45 * side).astype(np.uint8)
    ids[np.hypot(y + 10, x - 20) < 0.1 * side] = 0
    return ids


def test_simplified_polygons_have_fewer_corners_and_nearly_the_mask(tmp_path):
    ids = disc()
    sizes = {}
    for tolerance in (0.0, 1.0):
        to = {"names": NAMES, "simplify": tolerance}
        path = tmp_path / f"{tolerance}.json"
        export_masks({"a": ids}, path, to="coco-json", segmentation="polygon", **to)
        export_masks({"a": ids}, tmp_path / f"l{tolerance}", to="labelme", **to)
        export_masks({"a": ids}, tmp_path / f"y{tolerance}", to="yolo-seg", **to)
        annotation = json.loads(path.read_text())["annotations"][0]
        sizes[tolerance] = len(annotation["segmentation"][0])
        reader = pycoco.COCO(str(path))
        text = tmp_path / f"y{tolerance}" / "labels" / "train" / "a.txt"
        for found in (
            reader.annToMask(reader.anns[1]),
            read_labelme(tmp_path / f"l{tolerance}" / "a.json"),
            read_yolo(text, ids.shape),
        ):
            union = ((found == 1) | (ids == 1)).sum()
            assert ((found == 1) & (ids == 1)).sum() / union >= (0.98 if tolerance else 1.0)
    assert sizes[1.0] < sizes[0.0] / 3


def test_objects_are_parts_that_touch_or_whole_classes(tmp_path):
    ids = np.zeros((6, 6), np.uint8)
    ids[0, 0] = ids[1, 1] = ids[4, 4] = 1  # two touch at a corner
    ids[0, 3:] = 2
    for instances, wanted in (("components", [[1, 2], [1, 1], [2, 3]]), ("classes", None)):
        for segmentation in ("rle", "polygon"):
            path = tmp_path / f"{instances}{segmentation}.json"
            export_masks(
                {"a": ids},
                path,
                to="coco-json",
                names=NAMES,
                instances=instances,
                segmentation=segmentation,
            )
            annotations = json.loads(path.read_text())["annotations"]
            found = [[one["category_id"], one["area"]] for one in annotations]
            assert found == (wanted or [[1, 3], [2, 3]])
            assert [one["id"] for one in annotations] == list(range(1, len(found) + 1))
            if segmentation == "polygon":
                assert len(annotations[0]["segmentation"]) == (2 if wanted else 3)
        output = tmp_path / instances
        export_masks({"a": ids}, output, to="labelme", names=NAMES, instances=instances)
        shapes = json.loads((output / "a.json").read_text())["shapes"]
        groups = [shape["group_id"] for shape in shapes]
        assert groups == ([1, 1, None, None] if wanted else [1, 1, 1, None])


def test_coco_names_and_numbers_are_official(tmp_path):
    root = write_coco_layout(tmp_path, train=2, val=2)
    masks = root / "SegmentationClass" / "val2014"
    path = tmp_path / "instances_val2014.json"
    done = export_masks(
        masks, path, to="coco-json", names=COCO_NAMES, images=root / "val2014", instances="classes"
    )
    reader = pycoco.COCO(str(path))
    official = pycoco.COCO(str(root / "annotations" / "instances_val2014.json"))
    assert reader.getCatIds() == list(class_table("coco").raw_ids)
    assert {n: i["file_name"] for n, i in reader.imgs.items()} == {
        n: i["file_name"] for n, i in official.imgs.items()
    }
    for number in reader.imgs:
        pairs = zip(
            reader.loadAnns(reader.getAnnIds(imgIds=[number])),
            official.loadAnns(official.getAnnIds(imgIds=[number])),
            strict=True,
        )
        for ours, theirs in pairs:
            for key in ("category_id", "bbox", "area"):
                assert ours[key] == theirs[key]
            assert np.array_equal(reader.annToMask(ours), official.annToMask(theirs))
    again = build_coco_masks(path, tmp_path / "again")
    assert again.ids == done.ids
    assert {name: again.counts[name] for name in done.counts} == done.counts
    for name in done.ids:
        wanted = read_mask(masks / f"{name}.png")
        assert torch.equal(read_mask(tmp_path / "again" / f"{name}.png"), wanted)


@pytest.mark.parametrize("segmentation", ["rle", "polygon"])
def test_torchvision_reads_the_annotations(tmp_path, segmentation):
    ids = AWKWARD["holes"]
    photos = tmp_path / "photos" / "x"
    photos.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(photos / "a.JPG", format="JPEG")
    path = tmp_path / "i.json"
    export_masks(
        {"x/a": ids},
        path,
        to="coco-json",
        names=NAMES,
        images=tmp_path / "photos",
        instances="classes",
        segmentation=segmentation,
    )
    data = wrap_dataset_for_transforms_v2(
        CocoDetection(tmp_path / "photos", path), target_keys=["masks", "labels", "boxes"]
    )
    _, target = data[0]
    found = np.zeros_like(ids)
    for mask, label in zip(target["masks"], target["labels"], strict=True):
        found[mask.numpy().astype(bool)] = int(label)
    assert np.array_equal(found, known(ids))


def test_the_archive_for_the_server(tmp_path):
    masks = {"2007_000042": AWKWARD["ring"], "2007_000033": AWKWARD["full"]}
    path = tmp_path / "one.tar.gz"
    export_masks(masks, path, to="voc-server-tar", names=VOC_NAMES)
    with tarfile.open(path) as archive:
        entries = archive.getmembers()
        assert [entry.name for entry in entries] == [f"{SERVER}/{one}.png" for one in sorted(masks)]
        for entry in entries:
            assert (entry.mtime, entry.uid, entry.mode) == (0, 0, 0o644)
            content = archive.extractfile(entry).read()
            with Image.open(io.BytesIO(content)) as image:
                assert image.mode == "P"
                assert image.getpalette() == voc_palette().flatten().tolist()
                assert np.array_equal(np.array(image), masks[Path(entry.name).stem])
    other = tmp_path / "two.tgz"
    export_masks(list(masks.items())[::-1], other, to="voc-server-tar", names=VOC_SPOKEN_NAMES)
    assert path.read_bytes() == other.read_bytes()
    assert path.read_bytes()[4:8] == bytes(4), "a time of writing"
    test = tmp_path / "test.tar.gz"
    export_masks(masks, test, to="voc-server-tar", names=VOC_NAMES, competition="comp5_test")
    with tarfile.open(test) as archive:
        assert archive.getnames()[0] == (
            "results/VOC2012/Segmentation/comp5_test_cls/2007_000033.png"
        )


@pytest.fixture
def photos(tmp_path):
    """Three masks in a folder, with photographs of their sizes; one lies on its side."""
    folder, masks = tmp_path / "photos", tmp_path / "masks"
    (folder / "x").mkdir(parents=True)
    for name in ("a", "b", "x/c"):
        ids = AWKWARD["ring"]
        write_mask(masks / f"{name}.png", ids)
        turned = name == "b"
        image = Image.new("RGB", ids.shape if turned else ids.shape[::-1], (9, 99, 200))
        exif = Image.Exif()
        if turned:
            exif[0x0112] = 6
        image.save(folder / f"{name}.jpg", exif=exif)
    return masks, folder


def test_splits_of_mmseg_and_yolo(tmp_path, photos):
    masks, images = photos
    for to, pictures, written in (
        ("mmseg", "img_dir", "ann_dir/{}.png"),
        ("yolo-seg", "images", "labels/{}.txt"),
    ):
        output = tmp_path / to
        export_masks(masks, output, to=to, names=NAMES, images=images, val_ids=["b"])
        for place in ("train/a", "val/b", "train/x/c"):
            copied = output / pictures / f"{place}.jpg"
            name = place.partition("/")[2]
            assert copied.read_bytes() == (images / f"{name}.jpg").read_bytes()
            assert (output / written.format(place)).is_file()
        assert len([path for path in output.rglob("*") if path.is_file()]) == 7
    meta = json.loads((tmp_path / "mmseg" / "dataset.json").read_text(encoding="utf-8"))
    assert meta == {
        "classes": ["background", *NAMES],
        "palette": voc_palette(4).tolist(),
        "reduce_zero_label": False,
        "ignore_index": 255,
        "img_suffix": ".jpg",
        "seg_map_suffix": ".png",
        "data_prefix": {
            split: {"img_path": f"img_dir/{split}", "seg_map_path": f"ann_dir/{split}"}
            for split in ("train", "val")
        },
    }
    facts = yaml.safe_load((tmp_path / "yolo-seg" / "data.yaml").read_text(encoding="utf-8"))
    assert facts == {
        "train": "images/train",
        "val": "images/val",
        "names": dict(enumerate(NAMES)),
    }
    only = tmp_path / "only"
    export_masks(masks, only, to="yolo-seg", names=NAMES, val_ids=["a", "b", "x/c"])
    assert "train: images/val\nval: images/val\n" in (only / "data.yaml").read_text()


def test_labelme_names_the_photograph(tmp_path, photos):
    masks, images = photos
    output = tmp_path / "deep" / "labelme"
    export_masks(masks, output, to="labelme", names=NAMES, images=images)
    for name in ("a", "x/c"):
        path = output / f"{name}.json"
        named = json.loads(path.read_text())["imagePath"]
        assert (path.parent / named).resolve() == (images / f"{name}.jpg").resolve()
    export_masks(masks, tmp_path / "bare", to="labelme", names=NAMES)
    bare = json.loads((tmp_path / "bare" / "x" / "c.json").read_text())
    assert bare["imagePath"] == "c.jpg"


def test_masks_come_as_tensors_one_by_one_with_another_ignored_id(tmp_path):
    mask = torch.tensor([[0, 1, -100], [2, -100, 3]])
    drawn = []

    def predicted():
        for name in ("b", "a"):
            drawn.append(name)
            yield name, mask

    done = export_masks(
        predicted(), tmp_path / "out", to="voc-png", names=NAMES, ignore_index=-100, workers=2
    )
    assert (done.ids, done.ignored, drawn) == (["a", "b"], ["a", "b"], ["b", "a"])
    found = read_mask(tmp_path / "out" / "a.png")
    assert torch.equal(found, mask.masked_fill(mask == -100, 255))


def test_progress_is_told_how_many(tmp_path):
    told = []

    def progress(items, *, total):
        told.append(total)
        return items

    masks = {"a": AWKWARD["full"]}
    export_masks(masks, tmp_path / "1", to="npz", names=NAMES, progress=progress)
    export_masks(iter(masks.items()), tmp_path / "2", to="npz", names=NAMES, progress=progress)
    assert told == [1, None]


def test_the_same_masks_give_the_same_bytes(tmp_path, photos):
    masks, images = photos
    for to, output in (("npz", "{}.npz"), ("coco-json", "{}.json")):
        made = [tmp_path / output.format(i) for i in (1, 2)]
        for i, path in enumerate(made):
            export_masks(masks, path, to=to, names=NAMES, images=images, workers=1 + 2 * i)
        assert made[0].read_bytes() == made[1].read_bytes()


def test_memory_does_not_grow_with_the_masks(tmp_path):
    noise = np.random.default_rng(0).integers(0, K + 1, (4, 24, 24), dtype=np.uint8)

    def most(count):
        masks = ((f"{i:03d}", noise[i % 4]) for i in range(count))
        options = {"to": "coco-json", "names": NAMES, "segmentation": "polygon", "workers": 1}
        tracemalloc.start()
        try:
            done = export_masks(masks, tmp_path / f"{count}.json", **options)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert (len(done.ids), done.counts["cat"]) == (count, count)
        return peak

    most(1)
    few, many = most(5), most(20)
    assert many - few < 0.3 * (tmp_path / "20.json").stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.json", "20.json", "5.json"]


def test_figures_of_segment_are_no_masks(tmp_path):
    folder = tmp_path / "masks"
    for name in ("a", "b_overlay"):  # the second one is a mask, whatever it is called
        write_mask(folder / f"{name}.png", AWKWARD["full"])
    for name in ("a_overlay", "class_scores", ".hidden"):
        Image.new("RGB", (4, 3)).save(folder / f"{name}.png")
    done = export_masks(folder, tmp_path / "out", to="voc-png", names=NAMES)
    assert done.ids == ["a", "b_overlay"]
    Image.new("RGB", (4, 3)).save(folder / "colour.png")
    with pytest.raises(ValueError, match=r"colour\.png must be an indexed or grey mask"):
        export_masks(folder, tmp_path / "out2", to="voc-png", names=NAMES)
    assert not (tmp_path / "out2").exists()


FULL = {"a": AWKWARD["full"]}


@pytest.mark.parametrize(
    ("masks", "options", "error", "message"),
    [
        ("gone", {}, FileNotFoundError, "no folder of masks at gone"),
        ({}, {}, ValueError, "masks must hold at least one mask, got none"),
        (3, {}, TypeError, "masks must be a folder or ids with masks, got int"),
        (["a"], {}, TypeError, "masks must be pairs of an id and a mask, got str"),
        ([*FULL.items()] * 2, {}, ValueError, "masks must have different ids, got 'a' twice"),
        ({"../a": 1}, {}, ValueError, r"masks must have ids that can name files, got '\.\./a'"),
        ({"/a": 1}, {}, ValueError, "masks must have ids that can name files, got '/a'"),
        ({"": 1}, {}, ValueError, "masks must have ids that can name files, got ''"),
        ({"a": [[1]]}, {}, TypeError, "mask 'a' must be a tensor or an array, got list"),
        ({"a": torch.rand(2, 2)}, {}, TypeError, "mask 'a' must hold integers, got torch.float32"),
        ({"a": np.ones((2, 2))}, {}, TypeError, "mask 'a' must hold integers, got float64"),
        ({"a": np.ones(2, int)}, {}, ValueError, r"mask 'a' must have shape \(H, W\), got \(2,\)"),
        ({"a": np.full((2, 2), 4)}, {}, ValueError, r"mask 'a' must hold ids 0\.\.3 .* got 4"),
        ({"a": np.full((2, 2), -1)}, {}, ValueError, r"mask 'a' must hold ids 0\.\.3 .* got -1"),
        (FULL, {"to": "voc"}, ValueError, "to must be one of 'voc-png', .*got 'voc'"),
        (FULL, {"names": ("x", "x")}, ValueError, "names must be unique"),
        (FULL, {"names": map(str, range(255))}, ValueError, "at most 254 classes, got 255"),
        (FULL, {"ignore_index": 2}, ValueError, r"ignore_index must not be .*0\.\.3\), got 2"),
        (FULL, {"simplify": 1.0}, ValueError, "simplify is for coco-json and labelme and yolo-seg"),
        (FULL, {"val_ids": "a"}, ValueError, "val_ids is for mmseg and yolo-seg, not for voc-png"),
        (FULL, {"to": "labelme", "simplify": -1}, ValueError, "simplify must be >= 0 .* got -1"),
        (FULL, {"to": "labelme", "instances": "x"}, ValueError, "instances must be one of"),
        (FULL, {"to": "coco-json"}, ValueError, r"output must end in \.json for coco-json"),
        (
            FULL,
            {"to": "mmseg", "val_ids": ["b"]},
            ValueError,
            "val_ids must be ids of masks, got b",
        ),
        (FULL, {"workers": 0}, ValueError, "workers must be at least 1, got 0"),
        (FULL, {"images": "gone"}, FileNotFoundError, "images must be a folder, got gone"),
    ],
)
def test_errors(tmp_path, monkeypatch, masks, options, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        export_masks(masks, "out", **{"to": "voc-png", "names": NAMES, **options})
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_server(tmp_path):
    for masks, names, message in (
        (FULL, NAMES, "names must be VOC's 20 classes for voc-server-tar, got 3: cat, dog"),
        ({"x/a": FULL["a"]}, VOC_NAMES, "mask 'x/a' must not lie in a folder"),
        ({"a": AWKWARD["a row"]}, VOC_NAMES, "mask 'a' must give each pixel a class"),
    ):
        with pytest.raises(ValueError, match=message):
            export_masks(masks, tmp_path / "o.tar.gz", to="voc-server-tar", names=names)
    with pytest.raises(ValueError, match=r"output must end in \.tar\.gz or \.tgz"):
        export_masks(FULL, tmp_path / "o.tar", to="voc-server-tar", names=VOC_NAMES)
    with pytest.raises(ValueError, match="simplify is for polygons"):
        export_masks(FULL, tmp_path / "o.json", to="coco-json", names=NAMES, simplify=1)
    assert list(tmp_path.iterdir()) == []


def test_errors_name_mask_and_image(tmp_path, photos):
    masks, images = photos
    there = sorted(path.name for path in tmp_path.iterdir())
    to = {"to": "mmseg", "names": NAMES, "images": images}
    Image.new("RGB", (9, 8)).save(images / "a.jpg")
    with pytest.raises(
        ValueError, match=r"masks/a\.png must have the size \(8, 9\) of .*photos/a\.jpg, got \(7, 9"
    ):
        export_masks(masks, tmp_path / "out", **to)
    Image.new("RGB", (8, 7)).save(images / "a.jpg")
    with pytest.raises(ValueError, match=r"the size \(7, 8\) of .*a\.jpg, got \(7, 9\)"):
        export_masks(masks, tmp_path / "out", **to)
    (images / "a.jpg").write_bytes(b"no image")
    with pytest.raises(OSError, match=r"photos/a\.jpg cannot be read as an image"):
        export_masks(masks, tmp_path / "out", **to)
    (images / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"masks/a\.png must have an image in .*got none"):
        export_masks(masks, tmp_path / "out", **to)
    for suffix in ("webp", "png"):
        Image.new("RGB", (9, 7)).save(images / f"a.{suffix}")
    with pytest.raises(FileNotFoundError, match=r"got two of them: a\.png, a\.webp"):
        export_masks(masks, tmp_path / "out", **to)
    (images / "a.png").unlink()
    with pytest.raises(ValueError, match=r"one suffix for mmseg, got .*a\.webp"):
        export_masks(masks, tmp_path / "out", **to)
    (masks / "a.png").write_bytes(b"no mask")
    with pytest.raises(OSError, match=r"masks/a\.png cannot be read as an image"):
        export_masks(masks, tmp_path / "out", **to)
    assert sorted(path.name for path in tmp_path.iterdir()) == there


def test_nothing_is_replaced(tmp_path):
    folder, file, empty = tmp_path / "folder", tmp_path / "a.json", tmp_path / "empty"
    folder.mkdir()
    empty.mkdir()
    (folder / "mine").write_text("x")
    file.write_text("mine")
    with pytest.raises(FileExistsError, match=r"folder must be a new or empty folder"):
        export_masks(FULL, folder, to="voc-png", names=NAMES)
    with pytest.raises(FileExistsError, match=r"a\.json exists: choose another output"):
        export_masks(FULL, file, to="coco-json", names=NAMES)
    assert [path.name for path in folder.iterdir()] == ["mine"]
    assert file.read_text() == "mine"
    export_masks(FULL, empty, to="voc-png", names=NAMES)
    assert [path.name for path in empty.iterdir()] == ["a.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "empty", "folder"]
