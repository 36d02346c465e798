import io
import unicodedata

import numpy as np
import PIL.Image
import pytest
import torch

from wsss_blocks._files import replaced
from wsss_blocks.data import (
    FolderDataset,
    WeakLabels,
    open_dataset,
    read_image,
    read_mask,
    write_mask,
)

ROWS = {"cat/1": ["cat"], "cat/2": ["cat"], "dog/1": ["dog"], "none": []}


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(array).save(path, **options)


@pytest.fixture
def images(tmp_path):
    for name in ("cat/1.jpg", "cat/2.png", "dog/1.jpeg", "none.png"):
        save(tmp_path / "images" / name, np.full((4, 6, 3), 100, np.uint8))
    (tmp_path / "images" / "cat" / "notes.txt").touch()
    save(tmp_path / "masks" / "cat" / "1.png", np.ones((4, 6), np.uint8))
    return tmp_path / "images"


def test_folder_per_class(images):
    data = FolderDataset(images, WeakLabels.from_folders(images))
    assert data.names == ("cat", "dog")
    found = {sample["id"]: sample["labels"].tolist() for sample in data}
    assert found == {"cat/1": [1, 0], "cat/2": [1, 0], "dog/1": [0, 1], "none": [0, 0]}
    assert data[0]["image"].shape == (3, 4, 6)
    assert "mask" not in data[0]


def test_csv_labels_chosen_ids_and_masks(images):
    csv = images.parent / "labels.csv"
    csv.write_text("id,labels\ncat/1,cat;dog\ndog/1,dog\n")
    data = FolderDataset(
        images, WeakLabels.load(csv), masks_dir=images.parent / "masks", ids=["cat/1"]
    )
    assert len(data) == 1
    assert data[0]["labels"].tolist() == [1, 1]
    assert data[0]["mask"].eq(1).all()


def test_images_alone(images):
    data = FolderDataset(images, None)
    assert data.ids == ["cat/1", "cat/2", "dog/1", "none"]
    assert "labels" not in data[0]
    assert data.names == ()


def test_folder_errors(images, tmp_path):
    labels = WeakLabels(("cat", "dog"), ROWS)
    with pytest.raises(FileNotFoundError, match="images_dir must be a folder"):
        FolderDataset(tmp_path / "gone", labels)
    more = WeakLabels(("cat", "dog"), {**ROWS, "cat/9": ["cat"]})
    with pytest.raises(FileNotFoundError, match=r"1 of 5 ids have no image in .*: 'cat/9'"):
        FolderDataset(images, more)
    with pytest.raises(
        ValueError, match=r"1 of 2 ids have no row in labels: '1'.*named like 'cat/1'"
    ):
        FolderDataset(images, labels, ids=["cat/1", "1"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in"):
        FolderDataset(tmp_path / "empty", None)
    save(images / "none.jpg", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"two images with id 'none': none.jpg, none.png"):
        FolderDataset(images, labels)
    unmasked = FolderDataset(images / "dog", None, masks_dir=tmp_path / "masks" / "dog")
    with pytest.raises(FileNotFoundError, match=r"no image at .*dog.1.png"):
        unmasked[0]


# --- ids as people write them -----------------------------------------------------------------


@pytest.mark.parametrize(
    "rows", [("IMG_1", "b.c"), ("IMG_1.JPG", "b.c.png"), ("IMG_1.jpg", "b.c.PNG")]
)
def test_ids_may_carry_the_suffix_in_any_case(tmp_path, rows):
    for name in ("IMG_1.JPG", "b.c.png"):
        save(tmp_path / name, np.zeros((2, 3, 3), np.uint8))
    labels = WeakLabels(("cat", "dog"), {rows[0]: ["cat"], rows[1]: ["dog"]})
    for chosen in (None, ["IMG_1", "b.c"], ["IMG_1.jpg", "b.c.png"]):
        data = FolderDataset(tmp_path, labels, ids=chosen)
        assert data.ids == ["IMG_1", "b.c"]
        assert [data.path(i).name for i in range(2)] == ["IMG_1.JPG", "b.c.png"]
        samples = [data[i] for i in range(2)]
        assert [s["id"] for s in samples] == ["IMG_1", "b.c"]
        assert [s["labels"].tolist() for s in samples] == [[1, 0], [0, 1]]
        assert data.labels.ids == data.ids


def test_only_the_suffix_is_compared_without_case(tmp_path):
    save(tmp_path / "img_1.jpg", np.zeros((2, 3, 3), np.uint8))
    for row in ("IMG_1", "IMG_1.jpg", "img_1.png", "img_1.jpeg"):
        with pytest.raises(FileNotFoundError, match=r"1 of 1 ids have no image.*like 'img_1.jpg'"):
            FolderDataset(tmp_path, WeakLabels(("cat",), {row: []}))


def test_accents_match_however_they_are_composed(tmp_path):
    name = unicodedata.normalize("NFD", "März é 東")  # as a Mac writes file names
    save(tmp_path / f"{name}.png", np.zeros((2, 3, 3), np.uint8))
    row = unicodedata.normalize("NFC", name)  # as a table holds them
    assert row != name
    for spelling in (row, f"{row}.PNG", name):
        data = FolderDataset(tmp_path, WeakLabels(("cat",), {spelling: ["cat"]}))
        assert data[0]["labels"].tolist() == [1]
        assert data.path(0).is_file()


def test_ambiguous_ids_name_both(tmp_path):
    for name in ("a.jpg", "a.png", "b.jpg", "b.jpg.png", "c.png"):
        save(tmp_path / name, np.zeros((2, 3, 3), np.uint8))

    def opened(*rows, **options):
        return FolderDataset(tmp_path, WeakLabels(("cat",), dict.fromkeys(rows, ())), **options)

    for strict in (True, False):
        with pytest.raises(ValueError, match=r"two images with id 'a': a.jpg, a.png"):
            opened("a", strict=strict)
        with pytest.raises(ValueError, match=r"two images with id 'a': a.jpg, a.png"):
            opened("a.jpg", "a.png", strict=strict)
        with pytest.raises(ValueError, match=r"two images with id 'b.jpg': b.jpg, b.jpg.png"):
            opened("b.jpg", strict=strict)
        with pytest.raises(
            ValueError, match=r"labels must have one row for .*c.png, got 'c' and 'c.PNG'"
        ):
            opened("c", "c.PNG", strict=strict)
    # One of the two is meant, and said so; what nobody means is no trouble.
    assert opened("a.PNG", "c").path(0).name == "a.png"
    assert opened("b", "b.jpg.png").ids == ["b", "b.jpg"]


def test_lenient_opening_records_what_is_left_out(images):
    labels = WeakLabels(("cat", "dog"), {"cat/1.jpg": ["cat"], "dog/1": ["dog"], "dog/9": ["dog"]})
    data = FolderDataset(images, labels, strict=False)
    assert data.ids == ["cat/1", "dog/1"]
    assert data.skipped == {
        "dog/9": f"without an image: no file for 'dog/9' in {images}",
        "cat/2": f"without labels: no row for {images / 'cat' / '2.png'}",
        "none": f"without labels: no row for {images / 'none.png'}",
    }
    chosen = FolderDataset(images, labels, ids=["dog/1", "none", "gone"], strict=False)
    assert chosen.ids == ["dog/1"]
    assert list(chosen.skipped) == ["none", "gone"]
    strict = FolderDataset(images, labels.subset(["cat/1.jpg", "dog/1"]))
    assert strict.skipped == {}
    assert strict.labels == WeakLabels(("cat", "dog"), {"cat/1": ["cat"], "dog/1": ["dog"]})
    with pytest.raises(
        ValueError,
        match=r"no image in .* can be used: 5 skipped: 1 without an image \(no file for .*\),"
        r" 4 without labels \(no row for .*\).",
    ):
        FolderDataset(images, WeakLabels(("cat",), {"x": []}), strict=False)


def test_folders_may_be_excluded(images):
    data = FolderDataset(images, None, exclude=("cat",))
    assert data.ids == ["dog/1", "none"]
    deeper = images / "dog" / "cat" / "2.png"
    save(deeper, np.zeros((2, 2, 3), np.uint8))
    assert FolderDataset(images, None, exclude=("cat",)).ids == ["dog/1", "dog/cat/2", "none"]


def test_links_to_folders_are_followed_but_not_in_circles(images, tmp_path):
    root = tmp_path / "linked"
    root.mkdir()
    for name in ("cat", "dog"):
        (root / name).symlink_to(images / name, target_is_directory=True)
    (root / "puppy").symlink_to(images / "dog", target_is_directory=True)  # twice is no circle
    save(images / "cat" / "old" / "3.png", np.zeros((2, 3, 3), np.uint8))
    for circle, target in {
        root / "all": root,
        root / "above": tmp_path,
        images / "cat" / "self": images / "cat",
        images / "cat" / "old" / "back": root,
    }.items():
        circle.symlink_to(target, target_is_directory=True)
    (root / "gone").symlink_to(tmp_path / "nowhere")
    ids = ["cat/1", "cat/2", "dog/1", "puppy/1"]
    labels = WeakLabels.from_folders(root)
    assert (labels.names, labels.ids) == (("cat", "dog", "puppy"), ids)
    assert FolderDataset(root, labels).ids == ids
    data = open_dataset("folder", "train", root=root)
    assert data.names == labels.names
    assert [sample["labels"].tolist() for sample in data][2:] == [[0, 1, 0], [0, 0, 1]]
    assert FolderDataset(root, None).ids == ["cat/1", "cat/2", "cat/old/3", "dog/1", "puppy/1"]


# --- files ------------------------------------------------------------------------------------


def test_every_kind_of_image_becomes_upright_rgb(tmp_path):
    path = tmp_path / "x.png"
    grey = np.array([[0, 128, 255]], np.uint8)
    save(path, grey)
    assert torch.equal(read_image(path), torch.tensor([0, 128, 255]).div(255).expand(3, 1, 3))
    save(path, grey.astype(np.uint16) * 257)
    assert torch.equal(read_image(path), torch.tensor([0, 128, 255]).div(255).expand(3, 1, 3))
    save(path, np.dstack([grey, grey, grey, grey // 2]))
    assert torch.equal(read_image(path), torch.tensor([0, 128, 255]).div(255).expand(3, 1, 3))
    PIL.Image.fromarray(grey).convert("1").save(path)
    assert set(read_image(path).unique().tolist()) <= {0.0, 1.0}
    jpeg = tmp_path / "x.jpg"
    cyan = PIL.Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    cyan.save(jpeg, quality=100)
    colour = read_image(jpeg).mean((1, 2))
    assert colour[0] < 0.1
    assert (colour[1:] > 0.9).all()
    left_bright = np.zeros((8, 16, 3), np.uint8)
    left_bright[:, :8] = 255
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by a quarter: left becomes top
    save(jpeg, left_bright, exif=exif, quality=100)
    upright = read_image(jpeg)
    assert upright.shape == (3, 16, 8)
    assert upright[:, :7].min() > 0.9
    assert upright[:, 9:].max() < 0.1


def test_broken_images_are_named(tmp_path):
    path = tmp_path / "broken.jpg"
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
        buffer, "JPEG"
    )
    path.write_bytes(buffer.getvalue()[:1500])
    with pytest.raises(OSError, match=r"broken.jpg cannot be read as an image: .*truncated"):
        read_image(path)
    path.write_bytes(b"not an image")
    with pytest.raises(OSError, match=r"broken.jpg cannot be read as an image"):
        read_image(path)
    path.write_bytes(b"")
    with pytest.raises(OSError, match=r"broken.jpg cannot be read as an image"):
        read_mask(path)
    with pytest.raises(FileNotFoundError, match=r"no image at .*gone.jpg"):
        read_image(tmp_path / "gone.jpg")
    save(path.with_suffix(".png"), np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"broken.png must be an indexed or grey mask.*'RGB'"):
        read_mask(path.with_suffix(".png"))


def test_masks_are_read_as_ids(tmp_path):
    path = tmp_path / "m.png"
    save(path, np.array([[0, 7, 255]], np.uint8))
    assert read_mask(path).tolist() == [[0, 7, 255]]
    save(path, np.array([[0, 300]], np.uint16))  # more than 255 classes
    assert read_mask(path).tolist() == [[0, 300]]
    indexed = PIL.Image.fromarray(np.array([[2, 0]], np.uint8))
    indexed.putpalette([9, 9, 9, 1, 2, 3, 200, 0, 0])
    indexed.save(path)
    assert read_mask(path).tolist() == [[2, 0]]


def test_write_mask_errors(tmp_path):
    path = tmp_path / "m.png"
    with pytest.raises(ValueError, match=r"mask must have shape \(H, W\), got \(1, 2, 2\)"):
        write_mask(path, torch.zeros(1, 2, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match="mask must hold integers, got float32"):
        write_mask(path, torch.zeros(2, 2))
    for bad in (-1, 256):
        with pytest.raises(ValueError, match=r"mask must hold ids in \[0, 255\]"):
            write_mask(path, torch.tensor([[0, bad]]))
    assert not path.exists()


def test_replaced_leaves_nothing_behind(tmp_path):
    path = tmp_path / "deep" / "x.txt"
    with replaced(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    with pytest.raises(ZeroDivisionError), replaced(path) as temporary:
        temporary.write_text(str(1 / 0))
    with pytest.raises(FileNotFoundError), replaced(path):
        pass  # nothing was written
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]


def test_package_is_lazy():
    import subprocess
    import sys

    code = (
        "import sys, wsss_blocks.data as d; assert 'torch' not in sys.modules;"
        "d.StepSampler, d.WeakLabels, d.Scenes, d.VOC2012, d.replay, d.collate;"
        "assert not {'torchvision', 'PIL', 'sklearn'} & set(sys.modules);"
        "assert set(d.__all__) <= set(dir(d)); [getattr(d, n) for n in d.__all__];"
        "assert 'torchvision' in sys.modules\n"
        "try: d.nothing\nexcept AttributeError: print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "ok", done.stderr


def test_paths_of_masks(tmp_path):
    for folder in ("images/cat", "masks/cat"):
        (tmp_path / folder).mkdir(parents=True)
    PIL.Image.new("RGB", (3, 2)).save(tmp_path / "images" / "cat" / "1.JPG")
    PIL.Image.new("L", (3, 2), 1).save(tmp_path / "masks" / "cat" / "1.png")
    data = FolderDataset(tmp_path / "images", None, masks_dir=tmp_path / "masks")
    assert data.mask_path(0) == tmp_path / "masks" / "cat" / "1.png"
    assert data.mask_ids is None
    assert data[0]["mask"].tolist() == [[1, 1, 1]] * 2
    with pytest.raises(ValueError, match=r"must be opened with masks \(with_masks or masks_dir\)"):
        FolderDataset(tmp_path / "images", None).mask_path(0)
