"""The measurement of an export of COCO's size runs, and its table says what is extrapolated."""

import json
import threading

import pytest
import torch

from benchmarks import coco_export
from tools.result_tables import coco_export_page


@pytest.fixture
def here(monkeypatch):
    """Measure in this process: starting 28 others would take minutes."""
    monkeypatch.setattr(coco_export, "apart", coco_export.measure)
    monkeypatch.setattr(coco_export, "_commit", lambda: "0123456789")


def test_six_images(here, tmp_path, capsys):
    path = tmp_path / "out" / "found.json"
    before = threading.active_count()
    coco_export.main(["--images", "6", "--work", str(tmp_path), "--output", str(path)])
    assert threading.active_count() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]  # nothing else is left
    found = json.loads(path.read_text())
    assert (found["images"], found["half"], found["whole"]) == (6, 3, 82_081)
    rows = {row["step"]: row for row in found["rows"]}
    assert list(rows) == [step for step in coco_export.STEPS if step != "photographs"]
    assert all(row["cpu_ms"] > 0 for row in rows.values())
    cells = sum(one.cam(8)[one.classes].numel() for one in map(coco_export.Drawn.at, range(6)))
    stored = rows["write maps, uint8, stride 8"]["bytes"]
    assert cells < stored < cells + 6000
    # Copied photographs are not counted: two small files more than the masks.
    extra = rows["export mmseg"]["bytes"] - rows["export voc-png"]["bytes"]
    assert 0 < extra < 10_000
    page = coco_export_page(path)
    ms = rows["export voc-png"]["cpu_ms"]
    line = next(line for line in page.splitlines() if line.startswith("| export voc-png |"))
    assert line.split(" | ")[1] == f"{ms:.2f}"
    assert line.split(" | ")[5] == f"{ms * 82_081 / 60_000:.1f}"
    assert "extrapolated to 82,081: CPU, minutes" in page
    assert "Measured: 6 drawn images" in page
    assert coco_export_page(tmp_path / "gone.json") == "Not measured.\n"


def test_drawn_images_are_like_coco():
    drawn = [coco_export.Drawn.at(i) for i in range(400)]
    assert sum(len(one.classes) for one in drawn) / 400 == pytest.approx(2.9, abs=0.3)
    assert sum(one.size == (480, 640) for one in drawn) / 400 == pytest.approx(0.36, abs=0.08)
    cam = drawn[0].cam(8)
    assert torch.equal(cam, coco_export.Drawn.at(0).cam(8))  # the same each time
    assert (cam >= 0).all()
    shown = cam.amax((1, 2)) > 0
    assert shown.nonzero()[:, 0].tolist() == drawn[0].classes
    # Smooth: neighbours differ little, and not constant.
    steps = cam[shown].diff(dim=2).abs().mean() / cam[shown].std()
    assert 0.001 < steps < 0.2
