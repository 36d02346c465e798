from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from wsss_blocks.cli import segment_files
from wsss_blocks.data import read_image, read_mask
from wsss_blocks.metrics import EvaluationProtocol
from wsss_blocks.segmenters import Segmenter


class Brightest(nn.Module):
    """Class of a pixel: its strongest colour."""

    def forward(self, images):
        return images


@pytest.fixture
def segmenter():
    protocol = EvaluationProtocol(
        dataset="toy", split="val", num_images=1, scales=(1.0,), flip=False, refiner="none",
        labels_used=False,
    )  # fmt: skip
    return Segmenter(Brightest(), names=("green", "blue"), protocol=protocol)


def photo(path, seed=0, size=(5, 7)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(
        path
    )
    return path


def below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_masks_and_figures(segmenter, tmp_path):
    files = [photo(tmp_path / "a b.png", 1), photo(tmp_path / "Straße 猫.v2.png", 2, (9, 4))]
    out = tmp_path / "new" / "out put"
    written = segment_files(segmenter, map(str, files), output=str(out))
    assert written == [out / "a b.png", out / "Straße 猫.v2.png"]
    assert below(out) == ["Straße 猫.v2.png", "Straße 猫.v2_overlay.png", "a b.png",
                          "a b_overlay.png", "protocol.json"]  # fmt: skip
    for file, mask in zip(files, written, strict=True):
        expected = segmenter.segment(file)
        assert torch.equal(read_mask(mask), expected.mask)
        assert len(expected.present()) == 3
        expected.save_figure(tmp_path / "figure.png")
        figure = read_image(mask.with_name(f"{mask.stem}_overlay.png"))
        assert torch.equal(figure, read_image(tmp_path / "figure.png"))


def test_a_folder_keeps_its_paths(segmenter, tmp_path):
    source, out = tmp_path / "photos", tmp_path / "out"
    for name in ("b.png", "a/x.jpg", "a/y/x.JPEG", "ü/x.png", ".hidden/x.png", "a/.x.png"):
        photo(source / name)
    (source / "notes.txt").write_text("no image")
    written = segment_files(segmenter, [source], output=out)
    names = ["a/x.png", "a/y/x.png", "b.png", "ü/x.png"]
    assert [p.relative_to(out).as_posix() for p in written] == names
    assert len(below(out)) == 9
    assert "protocol.json" in below(out)


def test_linked_folders_are_segmented_but_not_in_circles(segmenter, tmp_path):
    photo(tmp_path / "elsewhere" / "x.jpg")
    source, out = tmp_path / "photos", tmp_path / "out"
    source.mkdir()
    (source / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (source / "circle").symlink_to(source, target_is_directory=True)
    assert segment_files(segmenter, [source], output=out) == [out / "linked" / "x.png"]


def test_a_second_run_does_not_segment_the_first_ones_masks(segmenter, tmp_path):
    photo(tmp_path / "x.jpg")
    photo(tmp_path / "in" / "y.jpg")
    out = tmp_path / "in" / "masks"
    for _ in range(2):
        written = segment_files(segmenter, [tmp_path], output=out)
        assert [p.relative_to(out).as_posix() for p in written] == ["in/y.png", "x.png"]


def test_an_image_named_twice_is_done_once(segmenter, tmp_path, monkeypatch):
    photo(tmp_path / "photos" / "x.jpg")
    monkeypatch.chdir(tmp_path)
    paths = [Path("photos/x.jpg"), tmp_path / "photos" / "x.jpg", Path("photos")]
    assert segment_files(segmenter, paths, output=Path("out")) == [Path("out/x.png")]
    assert segment_files(segmenter, [], output=tmp_path / "none") == []


@pytest.mark.parametrize(
    "names",
    [
        ("a/x.jpg", "b/x.jpg"),
        ("a/x.jpg", "a/x.png"),
        ("a/x.jpg", "b/x_overlay.jpg"),  # the mask of one is called like the figure of the other
    ],
)
def test_results_with_one_name_are_refused_before_anything_is_written(segmenter, tmp_path, names):
    files = [photo(tmp_path / name) for name in names]
    with pytest.raises(ValueError, match="results must have different names") as error:
        segment_files(segmenter, files, output=tmp_path / "out")
    assert all(str(file) in str(error.value) for file in files)
    assert not (tmp_path / "out").exists()
    if names[0].split("/")[0] != names[1].split("/")[0]:
        assert len(segment_files(segmenter, [tmp_path], output=tmp_path / "out")) == 2


def test_two_folders_with_one_name_inside(segmenter, tmp_path):
    photo(tmp_path / "a" / "x.jpg")
    photo(tmp_path / "b" / "x.jpg")
    with pytest.raises(ValueError, match="different names"):
        segment_files(segmenter, [tmp_path / "a", tmp_path / "b"], output=tmp_path / "out")


@pytest.mark.parametrize("folder", [True, False])
def test_images_are_not_replaced(segmenter, tmp_path, folder):
    file = photo(tmp_path / "x.png")
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"images would be replaced: .*x\.png is one"):
        segment_files(segmenter, [tmp_path if folder else file], output=tmp_path)
    assert file.read_bytes() == before
    jpeg = photo(tmp_path / "y" / "z.jpg")
    assert segment_files(segmenter, [jpeg], output=jpeg.parent) == [jpeg.with_suffix(".png")]


def test_broken_and_missing_files_are_named(segmenter, tmp_path):
    good, out = photo(tmp_path / "a.jpg"), tmp_path / "out"
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(OSError, match=r"broken\.jpg cannot be read"):
        segment_files(segmenter, [good, tmp_path / "broken.jpg"], output=out)
    assert below(out) == ["a.png", "a_overlay.png"]
    with pytest.raises(FileNotFoundError, match=r"no image or folder at .*gone\.jpg"):
        segment_files(segmenter, [good, tmp_path / "gone.jpg"], output=tmp_path / "out2")
    assert not (tmp_path / "out2").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images in .*empty"):
        segment_files(segmenter, [tmp_path / "empty"], output=out)


def test_broken_files_are_left_out_and_named_unless_strict(segmenter, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (9, 7)).save(photos / "a.png")
    (photos / "b.png").write_bytes(b"no image")
    Image.new("RGB", (5, 6)).save(photos / "c.png")
    with pytest.raises(OSError, match=r"b\.png cannot be read"):
        segment_files(segmenter, [photos], output=tmp_path / "strict")
    written = segment_files(segmenter, [photos], output=tmp_path / "out", strict=False)
    assert [path.name for path in written] == ["a.png", "c.png"]
    told = capsys.readouterr().out
    assert told.startswith("2 images segmented; 1 skipped:\n")
    assert str(photos / "b.png") in told
