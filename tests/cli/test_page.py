import base64
import io
import math
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_blocks.cli import Picture, write_page
from wsss_blocks.data import voc_palette
from wsss_blocks.metrics import EvaluationProtocol

PROTOCOL = EvaluationProtocol(
    dataset="pets <&> more",
    split="val",
    num_images=2,
    scales=(1.0, 0.5),
    flip=False,
    refiner="none",
    labels_used=False,
    ground_truth_hash="0123456789abcdef",
)
TRUTH = torch.zeros(6, 8, dtype=torch.uint8)
TRUTH[:3, :4], TRUTH[5] = 1, 255
PREDICTION = torch.zeros(6, 8, dtype=torch.int64)
PREDICTION[0, :4], PREDICTION[1, :4], PREDICTION[3, 4:] = 1, 2, 2
IMAGE = (torch.arange(6 * 8 * 3) % 256).view(6, 8, 3).to(torch.uint8)
ROWS = [
    {"class": "background", "iou": 0.875, "precision": 1.0},
    {"class": "<cat>", "iou": 0.25, "precision": math.nan},
    {"class": "dog", "iou": math.nan, "precision": 0.5},
]
RUN = {
    "seed": None,
    "command": "wsss <i>x",
    "hardware": {"cpu": "some", "cores": 2},
    "bootstrap": {"seg": {"level": 0.95, "low": 50.5, "high": 60.25, "replicates": [1.25] * 1000}},
}


def page(path, **changes):
    settings = {
        "title": "Cats & <dogs>",
        "scores": {"miou": 0.5625, "mfpr": 0.25, "pixel_accuracy": math.nan},
        "table": ROWS,
        "protocol": PROTOCOL,
        "pictures": [Picture('a"<b>', "best, <i>mIoU 80.00", IMAGE, PREDICTION, TRUTH)],
        "names": ("background", "<cat>", "dog"),
        "palette": voc_palette(3),
        "run": RUN,
        **changes,
    }
    write_page(path, **settings)
    return Reader(path.read_text(encoding="utf-8"))


class Reader(HTMLParser):
    """Collects what a reader sees; fails on tags that do not match."""

    EMPTY = ("meta", "img", "br")

    def __init__(self, source):
        super().__init__()
        self.source, self.open, self.rows, self.images = source, [], [], []
        self.text, self.bars, self.tags = "", [], set()
        self.feed(source)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        for name, value in attrs.items():
            assert name not in ("href", "srcset", "onclick", "onload")
            assert name != "src" or value.startswith("data:image/")
        if tag == "img":
            self.images.append((attrs["alt"], attrs["src"]))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if attrs.get("class") == "bar":
            self.bars.append(attrs["style"])
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data + " "
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def panels(reader):
    found = {}
    for alt, src in reader.images:
        raw = base64.b64decode(src.partition(",")[2])
        found[alt.partition(" of ")[0]] = Image.open(io.BytesIO(raw))
    return found


def test_the_file_stands_alone_and_says_everything(tmp_path):
    found = page(tmp_path / "new" / "page.html")
    assert not {"script", "link", "iframe", "object"} & found.tags
    for outside in ("http", "url(", "@import"):
        assert outside not in found.source
    assert "Cats & <dogs>" in found.text
    assert PROTOCOL.describe() in found.text
    text = " ".join(found.text.split())
    assert "mIoU 56.25 50.50 to 60.25 (95% of resamplings)" in text
    assert "mFPR 25.00" in text
    assert "pixel accuracy \N{EN DASH}" in text
    assert 'a"<b> best, <i>mIoU 80.00' in text
    assert "1.25" not in found.text  # replicates
    assert ["class", "IoU", "precision"] in found.rows
    at = found.rows.index(["background", "87.50", "100.00"])
    assert found.rows[at + 1] == ["<cat>", "25.00", "\N{EN DASH}"]
    assert found.rows[at + 2] == ["dog", "\N{EN DASH}", "50.00"]
    assert found.bars == ["--v:87.50%", "--v:25.00%"]
    facts = dict(row for row in found.rows if len(row) == 2)
    assert set(PROTOCOL.to_dict()) <= set(facts)
    assert facts["scales"] == "1.0, 0.5"
    assert facts["labels_used"] == "no"
    assert facts["threshold"] == "not given"
    assert facts["dataset"] == "pets <&> more"
    assert facts["command"] == "wsss <i>x"
    assert facts["hardware"] == "cpu: some, cores: 2"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["page.html"]


def test_the_panels_show_image_truth_prediction_and_errors(tmp_path):
    found = panels(page(tmp_path / "page.html"))
    assert list(found) == ["image", "truth", "prediction", "errors"]
    assert found["image"].format == "JPEG"
    assert {found[name].format for name in ("truth", "prediction", "errors")} == {"PNG"}
    assert np.array_equal(np.array(found["truth"]), TRUTH.numpy())
    assert np.array_equal(np.array(found["prediction"]), PREDICTION.numpy())
    colors = np.array(found["prediction"].convert("RGB"))
    assert np.array_equal(colors, voc_palette().numpy()[PREDICTION.numpy()])
    expected = np.zeros((6, 8))
    expected[1, :4], expected[2, :4], expected[3, 4:], expected[5] = 3, 1, 2, 4
    assert np.array_equal(np.array(found["errors"]), expected)


def test_the_legend_names_the_colours_that_occur(tmp_path):
    found = page(tmp_path / "page.html", palette=torch.tensor([[0, 0, 0], [1, 2, 3], [4, 5, 6]]))
    for color, name in (((1, 2, 3), "&lt;cat&gt;"), ((4, 5, 6), "dog")):
        assert f'<i style="background:rgb{color}"></i>{name}</li>' in found.source
    assert found.source.count("ignored</li>") == 1
    assert "missed" in found.text
    few = page(tmp_path / "few.html", pictures=[Picture("a", "", None, TRUTH * 0, TRUTH * 0)])
    assert "dog</li>" not in few.source
    assert list(panels(few)) == ["truth", "prediction", "errors"]


def test_the_ignored_id_is_that_of_the_protocol(tmp_path):
    other = EvaluationProtocol(**{**PROTOCOL.to_dict(), "ignore_index": 2})
    errors = np.array(panels(page(tmp_path / "page.html", protocol=other))["errors"])
    assert (errors[1, :4] == 4).all()
    assert (errors[5] == 1).all()


def test_pictures_are_scaled_down_and_may_be_arrays(tmp_path):
    mask = np.zeros((700, 1000), dtype=np.uint8)
    mask[:350] = 1
    image = np.full((700, 1000, 3), 7, dtype=np.uint8)
    found = panels(page(tmp_path / "page.html", pictures=[Picture("a", "", image, mask, mask)]))
    assert {p.size for p in found.values()} == {(320, 224)}
    assert np.unique(np.array(found["truth"])).tolist() == [0, 1]
    thin = np.zeros((1, 4000), dtype=np.uint8)
    one = page(tmp_path / "page.html", pictures=[Picture("a", "", None, thin, thin)])
    assert {p.size for p in panels(one).values()} == {(320, 1)}


def test_without_pictures_table_or_run(tmp_path):
    found = page(tmp_path / "page.html", pictures=[], table=[], run={}, scores={})
    assert "Images" not in found.text
    assert "Classes" not in found.text
    assert "Protocol" in found.text


@pytest.mark.parametrize(
    ("scores", "table", "shown"),
    [
        ({"seg/miou": 0.5}, {"seg": {}, "cam": {}}, True),
        ({"cam/miou": 0.5}, {"seg": {}}, False),
        ({"miou": 0.5}, {"seg": {}, "cam": {}}, False),
        ({"seg/mfpr": 0.5}, {"seg": {}}, False),
        ({"miou": 0.5}, {"seg": {"low": None}}, False),
    ],
)
def test_an_interval_stands_beside_its_own_result_only(tmp_path, scores, table, shown):
    own = {"level": 0.9, "low": 1.0, "high": 2.0}
    run = {"bootstrap": {name: {**own, **more} for name, more in table.items()}}
    found = page(tmp_path / "page.html", scores=scores, run=run)
    assert ("1.00 to 2.00 (90% of resamplings)" in found.text) == shown


def test_names_of_files_that_are_no_text(tmp_path):
    odd = Picture("caf\udce9 東京", "", None, TRUTH, TRUTH)
    found = page(tmp_path / "page.html", pictures=[odd])
    assert "caf\\udce9 東京" in found.text


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"protocol": None}, TypeError, "protocol must be an EvaluationProtocol, got NoneType"),
        ({"palette": torch.zeros(3, 4)}, ValueError, r"palette must have shape \(n, 3\)"),
        (
            {"pictures": [Picture("a", "", None, TRUTH[:2], TRUTH)]},
            ValueError,
            r"pictures must have masks \(H, W\) of one size, got \(2, 8\) and \(6, 8\) for 'a'",
        ),
        (
            {"pictures": [Picture("a", "", IMAGE[:, :4], TRUTH, TRUTH)]},
            ValueError,
            r"pictures must have uint8 images of shape \(6, 8, 3\), got uint8 \(6, 4, 3\)",
        ),
        (
            {"pictures": [Picture("a", "", IMAGE / 255, TRUTH, TRUTH)]},
            ValueError,
            "got float32",
        ),
        (
            {"pictures": [Picture("a", "", None, TRUTH.int() - 1, TRUTH)]},
            ValueError,
            r"pictures must hold ids in \[0, 255\], got -1 to 254",
        ),
    ],
)
def test_wrong_arguments(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        page(tmp_path / "page.html", **change)
    assert not list(tmp_path.iterdir())
