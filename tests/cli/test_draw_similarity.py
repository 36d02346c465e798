import pytest
import torch
from PIL import Image

from wsss_blocks.backbones import TextBank
from wsss_blocks.cli import draw_similarity

NAMES = ("cat", "dog", "cow", "hen")


def samples():
    """Eight images: cats on all, dogs on half of those that are drawn, no cow, one hen."""
    labels = {0: [1, 0, 0, 0], 2: [1, 1, 0, 0], 4: [1, 1, 0, 0], 6: [1, 0, 0, 1]}
    found = []
    for i in range(8):
        image = torch.full((3, 10 + i, 20), i / 8)
        row = torch.tensor(labels.get(i, [0, 0, 1, 0])).float()
        found.append({"image": image, "labels": row, "id": f"image {i}"})
    return found


@pytest.fixture
def drawn(monkeypatch):
    seen = {}

    def figure(images, maps, path, **options):
        if path.stem.endswith("_centred"):
            seen["centred"] = maps
        else:
            seen.update(images=images, maps=maps, **options)

    monkeypatch.setattr("wsss_blocks.cli.similarity.similarity_figure", figure)
    return seen


def response(image, texts):
    """A map for each text whose value is the text's first number plus the grey of the image."""
    value = texts[:, 0] + image.mean()
    return value[None, :, None, None].expand(1, len(texts), 2, 3)


def test_columns_are_the_classes_seen_then_background_and_outside(drawn, tmp_path):
    bank = TextBank.stand_in(NAMES, dim=8, seed=0)
    outside = torch.eye(8)[3]
    draw_similarity(
        tmp_path / "a.png", response, samples(), bank, outside={"zebra": outside, "gnu": None}
    )
    assert drawn["names"] == ["cat", "dog", "hen", "background", "zebra (outside)"]
    assert drawn["row_labels"] == ["image 0", "image 2", "image 4", "image 6"]
    rows = torch.stack([*bank.classes[[0, 1, 3]], bank.background[0], outside])
    for i, index in enumerate((0, 2, 4, 6)):
        expected = rows[:, 0] + index / 8
        torch.testing.assert_close(drawn["maps"][i, :, 5, 5], expected)
        mean = torch.cat([bank.classes, bank.background])[:, 0].mean() + index / 8
        torch.testing.assert_close(drawn["centred"][i, :, 5, 5], expected - mean)
    assert drawn["images"].shape == (4, 3, 224, 224)


def test_columns_are_limited_and_several_background_texts_are_numbered(drawn, tmp_path):
    rows = torch.eye(8)
    bank = TextBank(rows[:4], rows[4:6], names=NAMES, source="rows")
    draw_similarity(tmp_path / "a.png", response, samples(), bank, columns=1, images=2)
    assert drawn["names"] == ["cat", "background 0", "background 1"]
    assert drawn["row_labels"] == ["image 0", "image 4"]


def test_images_without_any_class_still_make_a_figure(tmp_path):
    bank = TextBank.stand_in(NAMES, dim=8, seed=0)
    sample = {"image": torch.rand(3, 9, 7), "labels": torch.zeros(4), "id": "empty"}
    draw_similarity(tmp_path / "a.png", response, [sample], bank, side=32)
    for name in ("a.png", "a_centred.png"):
        assert Image.open(tmp_path / name).size[0] > 3 * 32
