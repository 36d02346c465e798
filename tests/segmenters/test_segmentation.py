import pytest
import torch
from PIL import Image

from wsss_blocks.data import read_image, read_mask
from wsss_blocks.segmenters import Segmentation
from wsss_blocks.viz import overlay_mask

PALETTE = torch.tensor([[0, 0, 0], [255, 0, 0], [0, 9, 200]], dtype=torch.uint8)
NAMES = ("background", "cat", "猫")


def found(mask, names=NAMES, palette=PALETTE):
    mask = torch.tensor(mask)
    image = torch.rand(3, *mask.shape, generator=torch.Generator().manual_seed(0))
    return Segmentation(mask, names, palette, image)


def test_present_lists_the_largest_first():
    assert list(found([[2, 2, 2, 0]]).present().items()) == [("猫", 0.75), ("background", 0.25)]
    assert list(found([[1, 2]]).present()) == ["cat", "猫"]
    assert found([[1]]).present() == {"cat": 1.0}


def test_repr_is_one_short_line():
    assert repr(found([[0, 1], [1, 1]])) == "Segmentation(2 x 2: cat 75.0 %, background 25.0 %)"
    names, palette = tuple("abcdefg"), PALETTE[:1].expand(7, 3)
    assert repr(found([list(range(7))], names, palette)).endswith("e 14.3 %, ...)")


def test_overlay_tints_all_but_background():
    result = found([[0, 1], [2, 0]])
    picture = result.overlay(alpha=1.0)
    assert torch.equal(picture[:, 0, 0], result.image[:, 0, 0])
    assert picture[:, 0, 1].tolist() == [1, 0, 0]
    assert torch.equal(result.overlay(), overlay_mask(result.image, result.mask, palette=PALETTE))


def test_saved_mask_keeps_ids_and_colours(tmp_path):
    result = found([[0, 1, 2], [2, 2, 0]])
    path = tmp_path / "new folder" / "Maske ä.PNG"
    result.save(path)
    assert torch.equal(read_mask(path), result.mask)
    with Image.open(path) as file:
        assert file.mode == "P"
        colours = torch.tensor(list(file.convert("RGB").get_flattened_data()))
    assert torch.equal(colours.reshape(2, 3, 3), PALETTE[result.mask].long())
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "mask.png"
    found([[1]]).save(path)
    before = path.read_bytes()

    def broken(self, target, **_):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        found([[0]]).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mask.png"]


def test_figure(tmp_path):
    result = found([[0, 1], [2, 0]])
    result.save_figure(tmp_path / "figure.png")
    picture = read_image(tmp_path / "figure.png")
    assert picture.shape[2] > 2 * 512
    # The overlay shows its colours, and the legend repeats them at full strength.
    pure = (picture == torch.tensor([1.0, 0, 0])[:, None, None]).all(0)
    assert pure[512:].any()
    found([[0]]).save_figure(tmp_path / "none.png")
    assert read_image(tmp_path / "none.png").shape[1] < picture.shape[1]


def test_errors(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.png"):
        found([[0]]).save(tmp_path / "mask.jpg")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"mask must hold ids in \[0, 3\), got 0 to 3"):
        found([[0, 3]])
    with pytest.raises(ValueError, match="got -1 to 0"):
        found([[0, -1]])
    with pytest.raises(TypeError, match="mask must be an integer tensor"):
        found([[0.0]])
    with pytest.raises(ValueError, match=r"mask must have shape \(H, W\)"):
        Segmentation(torch.zeros(1, 2, 2, dtype=int), NAMES, PALETTE, torch.rand(3, 2, 2))
    with pytest.raises(ValueError, match=r"image must have shape \(3, H, W\) with H=2, W=2"):
        Segmentation(torch.zeros(2, 2, dtype=int), NAMES, PALETTE, torch.rand(3, 2, 1))
    with pytest.raises(ValueError, match=r"palette must have shape \(C, 3\) with C=3"):
        found([[0]], palette=PALETTE[:2])
    names = tuple(map(str, range(300)))
    with pytest.raises(ValueError, match="at most 256 classes, got 300"):
        found([[299]], names, torch.zeros(300, 3, dtype=torch.uint8)).save(tmp_path / "m.png")
