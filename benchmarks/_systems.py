"""What the tables of whole systems share: trainings in processes of their own, kept, collected."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wsss_blocks.metrics import read_metrics

__all__ = ["ROOT", "present_commit", "train", "train_all", "write_table"]

ROOT = Path(__file__).resolve().parents[1]


def train(script: str, folder: Path, options: Iterable[str]) -> Path:
    """Train and evaluate one variant of an example on one thread, unless that has been done."""
    if not (folder / "metrics.json").is_file():
        path = ROOT / "examples" / script
        command = [sys.executable, str(path), "--output", str(folder), "--resume", *options]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("w") as log:
            threads = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=threads, stdout=log, stderr=log, check=False)
        if done.returncode:
            raise RuntimeError(f"{folder} failed:\n{(folder / 'log.txt').read_text()[-2000:]}")
    print(f"done: {folder.name}", flush=True)
    return folder / "metrics.json"


def train_all(
    script: str, jobs: Mapping[Any, tuple[Path, Sequence[str]]], *, at_once: int
) -> dict[Any, Any]:
    """Train all variants, some at a time, and read their metrics."""
    with ThreadPoolExecutor(at_once) as pool:
        paths = pool.map(lambda job: train(script, *job), jobs.values())
        return {key: read_metrics(path) for key, path in zip(jobs, paths, strict=True)}


def present_commit() -> str:
    """Return the short hash of the commit that is checked out."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def write_table(path: Path, content: Mapping[str, Any]) -> None:
    """Write what ``tools/result_tables.py`` makes a table of, with the date."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"date": datetime.now(UTC).date().isoformat(), **content}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {path.name}")
