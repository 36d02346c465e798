"""What the library does about bad input, kills and many processes, counted.

``python -m benchmarks.reliability fuzz --cases 400`` runs that many seeded cases for each public
name (tests/fuzzing.py), ``... faults`` the planted mistakes (tests/faults.py), ``... kill`` the
kill points of a training run (tests/kill_points.py), ``... processes`` the layouts of processes
(tests/processes.py). Each writes its own section of one results file and leaves the others as they
are.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks._harness import _commit, command
from wsss_blocks.metrics import hardware

__all__ = ["faults", "fuzz", "kill", "main", "processes", "write_section"]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "reliability.json"


def fuzz(*, cases: int, names: Sequence[str] = ()) -> dict[str, Any]:
    """Run seeds ``0..cases - 1`` of each target (or of ``names``) and count the outcomes."""
    from tests import fuzzing

    rows: dict[str, dict[str, Any]] = {}
    totals: Counter[str] = Counter()
    for name, target in fuzzing.TARGETS.items():
        if names and name not in names:
            continue
        counts: Counter[str] = Counter()
        failures: list[str] = []
        for seed in range(max(1, cases // 10) if target.slow else cases):
            try:
                counts[fuzzing.check(fuzzing.draw_case(target, seed))] += 1
            except AssertionError as failure:
                counts["failure"] += 1
                failures.append(str(failure).splitlines()[0])
        row: dict[str, Any] = {
            "cases": counts.total(),
            "clear_errors": counts["error"],
            "finite_results": counts["finite"],
            "failures": counts["failure"],
        }
        totals.update(row)
        if failures:
            row["first_failures"] = failures[:5]
        rows[name] = row
        print(f"{name:36}" + "  ".join(f"{k} {v}" for k, v in row.items() if k in totals))
    print(f"{len(rows)} names: " + ", ".join(f"{k} {v}" for k, v in totals.items()))
    return {"cases_per_name": cases, "names": rows, "totals": {"names": len(rows), **totals}}


def faults() -> dict[str, Any]:
    """Plant each mistake and count the messages that name what is wrong."""
    from tests import faults as planted

    kinds: dict[str, dict[str, int]] = {}
    silent: list[str] = []
    for one in planted.FAULTS:
        row = kinds.setdefault(one.kind, {"planted": 0, "named": 0})
        row["planted"] += 1
        with tempfile.TemporaryDirectory() as folder:
            try:
                planted.plant(one, Path(folder))
                row["named"] += 1
            except AssertionError as failure:
                silent.append(str(failure).splitlines()[0])
    totals = {key: sum(row[key] for row in kinds.values()) for key in ("planted", "named")}
    for kind, row in {**kinds, "all": totals}.items():
        print(f"{kind:10} planted {row['planted']}, named {row['named']}")
    for line in silent:
        print(f"not named: {line}")
    return {"kinds": kinds, "totals": totals, "not_named": silent}


def kill(*, steps: int, saves: int | None, seed: int) -> dict[str, Any]:
    """Kill runs at random steps and at operations of saving; count exact continuations."""
    from tests import kill_points

    runs = {}
    for name in kill_points.RUNS:
        found = kill_points.storm(name, steps=steps, saves=saves, seed=seed)
        results: dict[str, str] = found["results"]  # type: ignore[assignment]
        runs[name] = {
            "operations_of_saving": found["operations"],
            "points": len(results),
            "while_saving": sum(point.startswith("save") for point in results),
            "exact": sum(result == "exact" for result in results.values()),
            "others": {point: result for point, result in results.items() if result != "exact"},
        }
        print(f"{name}: {runs[name]}", flush=True)
    totals = {
        key: sum(run[key] for run in runs.values()) for key in ("points", "while_saving", "exact")
    }
    return {"seed": seed, "runs": runs, "totals": totals}


def processes() -> dict[str, Any]:
    """Train in several layouts of processes and micro-batches and compare with one process."""
    from tests import processes as layouts

    others = [name for name in layouts.LAYOUTS if name != "1 x 16"]
    with tempfile.TemporaryDirectory() as folder:
        found = layouts.compare(Path(folder), others)
    for name, row in found.items():
        print(f"{name}: {row}")
    return {"reference": "1 x 16", "steps": layouts.STEPS, "layouts": found}


def write_section(path: Path, name: str, content: dict[str, Any]) -> None:
    """Put one section into the results file, with what it was measured by; keep the others."""
    record = json.loads(path.read_text()) if path.is_file() else {}
    record[name] = {
        "command": command("reliability"),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        **content,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)
    print(f"wrote section {name!r} of {path}")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run one sub-command and write its section; returns what was counted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the results file")
    commands = parser.add_subparsers(dest="section", required=True)
    fuzzed = commands.add_parser("fuzz", help="random bad arguments of every public name")
    fuzzed.add_argument("--cases", type=int, default=400, help="per name; a tenth of slow ones")
    fuzzed.add_argument("--names", nargs="*", default=(), help="default all")
    commands.add_parser("faults", help="planted mistakes")
    killed = commands.add_parser("kill", help="SIGKILL at random steps and while saving")
    killed.add_argument("--steps", type=int, default=4, help="random steps per run")
    killed.add_argument("--saves", type=int, help="operations of saving per run; default: each")
    killed.add_argument("--seed", type=int, default=0)
    commands.add_parser("processes", help="layouts of processes and micro-batches")
    chosen = parser.parse_args(arguments)
    run: dict[str, Callable[[], dict[str, Any]]] = {
        "fuzz": lambda: fuzz(cases=chosen.cases, names=chosen.names),
        "faults": faults,
        "kill": lambda: kill(steps=chosen.steps, saves=chosen.saves, seed=chosen.seed),
        "processes": processes,
    }
    torch.set_num_threads(1)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own about odd arguments
        content = run[chosen.section]()
    content["cpu_seconds"] = round(time.process_time() - start, 1)
    write_section(chosen.output, chosen.section, content)
    return content


if __name__ == "__main__":
    main()
