"""Planted mistakes (faults.py): each message names argument or file, expectation and what came."""

import json
import re
from collections import Counter

import pytest
import torch
from faults import FAULTS, Fault, plant


@pytest.mark.parametrize("one", FAULTS, ids=lambda one: one.name.replace(" ", "_"))
def test_the_message_says_what_is_wrong(one, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plant(one, tmp_path)


def test_there_are_enough_faults_of_each_kind():
    kinds = Counter(one.kind for one in FAULTS)
    assert kinds["tensors"] >= 25
    assert kinds["files"] >= 25
    assert len({one.name for one in FAULTS}) == len(FAULTS)


def test_a_pattern_that_anything_matches_proves_nothing():
    odd = ["", "went wrong", "/somewhere/else.txt: 7", "Error: -1"]
    for one in FAULTS:
        assert not all(re.search(p, text) for text in odd for p in one.says), one.name


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda folder: None, "nothing was said"),
        (lambda folder: [][0], "IndexError"),
        (lambda folder: int("x"), "lacks"),
    ],
)
def test_the_judge_refuses_the_rest(make, complaint, tmp_path):
    with pytest.raises(AssertionError, match=complaint):
        plant(Fault("one", "files", make, ("x must be",)), tmp_path)


def test_the_record_keeps_the_sections_of_other_commands(tmp_path, capsys):
    from benchmarks import reliability

    path, threads = tmp_path / "results" / "reliability.json", torch.get_num_threads()
    to = ["--output", str(path)]
    fuzzed = reliability.main(
        [*to, "fuzz", "--cases", "6", "--names", "scale_box", "normalize_cam"]
    )
    planted = reliability.main([*to, "faults"])
    torch.set_num_threads(threads)
    assert fuzzed["totals"] == {
        "names": 2,
        "cases": 12,
        "clear_errors": fuzzed["totals"]["clear_errors"],
        "finite_results": 12 - fuzzed["totals"]["clear_errors"],
        "failures": 0,
    }
    assert planted["totals"] == {"planted": len(FAULTS), "named": len(FAULTS)}
    record = json.loads(path.read_text())
    assert set(record) == {"fuzz", "faults"}
    for section in record.values():
        assert {"command", "commit", "date", "hardware", "cpu_seconds"} <= set(section)
    assert "planted" in capsys.readouterr().out
