import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import _harness
from benchmarks._harness import (
    Options,
    compare,
    max_difference,
    memory_share,
    mismatch_share,
    run,
)
from benchmarks.run_all import summary

ROOT = Path(__file__).resolve().parents[2]
QUICK = Options(quick=True)


@pytest.fixture
def spin(spend):
    """Make calls that take some milliseconds of process time."""

    def spin(milliseconds):
        def work():
            spend(milliseconds)
            return torch.ones(2)

        return work

    return spin


def test_ratios_bars_and_absent_peers(spin, capsys):
    result = compare(
        "spinning",
        {"slow": spin(8), "ours": spin(2), "gone": None},
        reference="ours",
        options=Options(),
        bars={"slow": 2.0, "gone": 1.0},
    )
    slow, ours, gone = result["rows"]
    assert slow["ratio"] == pytest.approx(4)
    assert slow["ms"] == pytest.approx(8)
    assert ours["ratio"] == 1
    assert gone == {"name": "gone", "absent": True}
    assert result["bars"] == [{"what": "time", "over": "slow", "wanted": 2.0, "met": True}]
    out = capsys.readouterr().out
    assert "absent" in out
    assert "at least 2x faster than slow: met" in out


def test_a_missed_bar_is_said(spin):
    result = compare(
        "spinning",
        {"peer": spin(2), "ours": spin(2)},
        reference="ours",
        options=Options(),
        bars={"peer": 3.0},
        note="Bound by the clock.",
    )
    assert result["bars"][0]["met"] is False
    assert result["note"] == "Bound by the clock."


def test_wrong_results_are_not_timed():
    candidates = {"peer": lambda: torch.zeros(3), "ours": lambda: torch.ones(3)}
    with pytest.raises(AssertionError, match="peer differs from ours by 1"):
        compare("wrong", candidates, reference="ours", options=QUICK, tolerance=0.5)
    nan = {"peer": lambda: torch.full((3,), torch.nan), "ours": lambda: torch.ones(3)}
    with pytest.raises(AssertionError, match="differs"):
        compare("wrong", nan, reference="ours", options=QUICK, tolerance=0.5)


def allocate(mebibytes):
    return lambda: torch.ones(int(mebibytes * 2**18)).sum()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_is_that_of_one_call():
    kept = [torch.ones(5 * 2**18) for _ in range(40)]
    del kept  # what the allocator keeps of it must not hide what the calls take
    result = compare(
        "memory",
        {"large": allocate(64), "ours": allocate(4), "gone": None},
        reference="ours",
        options=Options(),
        memory_bars={"large": 1 / 10, "ours": 1 / 2, "gone": 1 / 2},
        difference=lambda a, b: 0.0,
    )
    large, ours, _ = result["rows"]
    assert large["mib"] == pytest.approx(64, abs=2)
    assert ours["mib"] == pytest.approx(4, abs=2)
    assert memory_share(large, ours) == pytest.approx(1 / 16, rel=0.5)
    assert result["bars"] == [
        {"what": "memory", "over": "large", "wanted": 1 / 10, "met": True},
        {"what": "memory", "over": "ours", "wanted": 1 / 2, "met": False},
    ]


def test_unknown_memory_has_no_bar(spin, monkeypatch, capsys):
    monkeypatch.setattr(_harness, "_peak_mib", lambda fn, device: None)
    candidates = {"peer": spin(2), "ours": spin(2)}
    result = compare(
        "memory", candidates, reference="ours", options=Options(), memory_bars={"peer": 0.1}
    )
    assert result["bars"] == []
    assert memory_share({"mib": 0.0}, {"mib": 1.0}) is None
    assert "?" in capsys.readouterr().out


def test_missed_memory_bar_is_said(spin, monkeypatch, capsys):
    monkeypatch.setattr(_harness, "_peak_mib", lambda fn, device: 3.0)
    candidates = {"peer": spin(2), "ours": spin(2)}
    result = compare(
        "memory", candidates, reference="ours", options=Options(), memory_bars={"peer": 0.2}
    )
    assert result["bars"][0]["met"] is False
    assert "at most 0.2 of the memory of peer: NOT met" in capsys.readouterr().out


def test_quick_runs_have_no_bars(spin):
    candidates = {"peer": spin(2), "ours": spin(2)}
    bars = {"peer": 2.0}
    result = compare(
        "quick", candidates, reference="ours", options=QUICK, bars=bars, memory_bars=bars
    )
    assert result["bars"] == []


def test_summary_has_one_line_per_case():
    rows = [
        {"name": "peer", "ms": 30.0, "ratio": 20.0, "mib": 40.0},
        {"name": "gone", "absent": True},
        {"name": "ours", "ms": 1.5, "ratio": 1.0, "mib": 4.0},
    ]
    bars = [
        {"what": "time", "over": "peer", "wanted": 8.0, "met": True},
        {"what": "memory", "over": "peer", "wanted": 0.05, "met": False},
    ]
    case = {"case": "B2", "device": "cpu", "reference": "ours", "rows": rows, "bars": bars}
    _, name, line = summary([{"name": "bench_x", "cases": [case]}])
    assert name == "x"
    assert line == ("  B2 (cpu): 1.5 ms; peer 20x [10x]; bars 1/2 (not met: memory over peer)")


def test_differences_look_into_tuples():
    assert (
        max_difference((torch.zeros(2), [torch.ones(1)]), (torch.zeros(2), [torch.zeros(1)])) == 1
    )
    with pytest.raises(ValueError, match="argument"):
        max_difference((torch.zeros(2),), (torch.zeros(2), torch.zeros(2)))
    assert mismatch_share(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5])) == 0.25


def test_results_file(spin, tmp_path, monkeypatch):
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


# The training step is left out: it compiles for minutes.
BENCHMARKS = {path.stem for path in (ROOT / "benchmarks").glob("bench_*.py")}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BENCHMARKS - {"bench_training_step"}))
def test_benchmark_runs_at_small_sizes(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / f"{name}.json").read_text())
    assert content["cases"]
    assert all(len(case["rows"]) > 1 for case in content["cases"])
