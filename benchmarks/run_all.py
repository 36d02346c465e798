"""Run every benchmark, each in a process of its own, and say which failed.

Run ``python -m benchmarks.run_all [--quick] [--output DIR] [--device cpu|cuda]``.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_all")
    parser.add_argument("--quick", action="store_true", help="small sizes: do they run at all?")
    parser.add_argument("--output", type=Path, help="folder for the results")
    parser.add_argument("--device", choices=["all", "cpu", "cuda"], default="all")
    chosen = parser.parse_args()
    failed = []
    for path in sorted(FOLDER.glob("bench_*.py")):
        command = [sys.executable, "-m", f"benchmarks.{path.stem}", "--device", chosen.device]
        if chosen.quick:
            command.append("--quick")
        if chosen.output is not None:
            chosen.output.mkdir(parents=True, exist_ok=True)
            command += ["--output", str(chosen.output.resolve() / f"{path.stem}.json")]
        print(f"\n=== {path.stem}", flush=True)
        start = time.monotonic()
        code = subprocess.run(command, cwd=FOLDER.parent, check=False).returncode
        print(f"=== {path.stem}: exit {code}, {time.monotonic() - start:.0f} s", flush=True)
        if code:
            failed.append(path.stem)
    print(f"failed: {', '.join(failed)}" if failed else "all benchmarks ran")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
