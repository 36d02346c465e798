import pytest
import torch
from PIL import Image

from wsss_blocks.cli import class_tokens, draw_class_tokens, draw_maps, map_figure

NAMES = ("cat", "dog", "cow")


class Samples(list):
    names = NAMES


def samples(rows, size=(6, 8)):
    """One image per row of labels, whose grey is its index."""
    return Samples(
        {"image": torch.full((3, *size), i / 8), "labels": torch.tensor(row).float(), "id": str(i)}
        for i, row in enumerate(rows)
    )


def tokens(image):
    """Tokens that say of which image, class and layer they are."""
    token = torch.stack([torch.full((3,), float(image.mean()) * 8), torch.arange(3.0)], 1)
    return {"block 1": token[None], "block 2": token[None].double() + 10}


def maps(batch):
    """A ramp from left to right, and a map of half the size that is brighter at the bottom."""
    _, _, h, w = batch["image"].shape
    ramp = 5 * torch.linspace(0, 1, w).expand(1, 1, h, w)
    return {"right": ramp, "below": torch.linspace(0, 1, 3).view(1, 1, 3, 1).expand(1, 1, 3, 4)}


def recorder(monkeypatch, name):
    """Let a figure only be asked for: what it was asked."""
    seen = []

    def figure(*args, **options):
        seen.append((*args, options))

    home = class_tokens if hasattr(class_tokens, name) else map_figure
    monkeypatch.setattr(home, name, figure)
    return seen


def test_tokens_of_the_classes_that_an_image_shows(monkeypatch, tmp_path):
    seen = recorder(monkeypatch, "class_token_figure")
    draw_class_tokens(tmp_path / "a.png", tokens, samples([[1, 0, 1], [0, 0, 0], [0, 1, 0]]))
    ((panels, classes, options),) = seen
    assert classes.tolist() == [0, 2, 1]
    assert list(panels) == ["block 1", "block 2"]
    assert panels["block 1"].tolist() == [[0, 0], [0, 2], [2, 1]]
    assert panels["block 2"].tolist() == [[10, 10], [10, 12], [12, 11]]
    assert {x.dtype for x in panels.values()} == {torch.float32}
    assert options == {"path": tmp_path / "a.png", "names": NAMES, "columns": 4}


def test_tokens_of_squeezed_images(monkeypatch, tmp_path):
    shapes = []

    def watched(image):
        shapes.append(tuple(image.shape))
        return tokens(image)

    seen = recorder(monkeypatch, "class_token_figure")
    rows = samples([[1, 1, 1]], size=(6, 8))
    draw_class_tokens(tmp_path / "a.png", watched, rows, size=5, columns=2)
    assert shapes == [(1, 3, 5, 5)]
    assert seen[0][-1]["columns"] == 2


def test_tokens_of_images_spread_over_the_samples(monkeypatch, tmp_path):
    seen = recorder(monkeypatch, "class_token_figure")
    draw_class_tokens(tmp_path / "a.png", tokens, samples([[0, 1, 0]] * 8), images=3)
    ((panels, classes, _),) = seen
    assert panels["block 1"].tolist() == [[0, 1], [2, 1], [4, 1]]
    assert classes.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("rows", "drawn"), [([[1, 1, 0]], False), ([[1, 1, 0], [0, 1, 0]], True)])
def test_less_than_three_tokens_are_not_drawn(tmp_path, rows, drawn):
    draw_class_tokens(tmp_path / "a.png", tokens, samples(rows))
    assert (tmp_path / "a.png").exists() == drawn


def test_one_panel_per_layer(tmp_path):
    draw_class_tokens(tmp_path / "a.png", tokens, samples([[1, 1, 1]] * 2))
    draw_class_tokens(
        tmp_path / "b.png", lambda x: {"only": tokens(x)["block 1"]}, samples([[1, 1, 1]] * 2)
    )
    two, one = (Image.open(tmp_path / name) for name in ("a.png", "b.png"))
    assert two.size == (2 * one.size[0], one.size[1])


def test_maps_beside_their_images(monkeypatch, tmp_path):
    seen = recorder(monkeypatch, "figure_grid")
    draw_maps(tmp_path / "a.png", maps, samples([[1, 0, 0]] * 8), images=3)
    ((rows, options),) = seen
    assert options == {"path": tmp_path / "a.png", "titles": ["image", "right", "below"]}
    assert [[x.shape for x in row] for row in rows] == [[(3, 6, 8)] * 3] * 3
    for row, index in zip(rows, (0, 2, 4), strict=True):
        image, right, below = row
        assert (image == index / 8).all()
        assert (right[:, 0] == right[:, 5]).all()
        assert (right[:, :, 0] != right[:, :, 7]).any()
        assert (below[:, :, 0] == below[:, :, 7]).all()
        assert (below[:, 0] != below[:, 5]).any()
        torch.testing.assert_close(right[:, 0, 7], below[:, 5, 0], rtol=0, atol=1e-4)


def test_maps_see_squares_of_the_size_asked_for(monkeypatch, tmp_path):
    seen, asked = recorder(monkeypatch, "figure_grid"), []

    def found(batch):
        asked.append({name: tuple(x.shape) for name, x in batch.items()})
        return maps(batch)

    draw_maps(tmp_path / "a.png", found, samples([[1, 0, 0]]), size=5)
    assert asked == [{"image": (1, 3, 5, 5), "labels": (1, 3)}]
    ((rows, _),) = seen
    assert [x.shape for x in rows[0]] == [(3, 5, 5)] * 3


def test_maps_make_a_file(tmp_path):
    draw_maps(tmp_path / "one.png", maps, samples([[1, 0, 0]], size=(30, 40)))
    draw_maps(tmp_path / "two.png", maps, samples([[1, 0, 0]] * 2, size=(30, 40)))
    one, two = (Image.open(tmp_path / name) for name in ("one.png", "two.png"))
    assert one.size[0] > 3 * 40
    assert two.size[0] == one.size[0]
    assert two.size[1] > 1.5 * one.size[1]


def test_only_the_first_process_draws(monkeypatch, tmp_path):
    for module in (class_tokens, map_figure):
        monkeypatch.setattr(module, "rank", lambda: 1)

    def never(x):
        raise AssertionError("asked")

    draw_class_tokens(tmp_path / "a.png", never, samples([[1, 1, 1]] * 2))
    draw_maps(tmp_path / "b.png", never, samples([[1, 1, 1]] * 2))
    assert not list(tmp_path.iterdir())


def test_figures_keep_no_gradients(tmp_path):
    weight = torch.ones(1, requires_grad=True)

    def weighted(found):
        found = {title: weight * x for title, x in found.items()}
        assert not any(x.requires_grad for x in found.values())
        return found

    few = samples([[1, 1, 1]])
    draw_class_tokens(tmp_path / "a.png", lambda x: weighted(tokens(x)), few)
    draw_maps(tmp_path / "b.png", lambda batch: weighted(maps(batch)), few)
