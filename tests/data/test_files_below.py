"""Files in and below a folder, behind links too: what commands list masks and labels by."""

import pytest

from wsss_blocks.data._files import files_below


@pytest.fixture
def folder(tmp_path):
    real, root = tmp_path / "elsewhere", tmp_path / "masks"
    for path in (
        root / "b.png", root / "a-b.png", root / "a" / "x.v2.png", root / "a" / "photo.jpg",
        root / ".hidden" / "x.png", root / "a" / ".x.png", real / "deep" / "y.png", real / "z.PNG",
        real / "w.Png",
    ):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "linked").symlink_to(real, target_is_directory=True)
    (root / "circle").symlink_to(root, target_is_directory=True)
    (real / "deep" / "back").symlink_to(root, target_is_directory=True)
    return root


def test_ids_are_sorted_paths_without_suffix(folder):
    found = files_below(folder, ".png")
    assert list(found) == ["a-b", "a/x.v2", "b", "linked/deep/y"]
    assert found["linked/deep/y"] == folder / "linked" / "deep" / "y.png"


def test_suffixes_are_taken_as_they_are_written(folder):
    assert files_below(folder, ".png", any_case=True)["linked/z"] == folder / "linked" / "z.PNG"
    assert list(files_below(folder / "linked", ".png", any_case=True))[-2:] == ["w", "z"]
    assert list(files_below(folder, ".jpg")) == ["a/photo"]
    assert files_below(folder, ".xml") == {}
