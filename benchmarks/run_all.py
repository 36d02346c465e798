"""Run every benchmark, each in a process of its own; say which failed, and all ratios in one table.

Run ``python -m benchmarks.run_all [--quick] [--output DIR] [--device cpu|cuda]``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks._harness import memory_share

FOLDER = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_all")
    parser.add_argument("--quick", action="store_true", help="small sizes: do they run at all?")
    parser.add_argument("--output", type=Path, help="folder for the results")
    parser.add_argument("--device", choices=["all", "cpu", "cuda"], default="all")
    chosen = parser.parse_args()
    failed, results = [], []
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) if chosen.output is None else chosen.output.resolve()
        output.mkdir(parents=True, exist_ok=True)
        for path in sorted(FOLDER.glob("bench_*.py")):
            file = output / f"{path.stem}.json"
            command = [sys.executable, "-m", f"benchmarks.{path.stem}", "--device", chosen.device]
            command += ["--output", str(file), *(["--quick"] if chosen.quick else [])]
            print(f"\n=== {path.stem}", flush=True)
            start = time.monotonic()
            code = subprocess.run(command, cwd=FOLDER.parent, check=False).returncode
            print(f"=== {path.stem}: exit {code}, {time.monotonic() - start:.0f} s", flush=True)
            if code:
                failed.append(path.stem)
            else:
                results.append(json.loads(file.read_text()))
    print("\n" + "\n".join(summary(results)))
    print(f"failed: {', '.join(failed)}" if failed else "all benchmarks ran")
    return 1 if failed else 0


def summary(results: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """Yield one line per case: ours, how many times slower and larger the peers are, the bars."""
    yield "ms of ours; by peer its time and [peak memory] in multiples of ours; bars met"
    for content in results:
        yield content["name"].removeprefix("bench_")
        for case in content["cases"]:
            rows = {row["name"]: row for row in case["rows"] if not row.get("absent")}
            ours = rows.pop(case["reference"])
            peers = ", ".join(_peer(row, ours) for row in rows.values())
            unmet = [f"{b['what']} over {b['over']}" for b in case["bars"] if not b["met"]]
            bars = f"bars {len(case['bars']) - len(unmet)}/{len(case['bars'])}"
            missed = f" (not met: {', '.join(unmet)})" if unmet else ""
            where = f"{case['case']} ({case['device']})"
            yield f"  {where}: {ours['ms']:.3g} ms; {peers}; {bars}{missed}"


def _peer(row: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    share = memory_share(row, ours)
    memory = f" [{1 / share:.3g}x]" if share else ""
    return f"{row['name']} {row['ratio']:.3g}x{memory}"


if __name__ == "__main__":
    sys.exit(main())
