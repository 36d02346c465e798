"""Follow the guide from a folder to a deployed model as it is written, and write what came out.

    python -m benchmarks.folder_guide --work runs/guide

Runs every block of docs/guides/folder_to_model.md in an empty folder, in their order: commands of
the shell as processes of their own on one thread, Python in one namespace.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks._systems import ROOT, write_table
from wsss_blocks.metrics import RecordedMetrics, hardware, read_metrics

PAGE = ROOT / "docs" / "guides" / "folder_to_model.md"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where to work."""

    work: Path = ROOT / "runs" / "guide"  # must not exist
    output: Path = ROOT / "benchmarks" / "results"


def steps(page: str) -> Iterator[tuple[str, list[str]]]:
    """Return the code and the commands of a page, one after the other, as (text, words)."""
    for language, block in re.findall(r"^```(python|bash)\n(.*?)^```", page, re.M | re.S):
        if language == "python":
            yield block, []
        else:
            yield from ((line, shlex.split(line)) for line in block.splitlines())


def command(words: list[str]) -> list[str]:
    """Return the words with this interpreter and the scripts of this clone."""
    if words[0] == "wsss":
        call = "import sys; from wsss_blocks.cli.main import main; sys.exit(main())"
        return [sys.executable, "-c", call, *words[1:]]
    assert words[0] == "python", words
    return [sys.executable, str(ROOT / words[1]), *words[2:]]


def cpu_seconds() -> float:
    """Return what this process and its finished children have used."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def follow(work: Path) -> dict[str, float]:
    """Run all steps; return the CPU seconds of each command by its first words."""
    work.mkdir(parents=True)
    os.chdir(work)
    spent: dict[str, float] = {}
    namespace: dict[str, Any] = {}
    for text, words in steps(PAGE.read_text()):
        before = cpu_seconds()
        if words:
            subprocess.run(command(words), check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            name = " ".join(words[:2]).replace("python examples/", "")
            spent[name] = spent.get(name, 0.0) + cpu_seconds() - before
        else:
            exec(compile(text, PAGE.name, "exec"), namespace)
    return spent


def _miou(record: RecordedMetrics, name: str) -> float:
    return 100 * record.results[name]


def main(options: Options) -> None:
    started = time.perf_counter()
    spent = follow(options.work.resolve())
    print(f"{time.perf_counter() - started:.0f} s")
    swept = json.loads(Path("runs/digits/sweep/sweep.json").read_text())
    found = {
        name: read_metrics(Path("runs") / name / "metrics.json")
        for name in ("digits", "masks_scored", "final", "final/val")
    }
    rows = {
        "class maps at their best threshold": ("wsss sweep", swept["results"]["cam_best_miou"]),
        "decoder of the first stage": ("train_dalnet.py", _miou(found["digits"], "seg_miou")),
        "masks made of the maps": (
            "export_pseudo_labels.py",
            _miou(found["masks_scored"], "segmentation/miou"),
        ),
        "second stage": ("train_segmenter.py", _miou(found["final/val"], "segmentation/miou")),
    }
    table = [
        {"name": name, "seeds": {"0": {"mIoU": round(miou, 2), "CPU s": round(spent[step], 1)}}}
        for name, (step, miou) in rows.items()
    ]
    lines = {
        "decoder of the first stage": found["digits"].protocol["seg_miou"],
        "masks made of the maps": found["masks_scored"].protocol["segmentation"],
        "second stage": found["final/val"].protocol["segmentation"],
    }
    content = {
        "command": "python -m benchmarks.folder_guide",
        "commit": found["digits"].run["commit"],
        "hardware": hardware(),
        "protocol": {name: {"line": p.describe()} for name, p in lines.items()},
        "notes": [
            "One seed. Class maps and masks are scored on the fifty drawn masks, with image "
            "labels; networks on the validation images, without.",
            "CPU seconds are those of the command that makes the row, its scoring included.",
        ],
        "columns": ["mIoU", "CPU s"],
        "rows": table,
    }
    write_table(options.output / "folder_guide.json", content)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
