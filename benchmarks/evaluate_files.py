"""Time and memory of scoring a folder of masks, against a loop in as many processes.

``python -m benchmarks.evaluate_files [--masks 12031] [--workers 2] [--output FILE]``

Masks of 500 x 375 with a few objects, each with a border of 255, are drawn; predictions are the
same masks, shifted and without the border. "loop" is what most repositories do: pillow, a boolean
index and ``numpy.bincount`` in a ``multiprocessing.Pool``, for the mIoU alone. "loop with boundary"
adds boundary IoU by an erosion of each class (scipy); it takes so long that it runs on fewer masks,
as ``masks`` of its row says. All variants run in processes of their own and take turns. Seconds
include the start of the processes and, for the command, the loading of torch; memory is the largest
resident set of one process (peak) and the sum over the variant's processes (pages that several
share are counted for each), both sampled.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks._harness import _commit, command
from wsss_blocks.data import write_mask
from wsss_blocks.metrics import hardware

ROOT = Path(__file__).resolve().parents[1]
DRAWN = 400  # different pairs; the others are copies
LOOP = ["-m", "benchmarks.baselines.evaluate_loop"]


def variants(folder: Path, workers: int) -> dict[str, tuple[list[str], bool]]:
    """Name each variant: its command, and whether it takes the small folder."""
    end = ["--workers", str(workers)]
    evaluate = ["-m", "wsss_blocks", "evaluate"]
    given = ["--names", "voc", "--image-labels", "not-used", *end]

    def paths(of: str) -> list[str]:
        return [str(folder / of / "predictions"), "--masks", str(folder / of / "masks")]

    few = [*evaluate, *paths("few"), *given, "--boundary", "yes"]
    return {
        "loop": ([*LOOP, *paths("all"), *end], False),
        "wsss evaluate --replicates 0": (
            [*evaluate, *paths("all"), *given, "--replicates", "0"],
            False,
        ),
        "wsss evaluate": ([*evaluate, *paths("all"), *given], False),
        "wsss evaluate --boundary yes": (
            [*evaluate, *paths("all"), *given, "--boundary", "yes"],
            False,
        ),
        "loop with boundary": ([*LOOP, *paths("few"), *end, "--boundary"], True),
        "wsss evaluate --boundary yes, few": (few, True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluate_files")
    parser.add_argument("--masks", type=int, default=12_031)
    parser.add_argument("--few", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    output = ROOT / "benchmarks" / "results" / "evaluate_files.json"
    parser.add_argument("--output", type=Path, default=output)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder, all=chosen.masks, few=chosen.few)
        todo = variants(folder, chosen.workers)
        runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in todo}
        for _ in range(chosen.rounds):
            for variant, (words, _) in todo.items():
                runs[variant].append(measure([sys.executable, *words]))
                print(variant, runs[variant][-1], flush=True)
    scores = {variant: {run["miou"] for run in found} for variant, found in runs.items()}
    for few in (False, True):
        agreed = set().union(*(scores[v] for v, (_, small) in todo.items() if small == few))
        if len(agreed) != 1:
            raise SystemExit(f"the variants must agree on the mIoU, got {agreed}")
    rows = [
        {
            "variant": variant.removesuffix(", few"),
            "masks": chosen.few if small else chosen.masks,
            "seconds": median(run["seconds"] for run in runs[variant]),
            "ratio": median(
                base["seconds"] / run["seconds"]
                for base, run in zip(
                    runs["loop with boundary" if small else "loop"], runs[variant], strict=True
                )
            ),
            "peak_mib": max(run["peak_mib"] for run in runs[variant]),
            "sum_mib": max(run["sum_mib"] for run in runs[variant]),
        }
        for variant, (_, small) in todo.items()
    ]
    content = {
        "command": command("evaluate_files"),
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "workers": chosen.workers,
        "rounds": chosen.rounds,
        "rows": rows,
        "runs": runs,
    }
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(content, indent=1) + "\n")
    for row in rows:
        print(row)


def draw(folder: Path, **counts: int) -> None:
    """Write ``masks`` and ``predictions`` into a folder for each count."""
    rng = np.random.default_rng(0)
    for n in range(min(DRAWN, max(counts.values()))):
        truth = mask(rng)
        predicted = np.roll(truth, (3, 5), (0, 1))
        predicted[predicted == 255] = 0
        for kind, ids in (("masks", truth), ("predictions", predicted)):
            write_mask(folder / "drawn" / kind / f"{n}.png", ids)
            content = (folder / "drawn" / kind / f"{n}.png").read_bytes()
            for of, count in counts.items():
                (folder / of / kind).mkdir(parents=True, exist_ok=True)
                for copy in range(n, count, DRAWN):
                    (folder / of / kind / f"{copy:06d}.png").write_bytes(content)


def mask(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one to three objects with wavy outlines and a border of 255 around each."""
    ids = np.zeros((375, 500), np.uint8)
    y, x = np.mgrid[:375, :500]
    for _ in range(rng.integers(1, 4)):
        centre, radii = rng.integers((0, 0), (375, 500)), rng.integers(30, 160, 2)
        dy, dx = y - centre[0], x - centre[1]
        distance = (dy / radii[0]) ** 2 + (dx / radii[1]) ** 2
        edge = 1 + 0.2 * np.sin(5 * np.arctan2(dy, dx) + 3 * rng.random())
        ids[distance < 1.08 * edge] = 255
        ids[distance < edge] = rng.integers(1, 21)
    return ids


def measure(words: list[str]) -> dict[str, Any]:
    """Run a command; return its seconds, memory and mIoU."""
    start = time.perf_counter()
    process = psutil.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    peak = total = 0
    while _runs(process):
        sizes = []
        for one in (process, *_children(process)):
            try:
                sizes.append(one.memory_info().rss)
            except psutil.Error:
                continue
        peak, total = max(peak, *sizes, 0), max(total, sum(sizes))
    seconds = time.perf_counter() - start
    text = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{words} ended with {process.returncode}")
    line = next(line for line in text.splitlines() if line.startswith("mIoU"))
    return {
        "seconds": seconds,
        "peak_mib": peak // 2**20,
        "sum_mib": total // 2**20,
        "miou": float(line.split()[1]),
    }


def _runs(process: psutil.Popen) -> bool:
    """Wait a little; looking more often would cost as much as scoring some masks."""
    try:
        process.wait(timeout=0.5)
    except psutil.TimeoutExpired:
        return True
    return False


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


if __name__ == "__main__":
    main()
