import pickle
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from two_ranks import run_two_ranks

from wsss_blocks.data import (
    COCO,
    DIGIT_NAMES,
    VOC2012,
    FolderDataset,
    Scenes,
    UsableImages,
    WeakLabels,
    open_dataset,
    step_loader,
    training_transform,
    usable_images,
    write_coco_layout,
    write_voc_layout,
)
from wsss_blocks.distributed import gather_objects

ROWS = {name: ["cat"] for name in ("a", "b", "c", "d", "e", "g")}


@pytest.fixture
def photos(tmp_path):
    """Five good photographs, four that are broken, one unlabelled, one without class, one lost."""
    root = tmp_path / "my photos"
    root.mkdir()
    rng = np.random.default_rng(0)
    names = ("a", "b", "c", "d", "e", "empty", "new", "cut", "zero", "text", "soup")
    for name in names:
        pixels = rng.integers(0, 255, (40, 30, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(root / f"{name}.jpg")
    raw = (root / "cut.jpg").read_bytes()
    (root / "cut.jpg").write_bytes(raw[: len(raw) // 2])
    (root / "zero.jpg").write_bytes(b"")
    (root / "text.jpg").write_text("no image")
    (root / "soup.jpg").write_bytes(b"\xff\xd8\xff" + rng.bytes(500))
    rows = {name: ["cat"] for name in names if name not in ("empty", "new")}
    WeakLabels(("cat", "dog"), {**rows, "empty": [], "lost": ["dog"]}).save(root / "labels.csv")
    return root


def test_what_cannot_be_used_is_left_out_with_its_reason(photos):
    dataset = open_dataset("folder", "train", root=photos, strict=False)
    usable = usable_images(dataset)
    assert usable.ids == ["a", "b", "c", "d", "e"]
    assert usable.names == ("cat", "dog")
    assert [sample["id"] for sample in (usable[i] for i in range(len(usable)))] == usable.ids
    assert [usable.path(i).name for i in range(2)] == ["a.jpg", "b.jpg"]
    kinds = {name: reason.split(": ")[0] for name, reason in usable.skipped.items()}
    assert kinds == {
        "lost": "without an image",
        "new": "without labels",
        "empty": "without any class",
        **dict.fromkeys(("cut", "zero", "text", "soup"), "cannot be read"),
    }
    for name in ("cut", "zero", "text", "soup", "new"):
        assert str(photos / f"{name}.jpg") in usable.skipped[name]
    assert "truncated" in usable.skipped["cut"]
    line = usable.describe()
    assert line.startswith("5 images; 7 skipped: 4 cannot be read (")
    assert "\n" not in line
    for part in ("1 without an image (", "1 without any class (", "1 without labels ("):
        assert part in line
    assert torch.equal(usable.labels["a"], torch.tensor([1.0, 0.0]))


def test_describe_of_a_clean_set(photos):
    for name in ("cut", "zero", "text", "soup"):
        (photos / f"{name}.jpg").unlink()
    labels = WeakLabels(("cat",), {name: ["cat"] for name in "abcde"})
    usable = usable_images(FolderDataset(photos, labels))
    assert usable.describe() == "5 images"
    assert usable.skipped == {}


def test_images_without_class_are_kept_on_request(photos):
    dataset = open_dataset("folder", "train", root=photos, strict=False)
    kept = usable_images(dataset, keep_empty=True)
    assert kept.ids == ["a", "b", "c", "d", "e", "empty"]
    assert "empty" not in kept.skipped
    assert not kept[5]["labels"].any()


def test_images_alone_have_no_class_to_lack(photos):
    usable = usable_images(FolderDataset(photos, None))
    assert usable.ids == ["a", "b", "c", "d", "e", "empty", "new"]
    assert usable.labels is None
    assert "labels" not in usable[0]


def test_strict_names_files(photos):
    dataset = open_dataset("folder", "train", root=photos, strict=False)
    with pytest.raises(ValueError, match=r"all images must be usable, got 6 that are not: ") as e:
        usable_images(dataset, strict=True)
    assert str(photos) in str(e.value)
    assert str(e.value).endswith("; ...")
    labels = WeakLabels(("cat",), {name: ["cat"] for name in ("a", "cut")})
    with pytest.raises(ValueError, match=r"got 1 that are not: 'cut' cannot be read: .*cut.jpg: "):
        usable_images(FolderDataset(photos, labels), strict=True)
    clean = FolderDataset(photos, labels, ids=["a"])
    assert usable_images(clean, strict=True).ids == ["a"]


def test_nothing_left(photos):
    labels = WeakLabels(("cat",), {"cut": ["cat"], "empty": []})
    with pytest.raises(
        ValueError, match=r"at least one image must be usable, got 2 that are not: "
    ):
        usable_images(FolderDataset(photos, labels))
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        usable_images(Scenes(size=2), threads=0)


def test_files_that_vanish_after_opening(photos):
    dataset = open_dataset("folder", "train", root=photos, strict=False)
    (photos / "b.jpg").unlink()
    usable = usable_images(dataset)
    assert usable.ids == ["a", "c", "d", "e"]
    assert "No such file" in usable.skipped["b"]


@pytest.mark.parametrize("threads", [1, 8])
def test_the_answer_is_always_the_same(photos, threads):
    dataset = open_dataset("folder", "train", root=photos, strict=False)
    first, again = usable_images(dataset, threads=threads), usable_images(dataset, threads=3)
    assert first.ids == again.ids
    assert list(first.skipped.items()) == list(again.skipped.items())


def test_the_order_is_that_of_the_data_set(photos):
    rows = {name: ["cat"] for name in ("e", "zero", "b", "cut", "c")}
    usable = usable_images(FolderDataset(photos, WeakLabels(("cat",), {**rows, "empty": []})))
    assert usable.ids == ["e", "b", "c"]
    assert list(usable.skipped) == ["zero", "cut", "empty"]


def test_training_on_the_rest_is_training_on_a_clean_copy(photos, tmp_path):
    clean = tmp_path / "clean"
    clean.mkdir()
    for name in "abcde":
        shutil.copy(photos / f"{name}.jpg", clean)
    WeakLabels(("cat", "dog"), {n: ["cat"] for n in "abcde"}).save(clean / "labels.json")
    options = {"batch_size": 2, "steps": 4, "seed": 5}
    dirty = usable_images(open_dataset("folder", "train", root=photos, strict=False))
    tidy = usable_images(open_dataset("folder", "train", root=clean))
    for a, b in zip(
        step_loader(dirty, training_transform(32), workers=1, **options),
        step_loader(tidy, training_transform(32), **options),
        strict=True,
    ):
        assert a["id"] == b["id"]
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["labels"], b["labels"])


def test_no_mask_is_opened(photos, monkeypatch):
    (photos / "masks").mkdir()
    (photos / "masks" / "a.png").write_bytes(b"broken")
    opened = []
    real = PIL.Image.open
    monkeypatch.setattr(PIL.Image, "open", lambda p, *a: opened.append(str(p)) or real(p, *a))
    usable_images(open_dataset("folder", "train", root=photos, with_masks=True, strict=False))
    assert not [name for name in opened if "masks" in name]
    assert len(opened) == 10  # each once


def test_scenes_pass_unchanged():
    scenes = Scenes(size=5)
    usable = usable_images(scenes)
    assert usable.ids == scenes.ids
    assert usable.describe() == "5 images"
    for a, b in ((usable[i], scenes[i]) for i in range(5)):
        assert torch.equal(a["image"], b["image"])
        assert a["caption"] == b["caption"]
    with pytest.raises(ValueError, match="dataset must have files, got Scenes"):
        usable.path(0)
    assert usable_images(usable).ids == scenes.ids


def test_views_of_views(photos):
    dataset = open_dataset("folder", "train", root=photos, strict=False)
    once = usable_images(dataset)
    twice = usable_images(once)
    assert twice.ids == once.ids
    assert twice.skipped == once.skipped
    assert twice.path(1) == once.path(1)
    first = usable_images(UsableImages(dataset, range(6), {}), keep_empty=True)
    assert first.ids == [name for name in dataset.ids[:6] if name in "abcde"]
    restored = pickle.loads(pickle.dumps(once))
    assert restored.ids == once.ids
    assert torch.equal(restored[2]["image"], once[2]["image"])


def test_voc_and_coco(tmp_path):
    voc = write_voc_layout(tmp_path, train=3, val=1)
    (voc / "JPEGImages" / "train_00001.jpg").write_bytes(b"")
    (voc / "Annotations" / "train_00002.xml").unlink()
    usable = usable_images(VOC2012(voc, names=DIGIT_NAMES, strict=False))
    assert usable.ids == ["train_00000"]
    assert usable.path(0) == voc / "JPEGImages" / "train_00000.jpg"
    assert usable.describe().startswith("1 images; 2 skipped: 1 cannot be read (")
    coco = write_coco_layout(tmp_path / "coco", train=3, val=1)
    (coco / "train2014" / "COCO_train2014_000000000002.jpg").write_bytes(b"\xff\xd8\xff")
    usable = usable_images(COCO(coco))
    assert [name[-1] for name in usable.ids] == ["1", "3"]
    assert usable.path(1).name == "COCO_train2014_000000000003.jpg"


# --- process groups ---------------------------------------------------------------------------


def test_gathering_objects_in_one_process():
    thing = {"a": 1}
    assert gather_objects(thing)[0] is thing


SCRIPT = """
import sys
import torch.distributed as dist
from pathlib import Path
from wsss_blocks.data import images, open_dataset, usable, usable_images
from wsss_blocks.distributed import gather_objects

rank, store, root = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
dataset = open_dataset("folder", "train", root=root, strict=False)
alone = usable_images(dataset)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
assert gather_objects({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
checked = []
usable.check_image = lambda path: checked.append(path.name) or images.check_image(path)
together = usable_images(dataset)
assert together.ids == alone.ids
assert list(together.skipped.items()) == list(alone.skipped.items())
shares = gather_objects(sorted(checked))
assert sorted(shares[0] + shares[1]) == sorted(dataset.path(i).name for i in range(len(dataset)))
assert abs(len(shares[0]) - len(shares[1])) <= 1
try:
    usable_images(dataset, strict=True)
except ValueError as error:
    assert gather_objects(str(error)) == [str(error)] * 2
else:
    raise SystemExit("not strict")
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.ddp
def test_two_processes_share_the_work_and_agree(photos, tmp_path):
    run_two_ranks(SCRIPT, tmp_path / "store", photos, timeout=120)


@pytest.mark.real_data
def test_the_real_subset_is_whole(shared_data):
    root = shared_data / "VOCdevkit"
    train = usable_images(VOC2012(root, "train"))
    assert (len(train), train.describe()) == (311, "311 images")


def test_paths_of_masks_are_passed_on(tmp_path):
    root = write_voc_layout(tmp_path, train=3, val=1)
    (root / "JPEGImages" / "train_00001.jpg").write_bytes(b"")
    data = VOC2012(root, names=DIGIT_NAMES, with_masks=True)
    view = UsableImages(usable_images(data), [1], {})
    assert view.mask_path(0) == root / "SegmentationClass" / "train_00002.png"
    assert view.mask_ids is None
    data.mask_ids = torch.arange(256, dtype=torch.uint8).flip(0)
    assert torch.equal(usable_images(data).mask_ids, data.mask_ids)
    with pytest.raises(ValueError, match="dataset must have masks, got Scenes"):
        usable_images(Scenes(size=2)).mask_path(0)
    with pytest.raises(ValueError, match="must be opened with masks"):
        usable_images(VOC2012(root, names=DIGIT_NAMES)).mask_path(0)
