import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage
from strategies import generator

from wsss_blocks.data import voc_palette
from wsss_blocks.viz import class_token_figure

NAMES = ["cat", "dog", "cow"]


def tokens(seed=0, count=12, dim=6, *, apart=0.0):
    """Tokens of two classes in turn, so far apart."""
    values = torch.randn(count, dim, generator=generator(seed))
    return values + apart * (torch.arange(count) % 2)[:, None]


def draw(path, panels=None, **change):
    classes = torch.arange(12) % 2
    options = {"path": path, "names": NAMES, **change}
    class_token_figure({"block 1": tokens()} if panels is None else panels,
                       options.pop("classes", classes), **options)  # fmt: skip


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def frames(picture):
    """Boxes of the panels: what is dark and as large as one."""
    found, _ = ndimage.label((picture < 128).all(-1))
    boxes = ndimage.find_objects(found)
    return [box for box in boxes if min(side.stop - side.start for side in box) > 150]


def shows(picture, class_index):
    return bool((picture == voc_palette()[class_index + 1].numpy()).all(-1).any())


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (5, 2, 4)])
def test_one_panel_per_layer(tmp_path, count, rows, columns):
    panels = {f"block {i}": tokens(i) for i in range(count)}
    draw(tmp_path / "new" / "tokens.png", panels)
    picture = pixels(tmp_path / "new" / "tokens.png")
    assert picture.shape == (360 * rows + 72, 360 * columns, 3)
    assert len(frames(picture)) == count
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["tokens.png"]


def test_classes_that_lie_apart_are_drawn_apart(tmp_path):
    draw(tmp_path / "apart.png", {"": tokens(apart=50.0)}, perplexity=2.0)
    picture = pixels(tmp_path / "apart.png")
    assert [shows(picture, k) for k in range(3)] == [True, True, False]
    ((rows, columns),) = frames(picture)
    inside = picture[rows, columns]
    places = [
        np.argwhere((inside == voc_palette()[k].numpy()).all(-1)).astype(float) for k in (1, 2)
    ]
    gap = np.linalg.norm(places[0][:, None] - places[1][None], axis=-1).min()
    assert gap > 20
    palette = torch.tensor([[0, 0, 0], [250, 3, 4], [5, 250, 7], [8, 9, 250]], dtype=torch.uint8)
    draw(tmp_path / "own.png", palette=palette)
    own = pixels(tmp_path / "own.png")
    assert not shows(own, 0)
    assert (own == palette[1].numpy()).all(-1).any()


def test_a_seed_gives_the_same_file(tmp_path):
    given = tokens()
    for name in ("a", "b"):
        torch.manual_seed(len(name))
        np.random.seed(ord(name))  # noqa: NPY002
        draw(tmp_path / f"{name}.png", {"block 1": given}, seed=3)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert torch.equal(given, tokens())


@pytest.mark.parametrize(
    "given",
    [
        torch.full((12, 4), 0.1),
        torch.full((12, 4), 0.1).half(),
        tokens(dim=1),
        tokens() * 1e30,
        tokens() * 1e-30 + 1,
        tokens().bfloat16().requires_grad_(),
        torch.eye(12)[:, :1] + 7,
    ],
)
def test_equal_huge_and_narrow_tokens(tmp_path, given):
    draw(tmp_path / "a.png", {"block 1": given})
    picture = pixels(tmp_path / "a.png")
    assert len(frames(picture)) == 1
    assert shows(picture, 1)


def test_three_tokens_of_one_class(tmp_path):
    draw(tmp_path / "a.png", {"": tokens(count=3)}, classes=torch.zeros(3, dtype=torch.uint8))
    picture = pixels(tmp_path / "a.png")
    assert [shows(picture, k) for k in range(2)] == [True, False]


def test_a_failed_figure_leaves_the_former_file(tmp_path, monkeypatch):
    def fail(figure, path, **options):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    path = tmp_path / "tokens.png"
    path.write_text("former")
    with pytest.raises(OSError, match="disk full"):
        draw(path)
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.png"]
    assert path.read_text() == "former"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"panels": {}}, ValueError, "tokens must hold a panel of at least three .*got 0 of 12"),
        ({"panels": [tokens()]}, TypeError, "tokens must be a mapping of tensors, got list"),
        ({"panels": {"a": tokens(count=9)}}, ValueError, r"tokens\['a'\] must have .* with M=12"),
        ({"panels": {"a": tokens()[0]}}, ValueError, r"tokens\['a'\] must have shape \(M, D\)"),
        ({"panels": {"a": tokens().long()}}, TypeError, r"tokens\['a'\] must be a floating-point"),
        ({"panels": {"a": tokens() * torch.nan}}, ValueError, r"tokens\['a'\] must be finite"),
        ({"classes": torch.zeros(2, dtype=torch.int64)}, ValueError, "at least three.*got 1 of 2"),
        ({"classes": torch.zeros(12)}, TypeError, "classes must be an integer tensor"),
        ({"classes": torch.zeros(12, 1).long()}, ValueError, r"classes must have shape \(M,\)"),
        ({"classes": torch.arange(12)}, ValueError, r"classes must be in \[0, 3\), got \[0, 1,"),
        ({"classes": torch.arange(12) - 1}, ValueError, r"classes must be in \[0, 3\), got \[-1"),
        ({"names": "cat"}, TypeError, "names must be a sequence"),
        ({"names": ["cat", 3]}, TypeError, "names must hold strings, got 3"),
        ({"perplexity": 0.0}, ValueError, "perplexity must be positive and finite, got 0.0"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"palette": voc_palette(3)}, ValueError, "palette must have a colour for each of 4 names"),
        ({"palette": voc_palette() / 255}, TypeError, "palette must be an integer tensor"),
    ],
)
def test_wrong_arguments(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        draw(tmp_path / "x.png", **change)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "extra"), [("sklearn.manifold", "examples"), ("matplotlib.figure", "cli")]
)
def test_missing_libraries_are_named(tmp_path, monkeypatch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    wanted = rf"class_token_figure needs {module}: .*wsss-blocks\[{extra}\]"
    with pytest.raises(ImportError, match=wanted):
        draw(tmp_path / "x.png")
