import os
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from wsss_blocks.data import (
    VOC2012,
    VOC_NAMES,
    VocAug,
    WeakLabels,
    build_voc_aug,
    read_mask,
    write_mask,
)

TRAIN, VAL = ["2007_000001", "2007_000002"], ["2007_000003"]
SBD_TRAIN, SBD_VAL = ["2007_000002", "2008_000001"], ["2007_000003", "2008_000002"]
AUG = ["2007_000001", "2007_000002", "2008_000001", "2008_000002"]
SIZE = (6, 9)


def ids_of(seed, *, border=False):
    ids = np.random.default_rng(seed).integers(0, 21, SIZE).astype(np.uint8)
    if border:
        ids[0] = 255
    return ids


def write_mat(path, ids):
    savemat(path, {"GTcls": {"Segmentation": ids, "CategoriesPresent": np.unique(ids)}})


@pytest.fixture
def roots(tmp_path):
    voc, sbd = tmp_path / "VOC devkit é" / "VOC2012", tmp_path / "benchmark_RELEASE" / "dataset"
    lists = voc / "ImageSets" / "Segmentation"
    for folder in (lists, voc / "JPEGImages", sbd / "cls"):
        folder.mkdir(parents=True)
    for folder, parts in ((lists, (TRAIN, VAL)), (sbd, (SBD_TRAIN, SBD_VAL))):
        for split, names in zip(("train", "val"), parts, strict=True):
            (folder / f"{split}.txt").write_text("\n".join(names) + "\n")
    for k, name in enumerate(TRAIN + VAL):
        write_mask(voc / "SegmentationClass" / f"{name}.png", ids_of(k, border=True))
    for k, name in enumerate(SBD_TRAIN + SBD_VAL, 10):
        write_mat(sbd / "cls" / f"{name}.mat", ids_of(k))
    for name in AUG:  # the image of val is not there: only headers of those that are get read
        Image.new("RGB", SIZE[::-1]).save(voc / "JPEGImages" / f"{name}.jpg")
    return voc, sbd


def build(roots, **options):
    return build_voc_aug(*roots, allow_incomplete=True, **options)


def listing(voc):
    return voc / "ImageSets" / "Segmentation" / "train_aug.txt"


def test_masks_and_list(roots):
    voc, _ = roots
    done = build(roots)
    assert isinstance(done, VocAug)
    assert done.ids == AUG == listing(voc).read_text().split()
    assert done.written == 5
    folder = voc / "SegmentationClassAug"
    assert sorted(os.listdir(folder)) == sorted(f"{name}.png" for name in AUG + VAL)
    expected = {
        "2007_000001": ids_of(0, border=True),  # VOC alone
        "2007_000002": ids_of(1, border=True),  # in both: VOC's, with its borders
        "2007_000003": ids_of(2, border=True),  # val, though SBD has it in its val list
        "2008_000001": ids_of(11),
        "2008_000002": ids_of(13),
    }
    for name, ids in expected.items():
        assert np.array_equal(read_mask(folder / f"{name}.png"), ids)
    with (
        Image.open(folder / "2008_000001.png") as image,
        Image.open(voc / "SegmentationClass" / "2007_000001.png") as own,
    ):
        assert image.mode == "P"
        assert image.getpalette() == own.getpalette()
    labels = WeakLabels(VOC_NAMES, dict.fromkeys(AUG, ()))
    data = VOC2012(
        voc, "train_aug", labels=labels, mask_folder="SegmentationClassAug", with_masks=True
    )
    assert data.ids == AUG
    assert np.array_equal(data[2]["mask"], ids_of(11))


@pytest.mark.parametrize("where", ["", "..", "../.."])
def test_any_folder_of_sbd_will_do(roots, where, tmp_path):
    voc, sbd = roots
    if where == "../..":
        assert (sbd / where).resolve() == tmp_path
    found = build_voc_aug(voc.parent, (sbd / where).resolve(), allow_incomplete=True)
    assert found.ids == AUG


def test_a_second_call_keeps_what_is_right(roots):
    voc, _ = roots
    first = build(roots)
    stamps = {p: p.stat().st_mtime_ns for p in voc.rglob("*") if p.is_file()}
    (voc / "SegmentationClassAug" / "2008_000001.png").unlink()
    again = build(roots, workers=1)
    assert again == first._replace(written=1)
    changed = [p.name for p, stamp in stamps.items() if p.stat().st_mtime_ns != stamp]
    assert changed == ["2008_000001.png"]


def test_the_hash_is_of_the_pixels(roots, tmp_path):
    voc, sbd = roots
    first = build(roots)
    other = tmp_path / "other"
    shutil.copytree(voc, other)
    shutil.rmtree(other / "SegmentationClassAug")
    grey = Image.fromarray(ids_of(0, border=True))  # the same ids in another kind of PNG
    grey.save(other / "SegmentationClass" / "2007_000001.png")
    assert build((other, sbd)).hash == first.hash
    shutil.rmtree(other / "SegmentationClassAug")
    write_mask(other / "SegmentationClass" / "2007_000003.png", ids_of(98))  # val is not hashed
    assert build((other, sbd)).hash == first.hash
    write_mat(sbd / "cls" / "2008_000002.mat", ids_of(99))
    assert build((other, sbd), overwrite=True).hash != first.hash


def test_what_differs_is_not_replaced_unasked(roots):
    voc, _ = roots
    target = voc / "SegmentationClassAug" / "2008_000001.png"
    write_mask(target, ids_of(50))
    with pytest.raises(ValueError, match=r"1 of 5 .*\n  .*2008_000001.png exists and is another"):
        build(roots)
    assert np.array_equal(read_mask(target), ids_of(50))
    assert not listing(voc).exists()
    build(roots, overwrite=True)
    assert np.array_equal(read_mask(target), ids_of(11))
    listing(voc).write_text("2007_000001\n")
    with pytest.raises(FileExistsError, match=r"train_aug.txt exists and is another list"):
        build(roots)
    assert build(roots, overwrite=True).written == 0
    # DeepLab's list of the same images, in its own order and form, is right.
    text = "".join(f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png\n" for i in reversed(AUG))
    listing(voc).write_text(text)
    build(roots)
    assert listing(voc).read_text() == text


def test_another_number_of_images_is_an_error(roots):
    voc, sbd = roots
    message = (
        r"must have 10,582 images, got 4: SBD train 2 \(official 8,498\), SBD val 2 \(2,857\), "
        r"VOC train 2 \(1,464\), without those of VOC val 1 \(1,449\). Nothing was written"
    )
    with pytest.raises(ValueError, match=message):
        build_voc_aug(voc, sbd)
    assert not (voc / "SegmentationClassAug").exists()


def test_every_broken_file_is_named_and_counted(roots):
    voc, sbd = roots
    whole = (sbd / "cls" / "2008_000001.mat").read_bytes()
    (sbd / "cls" / "2008_000001.mat").write_bytes(whole[: len(whole) // 2])
    (sbd / "cls" / "2008_000002.mat").unlink()
    (voc / "SegmentationClass" / "2007_000003.png").unlink()
    with pytest.raises(ValueError, match=r"^3 of 5 masks could not be built.*train_aug") as error:
        build(roots)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 3
    assert "2008_000001.mat cannot be read as an SBD mask" in lines[0]
    assert "no SBD mask at" in lines[1]
    assert "2008_000002.mat" in lines[1]
    assert "2007_000003.png" in lines[2]
    assert not listing(voc).exists()
    (sbd / "cls" / "2008_000001.mat").write_bytes(whole)
    write_mat(sbd / "cls" / "2008_000002.mat", ids_of(13))
    write_mask(voc / "SegmentationClass" / "2007_000003.png", ids_of(2))
    assert build(roots).written == 3  # those that were right are there


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as an SBD mask"),
        (b"not a mat file" * 100, "cannot be read as an SBD mask"),
        ({"GTinst": {"Segmentation": ids_of(0)}}, "cannot be read as an SBD mask: KeyError"),
        ({"GTcls": ids_of(0)}, "cannot be read as an SBD mask"),
        ({"GTcls": {"Segmentation": np.full(SIZE, 21, np.uint8)}}, r"ids 0..20, got \[21\]"),
        ({"GTcls": {"Segmentation": np.full(SIZE, 0.5)}}, r"must hold ids \(H, W\), got float64"),
        ({"GTcls": {"Segmentation": ids_of(0).T}}, r"size \(6, 9\) of .*2008_000001.jpg, got \(9"),
    ],
)
def test_broken_mat_files(roots, content, message):
    _, sbd = roots
    path = sbd / "cls" / "2008_000001.mat"
    path.write_bytes(content) if isinstance(content, bytes) else savemat(path, content)
    with pytest.raises(ValueError, match=rf"1 of 5 .*\n.*2008_000001.mat.*{message}"):
        build(roots)


def test_wrong_roots(roots, tmp_path):
    voc, sbd = roots
    with pytest.raises(FileNotFoundError, match=r"no VOC ?2012 layout"):
        build_voc_aug(tmp_path / "no", sbd)
    with pytest.raises(FileNotFoundError, match=r"no SBD .*benchmark_RELEASE.*benchmark.tgz"):
        build_voc_aug(voc, tmp_path / "no")
    (sbd / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no id list at .*val.txt"):
        build_voc_aug(voc, sbd)


def test_progress_sees_every_mask(roots):
    seen = []

    def progress(items, *, total):
        for item in items:
            seen.append(total)
            yield item

    build(roots, progress=progress)
    assert seen == [5] * 5


def test_interrupted(roots):
    voc, _ = roots

    def stop(items, *, total):
        yield next(iter(items))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(roots, progress=stop, workers=1)
    assert not listing(voc).exists()
    assert not [p for p in voc.rglob("*") if p.name.endswith(".tmp")]
    assert len(build(roots).ids) == 4
