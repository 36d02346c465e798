import json
import pickle

import numpy as np
import PIL.Image
import pytest
import torch

from wsss_blocks.data import (
    Augmented,
    Compose,
    ImageTextPairs,
    RandomCaption,
    RandomHorizontalFlip,
    StepSampler,
    collate,
    new_sample,
    step_loader,
    usable_images,
)

CAPTIONS = {
    "a": ["Ein Hund läuft.", "a dog"],
    "sub dir/b": ['he said "hi", twice'],
    "c": ["three", "3", "trois"],
}


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "my photos"
    (root / "sub dir").mkdir(parents=True)
    for shade, name in enumerate(("a.jpg", "sub dir/b.PNG", "c.jpeg", "d.jpg")):
        PIL.Image.fromarray(np.full((4, 6, 3), 50 * shade, np.uint8)).save(root / name)
    return root


def check(pairs):
    assert pairs.ids == list(CAPTIONS)
    assert len(pairs) == 3
    assert pairs.skipped == {}
    for index, (name, captions) in enumerate(CAPTIONS.items()):
        sample = pairs[index]
        assert sample["id"] == name
        assert sample["captions"] == captions
        assert sample["caption"] == captions[0]
        assert "labels" not in sample
        assert "mask" not in sample
        assert abs(sample["image"].mean().item() - index * 50 / 255) < 0.02


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize("named", ["{}", "with suffix"])
def test_tables(photos, tmp_path, header, suffix, named):
    import csv

    suffixes = {"a": ".jpg", "sub dir/b": ".PNG", "c": ".jpeg"}
    path = tmp_path / f"captions.{suffix}"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter="\t" if suffix == "tsv" else ",")
        if header:
            writer.writerow(["Image", "caption"])
        for name, captions in CAPTIONS.items():
            shown = name if named == "{}" else name + suffixes[name]
            writer.writerows([shown, text] for text in captions)
        file.write("\n")
    check(ImageTextPairs(photos, path))
    check(ImageTextPairs(str(photos), str(path)))


def test_json_and_mappings(photos, tmp_path):
    one = {**CAPTIONS, "sub dir/b": CAPTIONS["sub dir/b"][0]}
    check(ImageTextPairs(photos, one))
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(one))
    check(ImageTextPairs(photos, path))


def test_coco_captions(photos, tmp_path):
    files = ("a.jpg", "sub dir/b.PNG", "c.jpeg", "d.jpg")
    content = {"images": [{"id": 7 + i, "file_name": f} for i, f in enumerate(files)]}
    content["annotations"] = [
        {"id": 9, "image_id": 7 + i, "caption": f"{text} "}
        for i, captions in enumerate(CAPTIONS.values())
        for text in captions
    ]
    path = tmp_path / "captions_val2017.json"
    path.write_text(json.dumps(content))
    check(ImageTextPairs(photos, path))  # d has no caption and is left out
    lenient = ImageTextPairs(photos, path, strict=False)
    assert lenient.ids == list(CAPTIONS)
    assert lenient.skipped == {"d": f"without captions: no row for {photos / 'd.jpg'}"}


def test_images_and_captions_that_do_not_meet(photos):
    captions = {"a": "x", "lost.jpg": "y"}
    with pytest.raises(FileNotFoundError, match=r"1 of 2 ids have no image in .*'lost.jpg'; the 4"):
        ImageTextPairs(photos, captions)
    pairs = ImageTextPairs(photos, captions, strict=False)
    assert pairs.ids == ["a"]
    kinds = {name: why.split(":")[0] for name, why in pairs.skipped.items()}
    assert kinds == {
        "lost.jpg": "without an image",
        **dict.fromkeys(("c", "d", "sub dir/b"), "without captions"),
    }
    with pytest.raises(ValueError, match=r"one row for .*a.jpg, got 'a' and 'a.JPG'"):
        ImageTextPairs(photos, {"a": "x", "a.JPG": "y"})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.csv", "image,caption\na,one,two\n", r"c.csv:2 must have two cells.*needs quotes"),
        ("c.csv", "a,one\n\nb,\n", r"c.csv:3 must have two cells, image and caption, got \['b', "),
        ("c.tsv", "a one\n", r"c.tsv:1 must have two cells"),
        ("c.csv", "", r"captions must not be empty, got none from .*c.csv"),
        ("c.json", "{", r"c.json is not a JSON file of captions"),
        ("c.json", "[1]", r"c.json must map images to captions, got list"),
        ("c.json", '{"a": []}', r"c.json must give 'a' a caption or a list, got \[\]"),
        ("c.json", '{"a": ["x", 3]}', r"c.json must give 'a' a caption or a list, got \['x', 3\]"),
        ("c.json", '{"a": " "}', r"c.json must give 'a' a caption"),
        ("c.json", '{"a": {"b": "x"}}', r"c.json must give 'a' a caption"),
        ("c.json", '{"images": [], "annotations": [{"image_id": 3}]}', r"not a JSON file of capt"),
        ("c.json", '{"images": 3, "annotations": []}', r"c.json is not a JSON file of captions"),
        ("c.txt", "a one", r"captions must end in .csv, .tsv or .json, got .*c.txt"),
    ],
)
def test_broken_files(photos, tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        ImageTextPairs(photos, path)


def test_other_errors(photos, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no caption file at .*nothing.csv"):
        ImageTextPairs(photos, tmp_path / "nothing.csv")
    with pytest.raises(FileNotFoundError, match=r"images_dir must be a folder, got .*nowhere"):
        ImageTextPairs(tmp_path / "nowhere", {"a": "x"})
    with pytest.raises(TypeError, match=r"captions must be a path or mapping, got list"):
        ImageTextPairs(photos, ["a"])
    with pytest.raises(ValueError, match=r"captions must not be empty"):
        ImageTextPairs(photos, {})


def test_a_sample_is_the_callers_own(photos):
    pairs = ImageTextPairs(photos, CAPTIONS)
    pairs[0]["captions"].clear()
    assert pairs[0]["captions"] == CAPTIONS["a"]
    assert pickle.loads(pickle.dumps(pairs))[2]["captions"] == CAPTIONS["c"]


def test_usable_pairs(photos):
    (photos / "a.jpg").write_bytes(b"")
    view = usable_images(ImageTextPairs(photos, CAPTIONS))
    assert view.ids == ["sub dir/b", "c"]
    assert view[1]["captions"] == CAPTIONS["c"]
    assert view.path(1) == photos / "c.jpeg"
    with pytest.raises(ValueError, match=r"dataset must have masks, got ImageTextPairs"):
        view.mask_path(0)


# --- drawing a caption ------------------------------------------------------------------------


def test_each_caption_is_drawn_and_the_generator_decides():
    sample = {**new_sample(torch.zeros(3, 2, 2), id="a"), "captions": list("xyz"), "caption": "x"}
    draw = [
        RandomCaption()(sample, torch.Generator().manual_seed(seed))["caption"]
        for seed in range(200)
    ]
    assert {draw.count(c) > 40 for c in "xyz"} == {True}
    assert sample["caption"] == "x"
    again = RandomCaption()(sample, torch.Generator().manual_seed(5))
    assert again["caption"] == draw[5]
    assert again["captions"] == ["x", "y", "z"]
    plain = new_sample(torch.zeros(3, 2, 2), id="a")
    assert RandomCaption()(plain, torch.Generator()) is plain


def test_in_a_loader(photos):
    pairs = ImageTextPairs(photos, CAPTIONS)
    transform = Compose(RandomHorizontalFlip(), RandomCaption())
    data = Augmented(pairs, transform)
    sampler = StepSampler(len(pairs), batch_size=3, steps=8)
    seen = set()
    for step in range(8):
        batch = collate([data[i] for i in list(sampler)[step]])
        assert all(c in all_ for c, all_ in zip(batch["caption"], batch["captions"], strict=True))
        seen |= set(batch["caption"])
    assert seen == {text for captions in CAPTIONS.values() for text in captions}
    batch = next(iter(step_loader(pairs, transform, batch_size=2, steps=1)))
    assert batch["image"].shape == (2, 3, 4, 6)
    assert len(batch["caption"]) == 2


@pytest.mark.real_data
def test_real_captions(shared_data):
    root = shared_data / "coco_captions"
    index = json.loads((root / "index.json").read_text())["images"]
    pairs = ImageTextPairs(root / "images", {name: row["captions"] for name, row in index.items()})
    assert len(pairs) == 2072
    sample = pairs[5]
    assert sample["captions"] == [c.strip() for c in index[sample["id"]]["captions"]]
    assert sample["image"].shape[0] == 3
