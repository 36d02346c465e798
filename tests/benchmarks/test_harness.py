import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks._harness import Options, compare, max_difference, mismatch_share, run
from benchmarks.baselines.label_eager import label_eager, label_lean

ROOT = Path(__file__).resolve().parents[2]
QUICK = Options(quick=True)


def spin(milliseconds):
    def work():
        end = time.process_time() + milliseconds / 1e3
        while time.process_time() < end:
            pass
        return torch.ones(2)

    return work


def test_ratios_bars_and_absent_peers(capsys):
    result = compare(
        "spinning",
        {"slow": spin(8), "ours": spin(2), "gone": None},
        reference="ours",
        options=Options(),
        bars={"slow": 2.0, "gone": 1.0},
    )
    slow, ours, gone = result["rows"]
    assert slow["ratio"] == pytest.approx(4, rel=0.3)
    assert slow["ms"] == pytest.approx(8, rel=0.3)
    assert ours["ratio"] == 1
    assert gone == {"name": "gone", "absent": True}
    assert result["bars"] == [{"over": "slow", "wanted": 2.0, "met": True}]
    out = capsys.readouterr().out
    assert "absent" in out
    assert "at least 2x faster than slow: met" in out


def test_a_missed_bar_is_said():
    result = compare(
        "spinning",
        {"peer": spin(2), "ours": spin(2)},
        reference="ours",
        options=Options(),
        bars={"peer": 3.0},
    )
    assert result["bars"][0]["met"] is False


def test_wrong_results_are_not_timed():
    candidates = {"peer": lambda: torch.zeros(3), "ours": lambda: torch.ones(3)}
    with pytest.raises(AssertionError, match="peer differs from ours by 1"):
        compare("wrong", candidates, reference="ours", options=QUICK, tolerance=0.5)
    nan = {"peer": lambda: torch.full((3,), torch.nan), "ours": lambda: torch.ones(3)}
    with pytest.raises(AssertionError, match="differs"):
        compare("wrong", nan, reference="ours", options=QUICK, tolerance=0.5)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_is_that_of_one_call():
    result = compare(
        "memory",
        {"large": lambda: torch.ones(64 * 2**18).sum(), "ours": lambda: torch.ones(1)},
        reference="ours",
        options=QUICK,
        difference=lambda a, b: 0.0,
    )
    large, ours = result["rows"]
    assert 55 < large["mib"] - ours["mib"] < 75


def test_differences_look_into_tuples():
    assert (
        max_difference((torch.zeros(2), [torch.ones(1)]), (torch.zeros(2), [torch.zeros(1)])) == 1
    )
    with pytest.raises(ValueError, match="argument"):
        max_difference((torch.zeros(2),), (torch.zeros(2), torch.zeros(2)))
    assert mismatch_share(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5])) == 0.25


def test_results_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--quick", "--output", str(tmp_path / "results")])

    def cases(options):
        assert options.quick
        yield compare("one", {"ours": spin(1)}, reference="ours", options=options)

    run("bench_nothing", cases)
    content = json.loads((tmp_path / "results" / "bench_nothing.json").read_text())
    assert content["cases"][0]["rows"][0]["name"] == "ours"
    assert content["quick"] is True
    assert content["hardware"]["threads"] == 1
    assert {"name", "command", "commit", "date", "rounds"} <= set(content)
    assert len(list((tmp_path / "results").iterdir())) == 1


def test_eager_baselines_agree():
    g = torch.Generator().manual_seed(0)
    cam, labels = torch.randn(2, 5, 6, 7, generator=g), torch.ones(2, 5)
    settings = {"size": (31, 29), "threshold": (0.3, 0.6)}
    eager, lean = label_eager(cam, labels, **settings), label_lean(cam, labels, **settings)
    assert torch.equal(eager, lean)
    assert set(eager.unique().tolist()) == {0, 1, 2, 3, 4, 5, 255}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["bench_evaluator", "bench_cam_to_label", "bench_class_average_pool", "bench_similarity_cam"],
)
def test_benchmark_runs_at_small_sizes(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / f"{name}.json").read_text())
    assert content["cases"]
    assert all(len(case["rows"]) > 1 for case in content["cases"])
