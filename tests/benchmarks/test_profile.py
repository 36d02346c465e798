"""The profile of a training step: stages add up to the step, and every stage is found."""

import json
import sys

import pytest

from benchmarks import profile_dalnet
from benchmarks.profile_dalnet import FIRST, STAGES, Clock, measure, write


def test_a_stage_within_a_stage_counts_once(spend):
    clock = Clock()
    inner = clock.timed("encoder", spend)
    outer = clock.timed("class maps", lambda ms: (spend(ms), inner(ms)))
    inner(1)  # before the first step: not counted
    for _ in range(FIRST + 7):
        clock.next_step()
        inner(1)
        outer(2)
        spend(3)
    found = clock.medians()
    assert list(found) == list(STAGES)
    expected = {"encoder": 1, "class maps": 4, "rest": 3}
    assert found == pytest.approx(dict.fromkeys(STAGES, 0) | expected)


def test_an_error_ends_its_stage(spend):
    clock = Clock()
    clock.next_step()
    with pytest.raises(ZeroDivisionError):
        clock.timed("data", lambda: 1 / 0)()
    clock.timed("encoder", spend)(1)
    assert clock.steps[0]["encoder"] == pytest.approx(1e-3)


def test_every_stage_of_the_example_is_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(profile_dalnet.ROOT / "examples")
    monkeypatch.setattr(profile_dalnet, "FIRST", 0)
    monkeypatch.setitem(sys.modules, "train_dalnet", None)  # put back the module of other tests
    import accelerate

    monkeypatch.setattr(accelerate.Accelerator, "backward", accelerate.Accelerator.backward)
    optimizer = accelerate.optimizer.AcceleratedOptimizer
    for name in ("step", "zero_grad"):
        monkeypatch.setattr(optimizer, name, getattr(optimizer, name))
    options = {"size": 64, "batch_size": 2, "cam_scales": (1.0,), "gia": True}
    found = measure("voc-small", options, 1, tmp_path)
    assert all(found[stage] > 0 for stage in STAGES), found


def test_versions_stand_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["profile_dalnet", "--label", "after", "--output", "x.json"])
    path = tmp_path / "profile.json"
    write(path, "before", {"scenes": {"data": 2.0}, "voc": {"data": 3.0}})
    write(path, "after", {"scenes": {"data": 1.0}})
    content = json.loads(path.read_text())
    assert content["runs"] == {
        "scenes": {"before": {"data": 2.0}, "after": {"data": 1.0}},
        "voc": {"before": {"data": 3.0}},
    }
    assert set(content["labels"]) == {"before", "after"}
    source = content["labels"]["after"]
    assert source["command"] == "python -m benchmarks.profile_dalnet --label after"
    assert set(source) == {"command", "commit", "date", "hardware"}
