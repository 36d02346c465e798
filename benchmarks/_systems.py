"""What the tables of whole systems share: trainings in processes of their own, kept, collected."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wsss_blocks.metrics import read_metrics

__all__ = [
    "ROOT",
    "TableOptions",
    "scored_rows",
    "train",
    "train_all",
    "write_systems",
    "write_table",
]

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """What each table of systems can be told."""

    seeds: tuple[int, ...] = (0, 1, 2)
    jobs: int = 2
    shared: Path = Path(os.environ.get("WSSS_SHARED_DATA", ROOT.parent / "shared" / "data"))
    work: Path = ROOT / "runs" / "tables"
    output: Path = ROOT / "benchmarks" / "results"
    extra: tuple[str, ...] = ()  # more options for every training


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


def scored_rows(
    names: Iterable[str],
    seeds: Sequence[int],
    records: Mapping[Any, Any],
    *,
    columns: Mapping[str, str],
    costs: Mapping[str, str],
) -> tuple[list[dict[str, Any]], dict[str, dict[str, str]]]:
    """Return a row per system, with the results that its runs have, and each column's protocol."""
    rows, protocols = [], {}
    for name in names:
        found: dict[str, dict[str, float]] = {}
        for seed in seeds:
            record = records[name, seed]
            scored = {head: key for head, key in columns.items() if key in record.results}
            values = {head: 100 * record.results[key] for head, key in scored.items()}
            values |= {head: record.run[cost] for head, cost in costs.items()}
            found[str(seed)] = {head: round(float(v), 2) for head, v in values.items()}
            for head, key in scored.items():
                protocols.setdefault(head, {"line": record.protocol[key].describe()})
        rows.append({"name": name, "seeds": found})
    return rows, protocols


def write_systems(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    protocols: Mapping[str, Mapping[str, str]],
    notes: Sequence[str],
    *,
    command: str,
    records: Mapping[Any, Any],
    options: TableOptions,
) -> None:
    """Write ``NAME.json`` with what every table of systems says of itself."""
    commits = sorted({str(record.run["commit"]) for record in records.values()})
    content = {
        "command": f"python -m benchmarks.{command}",
        "commit": ", ".join(commits),
        "hardware": next(iter(records.values())).run["hardware"],
        "protocol": protocols,
        "notes": notes,
        "columns": columns,
        "rows": rows,
    }
    write_table(options.output / f"{name}.json", content)


def write_table(path: Path, content: Mapping[str, Any]) -> None:
    """Write what ``tools/result_tables.py`` makes a table of, with the date."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"date": datetime.now(UTC).date().isoformat(), **content}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {path.name}")
