import numpy as np
import pytest
import torch
from PIL import Image
from strategies import generator

from wsss_blocks.backbones import BilateralFeatures
from wsss_blocks.data import Scenes, voc_palette
from wsss_blocks.pooling import class_average_pool, patch_class_weights
from wsss_blocks.refine import ClassRebalancer, class_heatmaps
from wsss_blocks.viz import (
    heat_colors,
    overlay_heatmap,
    overlay_mask,
    rebalancing,
    rebalancing_figure,
)

NAMES = ["background", "cat", "dog"]
TITLES = ["image", "initial mask", "patch weights (A)", "features alone (B)", "rebalanced (B)"]


def masks():
    """A cat and background; all three classes. One pixel of each is ignored."""
    mask = torch.zeros(2, 8, 12, dtype=torch.int64)
    mask[:, :4, :6], mask[1, 4:, 6:], mask[:, 0, 11] = 1, 2, 255
    return mask


def arguments(**change):
    mask = masks()
    return {
        "images": torch.rand(2, 3, 8, 12, generator=generator(0)),
        "labels": torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
        "names": NAMES,
        "initial": mask,
        "weights": patch_class_weights(mask, size=(2, 3), num_classes=3),
        "before": torch.rand(2, 3, 4, 4, generator=generator(1)),
        "after": torch.rand(2, 3, 5, 2, generator=generator(2)),
        "result": mask.flip(2),
        **change,
    }


@pytest.fixture
def drawn(monkeypatch):
    """Draw, and return what the grid is asked for."""

    def draw(**change):
        asked = {}
        monkeypatch.setattr(
            rebalancing, "figure_grid", lambda rows, **rest: asked.update(rows=rows, **rest)
        )
        rebalancing_figure(**arguments(path="x.png", **change))
        return asked

    return draw


def filled(rows):
    return ["".join(".#"[x is not None] for x in row) for row in rows]


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def holds(picture, color):
    return bool((picture == np.asarray(color)).all(-1).any())


def test_one_row_per_image_and_class(drawn):
    asked = drawn(truth=masks())
    assert asked["titles"] == [*TITLES, "result", "truth"]
    assert asked["row_labels"] == ["background", "cat", "", "background", "cat", "dog"]
    assert filled(asked["rows"]) == ["#######", "..###", "", "#######", "..###", "..###"]
    asked = drawn()
    assert asked["titles"] == [*TITLES, "result"]
    assert filled(asked["rows"]) == ["######", "..###", "", "######", "..###", "..###"]


def test_each_cell_shows_its_tensor(drawn):
    given = arguments(truth=masks().flip(1))
    rows = drawn(truth=given["truth"])["rows"]
    images, palette = given["images"], voc_palette()
    for i, first in ((0, 0), (1, 3)):
        assert torch.equal(rows[first][0], images[i])
        for column, name in ((1, "initial"), (5, "result"), (6, "truth")):
            wanted = overlay_mask(images[i], given[name][i], palette=palette, alpha=0.75)
            torch.testing.assert_close(rows[first][column], wanted)
    for row, i, k in ((0, 0, 0), (1, 0, 1), (3, 1, 0), (4, 1, 1), (5, 1, 2)):
        patches = given["weights"][i, k].repeat_interleave(4, 0).repeat_interleave(4, 1)
        torch.testing.assert_close(rows[row][2], overlay_heatmap(images[i], patches, alpha=0.85))
        for column, name in ((3, "before"), (4, "after")):
            large = torch.nn.functional.interpolate(
                given[name][i : i + 1, k : k + 1], size=(8, 12), mode="bilinear"
            )
            wanted = overlay_heatmap(images[i], large[0, 0], alpha=0.85)
            torch.testing.assert_close(rows[row][column], wanted)


def test_classes_that_take_no_part_are_left_out(drawn):
    weights = arguments()["weights"]
    # A class that the labels exclude, background included in no label.
    asked = drawn(labels=torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    assert asked["row_labels"] == ["background", "", "background", "dog"]
    # A class of the labels without weights.
    asked = drawn(labels=torch.ones(2, 2))
    assert asked["row_labels"] == ["background", "cat", "", "background", "cat", "dog"]
    # Background without weights: the first class takes the image's row.
    bare = weights.clone()
    bare[:, 0] = 0
    asked = drawn(weights=bare)
    assert asked["row_labels"] == ["cat", "", "cat", "dog"]
    assert filled(asked["rows"]) == ["######", "", "######", "..###"]
    # No class at all: image and masks still stand there.
    asked = drawn(weights=bare * torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
    assert asked["row_labels"] == ["(none)", "", "cat", "dog"]
    assert filled(asked["rows"]) == ["##...#", "", "######", "..###"]


def test_legend_names_scores_and_what_the_masks_show(drawn):
    scale = [f"score {s}" for s in ("0.00", "0.25", "0.50", "0.75", "1.00")]
    legend = drawn()["legend"]
    assert list(legend) == [*scale, "cat", "dog", "ignored"]
    assert [legend[k] for k in ("cat", "ignored")] == [[128, 0, 0], [224, 224, 192]]
    ends = (heat_colors(torch.tensor([[0.0, 1.0]]))[:, 0].T * 255).int().tolist()
    assert [legend[scale[0]], legend[scale[-1]]] == ends
    plain = torch.zeros(2, 8, 12, dtype=torch.int64)
    assert list(drawn(initial=plain, result=plain)["legend"]) == scale
    assert list(drawn(initial=plain, result=plain, truth=plain + 2)["legend"]) == [*scale, "dog"]


@pytest.mark.parametrize(
    ("ignore_index", "palette", "color"),
    [
        (255, None, [224, 224, 192]),
        (255, torch.tensor([[0, 0, 0], [1, 2, 3], [4, 5, 6]]), [224, 224, 192]),
        (3, torch.tensor([[0, 0, 0], [1, 2, 3], [4, 5, 6], [7, 8, 9]]), [7, 8, 9]),
        (-1, None, [224, 224, 192]),
    ],
)
def test_ignored_pixels_have_a_colour(drawn, ignore_index, palette, color):
    mask = masks()
    mask[mask == 255] = ignore_index
    settings = {"ignore_index": ignore_index, "palette": palette}
    asked = drawn(initial=mask, result=mask, images=torch.zeros(2, 3, 8, 12), **settings)
    assert asked["legend"]["ignored"] == color
    corner = asked["rows"][0][1][:, 0, 11] * 255
    torch.testing.assert_close(corner, 0.75 * torch.tensor(color, dtype=torch.float32))


def test_lists_of_different_sizes_and_grids(tmp_path):
    sizes, grids = [(8, 12), (20, 5)], [(2, 3), (5, 1)]
    some = generator(3)
    mask = [torch.zeros(8, 12, dtype=torch.uint8), torch.full((20, 5), 2)]
    rebalancing_figure(
        [torch.rand(3, *size, generator=some) for size in sizes],
        torch.tensor([[1, 1], [0, 1]]),
        path=tmp_path / "lists.png",
        names=NAMES,
        initial=mask,
        weights=[
            patch_class_weights(m[None], size=g, num_classes=3)[0]
            for m, g in zip(mask, grids, strict=True)
        ],
        before=torch.rand(2, 3, 30, 30, generator=some),
        after=[torch.rand(3, *g, generator=some, dtype=torch.float64) for g in grids],
        result=tuple(mask),
        cell=24,
    )
    picture = pixels(tmp_path / "lists.png")
    assert holds(picture, voc_palette()[2].numpy())
    assert not holds(picture, voc_palette()[1].numpy())


def test_the_file_shows_rows_and_columns(tmp_path):
    # Dark pictures on white paper, between the headings and the legend: the cells can be counted.
    given = arguments(images=torch.zeros(2, 3, 8, 12), truth=masks(), names=["", "", ""])
    rebalancing_figure(**given, path=tmp_path / "figure.png", cell=60)
    cells = (pixels(tmp_path / "figure.png") < 250).any(-1)[24:-24]

    def runs(line):
        return int((np.diff(np.concatenate([[0], line, [0]])) == 1).sum())

    assert runs(cells.any(1)) == 5, "rows"
    assert runs(cells.any(0)) == 7, "columns"
    assert cells.any(1).sum() == 5 * 40
    assert cells.any(0).sum() == 7 * 60


def test_a_failed_figure_leaves_the_former_file(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    path = tmp_path / "figure.png"
    path.write_text("former")
    with pytest.raises(OSError, match="disk full"):
        rebalancing_figure(**arguments(path=path))
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]
    assert path.read_text() == "former"


def test_arguments_are_left_alone_and_may_carry_gradients(drawn):
    given, kept = arguments(truth=masks()), arguments(truth=masks())
    for name in ("images", "weights", "before", "after"):
        given[name].requires_grad_()
    drawn(**given)
    for name, value in kept.items():
        if name != "names":
            assert torch.equal(given[name], value), name


def test_what_the_blocks_return_is_drawn(tmp_path):
    samples = [Scenes("val", size=2, hard=True)[i] for i in range(2)]
    images, labels, truth = (
        torch.stack([s[k] for s in samples]) for k in ("image", "labels", "mask")
    )
    features = BilateralFeatures()(images).feature_map
    out = ClassRebalancer()(images, None, truth, labels, features)
    size = (features.shape[2], features.shape[3])
    centroids = class_average_pool(features, out.initial, num_classes=11).centroids
    rebalancing_figure(
        images,
        labels,
        path=tmp_path / "figure.png",
        names=["background", *Scenes.names],
        initial=out.initial,
        weights=patch_class_weights(out.initial, size=size, num_classes=11),
        before=class_heatmaps(features, centroids),
        after=out.heatmaps,
        result=out.mask,
        truth=truth,
    )
    picture = pixels(tmp_path / "figure.png")
    for k in truth.unique().tolist():
        assert k == 0 or holds(picture, voc_palette()[k].numpy())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"images": torch.rand(0, 3, 8, 12), "labels": torch.rand(0, 2)},
            ValueError,
            "images must",
        ),
        ({"images": torch.rand(2, 1, 8, 12)}, ValueError, r"images must have shape \(3, H, W\)"),
        ({"images": torch.full((2, 3, 8, 12), torch.nan)}, ValueError, "images must be finite"),
        ({"labels": torch.ones(2, 3)}, ValueError, "labels must have shape .* with B=2, K=2"),
        ({"names": "cat"}, TypeError, "names must be a sequence"),
        ({"names": ["a", "b", 3]}, TypeError, "names must hold strings"),
        ({"initial": None}, TypeError, "initial must be a sequence, got None"),
        ({"initial": masks()[:1]}, ValueError, "initial must have 2 entries, got 1"),
        ({"initial": masks()[:, :4]}, ValueError, "initial must have shape .* with H=8, W=12"),
        ({"result": masks().float()}, TypeError, "result must be an integer tensor"),
        ({"result": masks() + 2}, ValueError, r"result must hold ids in \[0, 3\) or ignore_index"),
        ({"truth": masks(), "ignore_index": 9}, ValueError, "ignore_index=9, got 255"),
        ({"weights": None}, TypeError, "weights must be a sequence, got None"),
        ({"weights": torch.ones(2, 2, 4, 4)}, ValueError, "weights must have shape .* with C=3"),
        ({"before": torch.full((2, 3, 4, 4), 1.5)}, ValueError, r"before must hold scores in \[0"),
        ({"after": torch.full((2, 3, 4, 4), -1.0)}, ValueError, "after must .* from -1 to -1"),
        ({"after": torch.full((2, 3, 4, 4), torch.inf)}, ValueError, "after must be finite"),
        ({"after": torch.ones(2, 3, 4, 4).long()}, TypeError, "after must be a floating-point"),
        ({"palette": voc_palette(2)}, ValueError, "palette must have a colour for each of 3 names"),
        ({"palette": voc_palette()[:, :2]}, ValueError, r"palette must have shape \(n, 3\)"),
        ({"palette": voc_palette() / 255}, TypeError, "palette must be an integer tensor"),
        (
            {"palette": voc_palette().long() - 1},
            ValueError,
            r"palette must hold levels in 0\.\.255",
        ),
        ({"cell": 0}, ValueError, "cell must be at least 1"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index must be an int"),
    ],
)
def test_wrong_arguments(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        rebalancing_figure(**arguments(path=tmp_path / "x.png", **change))
    assert not list(tmp_path.iterdir())
