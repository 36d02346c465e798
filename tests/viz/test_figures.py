import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from strategies import generator

from wsss_blocks.data import voc_palette
from wsss_blocks.viz import (
    curve_figure,
    figure_grid,
    heat_colors,
    segmentation_figure,
    similarity_figure,
)

NAMES = ["background", "cat", "dog"]


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def holds(picture, color):
    return bool((picture == np.asarray(color)).all(-1).any())


def test_grid_pastes_the_images_unchanged(tmp_path):
    image = torch.rand(3, 20, 30, generator=generator(0))
    figure_grid([[image, None], [image.flip(2), image]], path=tmp_path / "grid.png", cell=30)
    picture = pixels(tmp_path / "grid.png")
    wanted = (image * 255).round().byte().permute(1, 2, 0).numpy()
    found = [
        (y, x)
        for y in range(picture.shape[0] - 19)
        for x in range(picture.shape[1] - 29)
        if (picture[y, x] == wanted[0, 0]).all()
        and (picture[y : y + 20, x : x + 30] == wanted).all()
    ]
    assert found == [(6, 6), (32, 42)]


def test_small_images_are_enlarged_without_smoothing_and_large_ones_shrunk(tmp_path):
    checker = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).expand(3, -1, -1)
    figure_grid([[checker]], path=tmp_path / "small.png", cell=40)
    assert set(pixels(tmp_path / "small.png").ravel().tolist()) == {0, 255}
    figure_grid([[torch.zeros(3, 400, 100)]], path=tmp_path / "large.png", cell=40)
    black = (pixels(tmp_path / "large.png") == 0).all(-1)
    assert (black.any(1).sum(), black.any(0).sum()) == (40, 10)


@pytest.mark.parametrize(
    "texts",
    [
        {"titles": ["two words", "b"]},
        {"row_labels": ["a label that is far too long for one line of text"]},
        {"captions": [["0.1 to 0.9", ""]]},
        {"legend": {"cat": (64, 0, 0), "dog": (64, 0, 128)}},
    ],
)
def test_texts_are_drawn_outside_the_images(tmp_path, texts):
    white = torch.ones(3, 32, 32)
    figure_grid([[white, white]], path=tmp_path / "plain.png", cell=32)
    figure_grid([[white, white]], path=tmp_path / "texts.png", cell=32, **texts)
    plain, written = pixels(tmp_path / "plain.png"), pixels(tmp_path / "texts.png")
    assert (plain == 255).all()
    assert (written < 128).all(-1).sum() > 20, "no ink"
    assert written.shape[0] * written.shape[1] > plain.shape[0] * plain.shape[1]
    border = np.concatenate([written[0], written[-1], written[:, 0], written[:, -1]])
    assert (border == 255).all(), "text is cut off"
    for color in texts.get("legend", {}).values():
        assert holds(written, color)


def test_long_row_labels_do_not_run_into_each_other(tmp_path):
    flat, long = torch.ones(3, 4, 32), "bannister, banister, balustrade, balusters, handrail"
    for name, labels in (("alone", [long]), ("first", [long, "dog"]), ("none", ["", ""])):
        rows = [[flat]] * len(labels)
        figure_grid(rows, path=tmp_path / f"{name}.png", row_labels=labels, cell=32)
    alone, first, none = (pixels(tmp_path / f"{n}.png") for n in ("alone", "first", "none"))
    assert (alone[-1] == 255).all(), "text is cut off"
    assert (first[: len(alone)] == alone).all(), "text is written over"
    assert (first[len(alone) :] < 128).any(), "no ink"
    assert len(none) < len(first) - 2 * 18, "room for no text"


def test_a_long_legend_takes_several_lines(tmp_path):
    image, palette = torch.ones(3, 32, 64), voc_palette()
    legend = {f"class number {k}": palette[k].tolist() for k in range(1, 21)}
    figure_grid([[image, image]], path=tmp_path / "legend.png", cell=64, legend=legend)
    picture = pixels(tmp_path / "legend.png")
    assert all(holds(picture, color) for color in legend.values())


def test_a_failed_figure_leaves_no_file(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        figure_grid([[torch.ones(3, 4, 4)]], path=tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": []}, "rows must hold at least one image"),
        ({"rows": [[]]}, "rows must hold at least one image"),
        ({"rows": [[torch.rand(4, 4)]]}, r"rows must have shape \(3, H, W\)"),
        ({"titles": ["a", "b"]}, "titles must have 1 entries, got 2"),
        ({"row_labels": []}, "row_labels must have 1 entries, got 0"),
        ({"captions": [["a", "b"]]}, "captions must have one entry per image"),
    ],
)
def test_wrong_grids(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        figure_grid(**{"rows": [[torch.rand(3, 4, 4)]], "path": tmp_path / "x.png", **settings})
    assert not list(tmp_path.iterdir())


def test_missing_libraries_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"figure_grid needs PIL.Image: .*wsss-blocks\[cli\]"):
        figure_grid([[torch.rand(3, 4, 4)]], path=tmp_path / "x.png")
    with pytest.raises(ImportError, match="curve_figure needs matplotlib"):
        curve_figure({"a": ([0], [1])}, path=tmp_path / "x.png", x_label="x", y_label="y")


def masks():
    mask = torch.zeros(2, 32, 32, dtype=torch.int64)
    mask[0, :16], mask[1, 20:, 20:], mask[:, 0, 0] = 1, 2, 255
    return mask


def test_segmentation_figure_shows_columns_classes_and_ignored_pixels(tmp_path):
    images, labels = torch.zeros(2, 3, 32, 32), torch.eye(2)
    everything = {"cam": torch.rand(2, 2, 4, 4), "pseudo_label": masks(), "prediction": masks()}
    segmentation_figure(
        images, labels, path=tmp_path / "all.png", names=NAMES, truth=masks(), **everything
    )
    segmentation_figure(images, labels, path=tmp_path / "few.png", names=NAMES, truth=masks())
    full, few = pixels(tmp_path / "all.png"), pixels(tmp_path / "few.png")
    assert full.shape[0] == few.shape[0]
    assert full.shape[1] > 2 * few.shape[1]
    for k in (1, 2, 255):
        assert holds(full, voc_palette()[k].numpy())


def test_segmentation_figure_takes_lists_empty_rows_and_unknown_ids(tmp_path):
    segmentation_figure(
        [torch.rand(3, 8, 12), torch.rand(3, 5, 5)],
        torch.tensor([[0.0, 0.0], [1.0, 1.0]]),
        path=tmp_path / "lists.png",
        names=NAMES,
        cam=[torch.zeros(2, 1, 1), torch.full((2, 3, 2), -1.0)],
        prediction=[torch.full((8, 12), 9), torch.zeros(5, 5, dtype=torch.uint8)],
    )
    assert holds(pixels(tmp_path / "lists.png"), voc_palette()[9].numpy())
    with pytest.raises(ValueError, match=r"labels must have shape .* with B=1, K=2"):
        segmentation_figure(
            torch.rand(1, 3, 4, 4), torch.ones(1, 3), path=tmp_path / "x.png", names=NAMES
        )


def test_similarity_maps_share_one_scale(tmp_path):
    images = torch.zeros(1, 3, 16, 16)
    scores = torch.tensor([0.0, 1.0])[None, :, None, None].expand(1, 2, 4, 4)
    similarity_figure(images, scores, path=tmp_path / "s.png", names=["cat", "background"])
    picture = pixels(tmp_path / "s.png")
    ends = heat_colors(torch.tensor([[0.0, 1.0]]))[:, 0].T
    for end in ends:
        assert holds(picture, (0.75 * end * 255).round().int().numpy()), "map"
        assert holds(picture, (end * 255).int().numpy()), "legend"
    similarity_figure(images, scores * 0, path=tmp_path / "flat.png", names=["cat", "dog"])
    assert (tmp_path / "flat.png").exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"names": ["cat"]}, ValueError, "similarity must have shape .* with B=1, M=1"),
        ({"limits": (1.0, 1.0)}, ValueError, "limits must ascend"),
        ({"similarity": torch.zeros(1, 2, 4, 4).long()}, TypeError, "similarity must be a float"),
        ({"images": torch.zeros(3, 8, 8)}, ValueError, r"images must have shape \(B, 3, H, W\)"),
    ],
)
def test_wrong_similarities(tmp_path, change, error, message):
    arguments = {
        "images": torch.zeros(1, 3, 8, 8),
        "similarity": torch.zeros(1, 2, 4, 4),
        "names": ["cat", "background"],
        **change,
    }
    images, similarity = arguments.pop("images"), arguments.pop("similarity")
    with pytest.raises(error, match=message):
        similarity_figure(images, similarity, path=tmp_path / "x.png", **arguments)


def test_curve_figure_draws_lines_and_marks(tmp_path):
    series = {"CAM": ([0.1, 0.2, 0.3], [10.0, math.nan, 30.0]), "none": ([0, 1], [math.nan] * 2)}
    labels = {"x_label": "threshold", "y_label": "mIoU (%)"}
    curve_figure(series, path=tmp_path / "plain.png", **labels)
    curve_figure(series, path=tmp_path / "marked.png", mark_best=True, title="protocol", **labels)
    plain, marked = pixels(tmp_path / "plain.png"), pixels(tmp_path / "marked.png")
    assert plain.shape == marked.shape == (600, 960, 3)
    assert (plain != marked).any()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["marked.png", "plain.png"]


def test_curve_figure_draws_vertical_marks_and_names_them(tmp_path):
    series, labels = {"CAM": ([0.0, 1.0], [10.0, 30.0])}, {"x_label": "t", "y_label": "mIoU (%)"}
    figures = {"none": None, "one": {"Otsu": 0.25}, "two": {"Otsu": 0.25, "mixture": 0.75}}
    for name, marks in figures.items():
        curve_figure(series, path=tmp_path / f"{name}.png", marks=marks, **labels)
    none, one, two = (pixels(tmp_path / f"{name}.png").astype(int) for name in figures)

    def marked(picture):  # columns that are dark more often than without marks
        return ((picture.sum(-1) < 400).sum(0) - (none.sum(-1) < 400).sum(0)) > 100

    def places(picture):
        columns = np.flatnonzero(marked(picture))
        return 1 + int((np.diff(columns) > 3).sum()) if len(columns) else 0

    assert [places(picture) for picture in (none, one, two)] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"marks\['Otsu'\] must be finite, got nan"):
        curve_figure(series, path=tmp_path / "x.png", marks={"Otsu": math.nan}, **labels)
    for wrong in ([0.3], {"Otsu": "high"}):
        with pytest.raises(TypeError, match=r"marks.* must be a (mapping|number)"):
            curve_figure(series, path=tmp_path / "x.png", marks=wrong, **labels)


def test_curve_figure_accepts_tensors(tmp_path):
    x = torch.linspace(0, 1, 5)
    curve_figure({"a": (x, x * x)}, path=tmp_path / "t.png", x_label="x", y_label="y")
    assert pixels(tmp_path / "t.png").std() > 0


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({}, "series must hold at least one line"),
        ({"a": ([1, 2], [1])}, r"series\['a'\] must hold as many x as y values, got 2 and 1"),
        ({"a": ([], [])}, "got 0 and 0"),
    ],
)
def test_wrong_curves(tmp_path, series, message):
    with pytest.raises(ValueError, match=message):
        curve_figure(series, path=tmp_path / "x.png", x_label="x", y_label="y")
