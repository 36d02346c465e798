import numpy as np
import pytest
import torch
from PIL import Image
from strategies import generator

from wsss_blocks import viz
from wsss_blocks.viz import heat_colors, patch_similarity_figure


def problem(dim=6, grid=(2, 3), size=(40, 60)):
    g = generator(0)
    image = torch.rand(3, *size, generator=g)
    return image, torch.randn(dim, *grid, generator=g), torch.randn(2, dim, generator=g)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """What the figure is made of."""
    found = {}

    def figure_grid(rows, **options):
        found.update(options, rows=rows)
        viz.figure_grid(rows, **options)

    monkeypatch.setattr("wsss_blocks.viz.patch_similarity.figure_grid", figure_grid)
    return found


def cosine(a, b):
    a, b = a.tolist(), b.tolist()
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5


def test_rows_of_patches_and_of_texts(drawn, tmp_path):
    image, patches, texts = problem()
    path = tmp_path / "a.png"
    queries = [(1, 2), (0, 0), (1, 0)]
    patch_similarity_figure(
        image, 3 * patches, path=path, queries=queries, texts=texts, names=["dog", "sky"]
    )
    with Image.open(path) as figure:
        assert figure.format == "PNG"
    assert drawn["row_labels"] == ["image to image", "text to image"]
    assert [len(row) for row in drawn["rows"]] == [4, 3]
    assert torch.equal(drawn["rows"][0][0], image)
    own = [patches[:, y, x] for y, x in queries]
    titles = [f"patch {y}, {x}" for y, x in queries]
    for row, vectors, names in ((0, own, titles), (1, texts, ["dog", "sky"])):
        assert drawn["captions"][row][0] == ""
        for text, vector, name in zip(drawn["captions"][row][1:], vectors, names, strict=True):
            values = [cosine(vector, patches[:, y, x]) for y in range(2) for x in range(3)]
            assert text == f"{name}: {min(values):.2f} to {max(values):.2f}"
    # A patch is most like itself, and framed; the frame is all that is red.
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    for (y, x), cell in zip(queries, drawn["rows"][0][1:], strict=True):
        where = (cell == red).all(0).nonzero()
        top, left = y * 20, x * 20
        assert where.amin(0).tolist() == [top, left]
        assert where.amax(0).tolist() == [top + 19, left + 19]
        assert len(where) == 4 * 19
    for cell in drawn["rows"][1][1:]:
        assert not (cell == red).all(0).any()


def test_the_brightest_place_is_the_most_alike(drawn, tmp_path):
    image = torch.zeros(3, 63, 63)
    patches = torch.zeros(3, 3, 3)
    patches[0] = 1
    patches[:, 1, 1] = torch.tensor([0.0, 1.0, 0.0])
    patch_similarity_figure(
        image, patches, path=tmp_path / "a.png", texts=torch.eye(3)[1:2], names=["middle"]
    )
    (row,) = drawn["rows"]
    hot, cold = heat_colors(torch.tensor([[1.0, 0.0]]))[:, 0].T
    assert torch.allclose(row[1][:, 31, 31], 0.75 * hot, atol=1e-3)
    assert torch.allclose(row[1][:, 0, 0], 0.75 * cold, atol=1e-3)


def test_degenerate(tmp_path):
    image = torch.rand(3, 1, 1)
    for i, patches in enumerate((torch.zeros(4, 1, 1), torch.ones(4, 5, 7))):
        patch_similarity_figure(
            image, patches, path=tmp_path / f"{i}.png", queries=[(0, 0)], texts=torch.ones(1, 4),
            names=["a"],
        )  # fmt: skip
        assert np.asarray(Image.open(tmp_path / f"{i}.png")).ndim == 3


def test_errors(tmp_path):
    image, patches, texts = problem()
    path = tmp_path / "a.png"
    for arguments, options, error, message in (
        ((image[0], patches), {}, ValueError, r"image must have shape \(3, H, W\)"),
        ((9 * image, patches), {}, ValueError, r"image must be RGB in \[0, 1\]"),
        ((image, patches[0]), {}, ValueError, r"patches must have shape \(D, h, w\)"),
        ((image, patches.long()), {}, TypeError, "patches must be a floating-point"),
        ((image, patches / 0), {}, ValueError, "patches must be finite"),
        ((image, patches), {"queries": ()}, ValueError, "queries must hold a patch where there"),
        ((image, patches), {"queries": [(0, 3)]}, ValueError, r"queries must lie in the grid \(2"),
        ((image, patches), {"queries": [(-1, 0)]}, ValueError, "queries must lie in the grid"),
        ((image, patches), {"queries": [(0, 1, 2)]}, ValueError, "queries must hold a row and a"),
        ((image, patches), {"queries": [(0.5, 1)]}, TypeError, "queries must be an int"),
        ((image, patches), {"texts": texts, "names": ["a"]}, ValueError, "names must have 2"),
        ((image, patches), {"texts": texts[:, 1:]}, ValueError, r"texts must have shape .* D=6"),
        ((image, patches), {"cell": 0}, ValueError, "cell must be at least 1"),
    ):
        with pytest.raises(error, match=message):
            patch_similarity_figure(*arguments, **({"path": path, "queries": [(0, 0)]} | options))
    assert not path.exists()
