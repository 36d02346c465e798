import json

import PIL.Image
import pytest
import torch

from wsss_blocks import data
from wsss_blocks.data import (
    AddView,
    Augmented,
    RandomCrop,
    RandomHorizontalFlip,
    Resize,
    Scenes,
    WithMaps,
    compute_maps,
    open_dataset,
    step_loader,
    training_transform,
)


def samples_of(dataset, n=2):
    return [dataset[i] for i in range(n)]


@pytest.mark.parametrize("with_masks", [False, True])
def test_masks_are_there_only_on_request(with_masks, tmp_path):
    data.write_voc_layout(tmp_path, train=2, val=2)
    names = data.VOC_NAMES
    for xml in (tmp_path / "VOC2012" / "Annotations").glob("*.xml"):
        text = xml.read_text()
        for digit, name in zip(data.DIGIT_NAMES, names, strict=False):
            text = text.replace(f"<name>{digit}</name>", f"<name>{name}</name>")
        xml.write_text(text)
    for kind, root in (("scenes", None), ("scenes-hard", None), ("voc", tmp_path)):
        dataset = open_dataset(kind, "train", root=root, with_masks=with_masks)
        assert all(("mask" in s) == with_masks for s in samples_of(dataset))
        assert dataset[0]["labels"].shape == (len(dataset.names),)


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_folders_with_and_without_splits(tmp_path, suffix):
    sample = Scenes("val")[0]
    for base in (tmp_path / "flat", tmp_path / "split" / "train", tmp_path / "split" / "val"):
        data.write_mask(base / "masks" / "a b.png", sample["mask"])
        (base / "images").mkdir()
        data.write_mask(base / "images" / "a b.png", sample["mask"])
        data.WeakLabels(("cat", "dog"), {"a b": ["dog"]}).save(base / f"labels.{suffix}")
    for root in ("flat", "split"):
        for split in ("train", "val"):
            dataset = open_dataset("folder", split, root=tmp_path / root)
            assert dataset.names == ("cat", "dog")
            assert dataset[0]["labels"].tolist() == [0.0, 1.0]
    assert "mask" in open_dataset("folder", "val", root=tmp_path / "flat", with_masks=True)[0]


def test_hard_scenes_are_other_scenes():
    for split, size in (("train", 2000), ("val", 200)):
        hard = open_dataset("scenes-hard", split, with_masks=True)
        assert (len(hard), hard.names) == (size, data.DIGIT_NAMES)
        expected = Scenes(split, hard=True, with_masks=True)
        assert torch.equal(hard[3]["image"], expected[3]["image"])
        assert torch.equal(hard[3]["mask"], expected[3]["mask"])
        assert not torch.equal(hard[3]["image"], open_dataset("scenes", split)[3]["image"])
    with pytest.raises(ValueError, match="split must be one of 'train', 'val', got 'test'"):
        open_dataset("scenes-hard", "test")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"kind must be one of .*, got 'cocoa'"):
        open_dataset("cocoa", "train")
    with pytest.raises(ValueError, match="root must be given for 'voc' data, got None"):
        open_dataset("voc", "train")
    with pytest.raises(ValueError, match="split must be one of"):
        open_dataset("scenes", "test")
    with pytest.raises(FileNotFoundError, match=r"must hold labels\.json or labels\.csv"):
        open_dataset("folder", "train", root=tmp_path)


# --- plain folders of photographs -------------------------------------------------------------


def photo(path, value=100, size=(6, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size[::-1], (value, 0, 0)).save(path)


def ones(path):
    data.write_mask(path, torch.ones(6, 8, dtype=torch.int64))


def test_photographs_and_a_table_from_excel(tmp_path):
    root = tmp_path / "Urlaub März"
    for name in ("IMG_1.JPG", "2023/Café 2.png", "2023/b.jpeg"):
        photo(root / name)
    table = tmp_path / "labels.csv"
    rows = ("\ufeffDatei;Labels", "IMG_1.jpg;cat", '2023/Café 2;"dog;cat"', ";")
    table.write_bytes("\r\n".join(rows).encode())
    found = open_dataset("folder", "train", root=root, labels=table)
    assert found.ids == ["IMG_1", "2023/Café 2"]
    assert found.names == ("cat", "dog")
    assert [s["labels"].tolist() for s in samples_of(found)] == [[1, 0], [1, 1]]
    lenient = open_dataset("folder", "val", root=root, labels=table, strict=False, with_masks=True)
    assert list(lenient.skipped) == ["2023/b"]
    assert "mask" not in lenient[0]


def test_masks_beside_photographs_are_no_photographs(tmp_path):
    for name in ("a", "cat/b"):
        photo(tmp_path / f"{name}.jpg")
        ones(tmp_path / "masks" / f"{name}.png")
    data.WeakLabels(("cat",), {"a": ["cat"], "cat/b": []}).save(tmp_path / "labels.json")
    plain = open_dataset("folder", "train", root=tmp_path, strict=False)
    assert plain.ids == ["a", "cat/b"]
    assert plain.skipped == {}
    assert "mask" not in plain[0]
    masked = open_dataset("folder", "val", root=tmp_path, with_masks=True)
    assert masked[1]["mask"].eq(1).all()


@pytest.mark.parametrize("below", ["", "images", "train"])
def test_a_folder_per_class(tmp_path, below):
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/1.JPG", "none.png"):
        photo(tmp_path / below / name)
    photo(tmp_path / below / "runs" / "figures" / "x.png")  # none directly in it: no class
    (tmp_path / below / ".hidden").mkdir()
    found = open_dataset("folder", "train", root=tmp_path)
    assert found.names == ("cat", "dog")
    assert found.ids == ["none", "cat/1", "cat/2", "dog/1"]
    assert [s["labels"].sum().item() for s in samples_of(found, 4)] == [0, 1, 1, 1]


def test_masks_of_a_folder_per_class(tmp_path):
    for name in ("cat/1", "dog/1"):
        photo(tmp_path / f"{name}.jpg")
        ones(tmp_path / "masks" / f"{name}.png")
    ones(tmp_path / "masks" / "loose.png")  # an image directly in it makes masks no class
    found = open_dataset("folder", "val", root=tmp_path, with_masks=True)
    assert found.names == ("cat", "dog")
    assert found[1]["mask"].shape == (6, 8)


def test_split_folders_with_labels_or_classes_in_them(tmp_path):
    photo(tmp_path / "train" / "cat" / "1.jpg")
    photo(tmp_path / "val" / "a.jpg")
    (tmp_path / "val" / "labels.csv").write_text("id,cat,dog\na,1,0\n")
    assert open_dataset("folder", "train", root=tmp_path).ids == ["cat/1"]
    assert open_dataset("folder", "val", root=tmp_path).ids == ["a"]


def test_a_class_called_like_a_split(tmp_path):
    for name in ("train/1.jpg", "bus/1.jpg"):
        photo(tmp_path / name)
    assert open_dataset("folder", "train", root=tmp_path).names == ("bus", "train")


def test_folders_that_cannot_be_read(tmp_path):
    photo(tmp_path / "train" / "1.jpg")
    photo(tmp_path / "val" / "2.jpg")
    with pytest.raises(FileNotFoundError, match=r"labels\.json or labels\.csv .* for each class"):
        open_dataset("folder", "train", root=tmp_path)  # two splits are not two classes
    with pytest.raises(FileNotFoundError, match=r"root must be a folder, got .*gone"):
        open_dataset("folder", "train", root=tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"no label file at .*gone.csv"):
        open_dataset("folder", "train", root=tmp_path, labels=tmp_path / "gone.csv")
    for name in ("l.npy", "l.txt", "l.NPY"):
        with pytest.raises(ValueError, match=r"labels must be a .json or .csv.*l\.\w+: it has no"):
            open_dataset("folder", "train", root=tmp_path, labels=tmp_path / name)
    labels = data.WeakLabels(("cat",), {"train/1": ["cat"], "val/2": []})
    labels.save(tmp_path / "labels.csv")
    assert len(open_dataset("folder", "train", root=tmp_path)) == 2
    labels.save(tmp_path / "labels.json")
    with pytest.raises(ValueError, match=r"which of .*s.json and .*s.csv to read, got None"):
        open_dataset("folder", "train", root=tmp_path)
    given = tmp_path / "labels.csv"
    assert len(open_dataset("folder", "train", root=tmp_path, labels=given)) == 2
    with pytest.raises(ValueError, match=r"labels must be None for 'scenes' data, got .*s.csv"):
        open_dataset("scenes", "train", labels=given)
    with pytest.raises(ValueError, match=r"labels must be None for 'scenes-hard' data, got .*csv"):
        open_dataset("scenes-hard", "train", labels=given)


def test_given_labels_for_voc(tmp_path):
    voc = data.write_voc_layout(tmp_path, train=2, val=1, names=data.VOC_NAMES)
    found = open_dataset("voc", "train", root=voc)
    assert found.names == data.VOC_NAMES
    assert found[0]["labels"][:10].any()
    table = tmp_path / "mine.csv"
    data.WeakLabels(data.VOC_NAMES, {"train_00001.JPG": ["dog"]}).save(table)
    with pytest.raises(ValueError, match="1 of 2 ids have no row in labels: 'train_00000'"):
        open_dataset("voc", "train", root=voc, labels=table)
    lenient = open_dataset("voc", "train", root=voc, labels=table, strict=False)
    assert lenient.ids == ["train_00001"]
    assert lenient.labels.classes("train_00001") == ["dog"]


@pytest.mark.parametrize("colour", ["photometric", "permute", "none"])
@pytest.mark.parametrize("square", [True, False])
def test_recipe_gives_crops_and_boxes_inside_them(colour, square):
    transform = training_transform(64, colour=colour, square=square)
    sample = data.new_sample(torch.rand(3, 50, 90), id="a", labels=torch.ones(2))
    for seed in range(8):
        out = transform(dict(sample), torch.Generator().manual_seed(seed))
        top, left, bottom, right = out["box"].tolist()
        assert out["image"].shape == (3, 64, 64)
        assert 0 <= top < bottom <= 64
        assert 0 <= left < right <= 64
        assert out["image"].min() >= 0
        assert out["image"].max() <= 1


def test_recipe_without_any_change_keeps_the_image():
    transform = training_transform(40, scale=(1.0, 1.0), flip=False, colour="none")
    sample = data.new_sample(torch.rand(3, 40, 40), id="a")
    assert torch.equal(transform(sample, torch.Generator())["image"], sample["image"])
    with pytest.raises(ValueError, match="colour must be one of"):
        training_transform(40, colour="sepia")


def test_loader_resumes_in_the_middle_whatever_the_workers():
    options = {"batch_size": 2, "steps": 4, "seed": 3}
    scenes, transform = Scenes(size=5), training_transform(32)
    whole = [b["image"] for b in step_loader(scenes, transform, **options)]
    rest = [b["image"] for b in step_loader(scenes, transform, start=2, workers=1, **options)]
    assert len(whole) == 4
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], rest, strict=True))


def test_cached_maps_follow_their_image():
    scenes = Scenes(size=3)
    maps = compute_maps(lambda x: x[:, :, ::8, ::8], scenes, Resize((96, 96)), dtype=torch.float32)
    with_maps = WithMaps(Augmented(scenes, RandomHorizontalFlip(0.5)), {"features": maps})
    flipped = 0
    for seed in range(6):
        sample = with_maps[1, seed]
        mirrored = not torch.equal(sample["image"], scenes[1]["image"])
        expected = maps[1].flip(-1) if mirrored else maps[1]
        torch.testing.assert_close(sample["maps"]["features"], expected)
        assert sample["valid"]["features"].all()
        flipped += mirrored
    assert 0 < flipped < 6
    batch = next(iter(step_loader(scenes, Resize((96, 96)), batch_size=2, steps=1,
                                  maps={"features": maps})))  # fmt: skip
    assert batch["maps"]["features"].shape == (2, 3, 12, 12)


def test_cached_maps_follow_each_view():
    scenes = Scenes(size=3)
    maps = [scenes[i]["image"] for i in range(3)]
    mirrored = Augmented(scenes, AddView("second", RandomHorizontalFlip(1.0)))
    for index in range(3):
        sample = WithMaps(mirrored, {"features": maps})[index, 7]
        view = sample["views"]["second"]
        assert view.keys() == {"image", "box", "geometry", "maps", "valid"}
        torch.testing.assert_close(sample["maps"]["features"], maps[index])
        torch.testing.assert_close(view["maps"]["features"], maps[index].flip(-1))
        assert sample["valid"]["features"].all()
        assert view["valid"]["features"].all()


def test_each_view_says_where_it_shows_the_image():
    scenes = Scenes(size=3)
    maps = {"features": [scenes[i]["image"] for i in range(3)]}
    cut = Augmented(scenes, AddView("second", RandomCrop(120)))
    view = WithMaps(cut, maps, sizes={"features": (120, 120)})[1, 7]["views"]["second"]
    torch.testing.assert_close(view["maps"]["features"], view["image"], atol=1e-4, rtol=0)
    top, left, bottom, right = view["box"].tolist()
    inside = torch.zeros(120, 120, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    assert torch.equal(view["valid"]["features"], inside)


def test_cached_maps_must_be_one_per_image():
    augmented = Augmented(Scenes(size=3), Resize((96, 96)))
    with pytest.raises(ValueError, match="one 'features' map for each of 3 images, got 2"):
        WithMaps(augmented, {"features": [torch.zeros(1, 2, 2)] * 2})


def test_label_file_is_plain_json(tmp_path):
    data.WeakLabels(("cat",), {"a": ["cat"]}).save(tmp_path / "labels.json")
    json.loads((tmp_path / "labels.json").read_text())
