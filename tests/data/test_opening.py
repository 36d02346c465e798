import json

import pytest
import torch

from wsss_blocks import data
from wsss_blocks.data import (
    Augmented,
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
    for kind, root in (("scenes", None), ("voc", tmp_path)):
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


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"kind must be one of .*, got 'coco'"):
        open_dataset("coco", "train")
    with pytest.raises(ValueError, match="root must be given for 'voc' data, got None"):
        open_dataset("voc", "train")
    with pytest.raises(ValueError, match="split must be one of"):
        open_dataset("scenes", "test")
    with pytest.raises(FileNotFoundError, match=r"must hold labels\.json or labels\.csv"):
        open_dataset("folder", "train", root=tmp_path)


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


def test_cached_maps_must_be_one_per_image():
    augmented = Augmented(Scenes(size=3), Resize((96, 96)))
    with pytest.raises(ValueError, match="one 'features' map for each of 3 images, got 2"):
        WithMaps(augmented, {"features": [torch.zeros(1, 2, 2)] * 2})


def test_label_file_is_plain_json(tmp_path):
    data.WeakLabels(("cat",), {"a": ["cat"]}).save(tmp_path / "labels.json")
    json.loads((tmp_path / "labels.json").read_text())
