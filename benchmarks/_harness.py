"""Measure callables side by side: interleaved rounds, medians of per-round ratios.

A benchmark is a module with a generator ``cases(options)`` that yields what :func:`compare`
returns, and ends with ``run("bench_name", cases)``. On a shared machine milliseconds drift, ratios
within one round do not: quote ratios.

CPU times are process CPU time on one thread, CUDA times come from events. Peak memory is that of
one call after a first one, resident in the process (Linux) or in the caching allocator (CUDA),
above what was there before.
"""

import argparse
import contextlib
import ctypes
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsss_blocks.metrics import hardware

__all__ = [
    "Candidate",
    "Options",
    "command",
    "compare",
    "max_difference",
    "memory_share",
    "mismatch_share",
    "run",
]

Candidate = Callable[[], object]
"""A call without arguments whose result is what it computes."""

_SECONDS = 15.0


@dataclass(frozen=True)
class Options:
    """What the command line chose."""

    quick: bool = False
    devices: tuple[str, ...] = ("cpu",)

    @property
    def rounds(self) -> int:
        """Rounds of each comparison; a slow one ends after three."""
        return 2 if self.quick else 7


def compare(
    case: str,
    candidates: Mapping[str, Candidate | None],
    *,
    reference: str,
    options: Options,
    device: str = "cpu",
    bars: Mapping[str, float] | None = None,
    memory_bars: Mapping[str, float] | None = None,
    difference: Callable[[Any, Any], float] | None = None,
    tolerance: float | None = None,
    note: str | None = None,
) -> dict[str, Any]:
    """Time candidates in turn, print a table and return it for the results file.

    Args:
        case: what is measured, with its sizes.
        candidates: calls by name; None for a peer that is not installed.
        reference: the candidate, usually ours, whose time the ratios of the others are over.
        options: from :func:`run`.
        device: "cpu" or "cuda".
        bars: least wanted ratio by name of the peer; looked at on a CPU at full size only.
        memory_bars: largest wanted share of a peer's peak memory by its name; looked at likewise.
        difference: compares a result with that of the reference, default :func:`max_difference`.
        tolerance: a larger difference stops the benchmark: speed of wrong results is no speed.
        note: what bounds the case and what was tried; shown where a bar is not met.

    Returns:
        The case with one row per candidate and one entry per bar.
    """
    present = {name: fn for name, fn in candidates.items() if fn is not None}
    sample = _cuda_ms if device == "cuda" else _cpu_ms
    with torch.no_grad():
        truth = present[reference]()
        measure = difference or max_difference
        differences = {name: measure(fn(), truth) for name, fn in present.items()}
        for name, value in differences.items():
            if tolerance is not None and not value <= tolerance:
                raise AssertionError(f"{case}: {name} differs from {reference} by {value:.3g}.")
        del truth
        memory = {name: _peak_mib(fn, device) for name, fn in present.items()}
        least = (2.0 if device == "cuda" else 20.0) / (4 if options.quick else 1)
        repeats = {name: _repeats(fn, sample, least) for name, fn in present.items()}
        times: dict[str, list[float]] = {name: [] for name in present}
        end = time.monotonic() + _SECONDS
        for done in range(options.rounds):
            if done >= 3 and time.monotonic() > end:
                break
            for name, fn in present.items():
                times[name].append(sample(fn, repeats[name]))

    rows: list[dict[str, Any]] = []
    for name in candidates:
        if name not in present:
            rows.append({"name": name, "absent": True})
            continue
        ratios = [t / r for t, r in zip(times[name], times[reference], strict=True)]
        rows.append(
            {
                "name": name,
                "ms": _digits(statistics.median(times[name])),
                "ratio": _digits(statistics.median(ratios)),
                "ratio_range": [_digits(min(ratios)), _digits(max(ratios))],
                "mib": memory[name],
                "difference": differences[name],
            }
        )
    looked_at = device == "cpu" and not options.quick
    found = _bars(rows, reference, bars or {}, memory_bars or {}) if looked_at else []
    result = {"case": case, "device": device, "reference": reference, "rows": rows, "bars": found}
    if note is not None:
        result["note"] = note
    _show(result)
    return result


def memory_share(row: Mapping[str, Any], reference: Mapping[str, Any]) -> float | None:
    """Return the reference's peak memory over that of a row, None where one is unknown or zero."""
    ours, theirs = reference.get("mib"), row.get("mib")
    return None if ours is None or not theirs else ours / theirs


def run(name: str, cases: Callable[[Options], Iterable[dict[str, Any]]]) -> None:
    """Run a benchmark from the command line and write its results where asked to.

    Args:
        name: of the module and of the results file, as "bench_evaluator".
        cases: yields the result of one :func:`compare` after the other.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all?")
    parser.add_argument("--output", type=Path, help="folder (or .json file) for the results")
    parser.add_argument("--device", choices=["all", "cpu", "cuda"], default="all")
    chosen = parser.parse_args()
    devices = [d for d in ("cpu", "cuda") if chosen.device in ("all", d)]
    if not torch.cuda.is_available():
        devices = [d for d in devices if d == "cpu"]
    torch.set_num_threads(1)
    print(f"{name}: torch {torch.__version__}, {', '.join(devices) or 'no such device'}")
    options = Options(quick=chosen.quick, devices=tuple(devices))
    results = list(cases(options))
    if chosen.output is not None:
        path = chosen.output
        path = path if path.suffix == ".json" else path / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "name": name,
            "command": command(name),
            "commit": _commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": hardware(),
            "quick": chosen.quick,
            "rounds": options.rounds,
            "cases": results,
        }
        temporary = path.with_name(f".{path.name}.part")
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(path)
        print(f"wrote {path}")


def command(name: str) -> str:
    """Return how this benchmark was called, but for where its results went."""
    arguments = [f"benchmarks.{name}", *sys.argv[1:]]
    if "--output" in arguments:
        at = arguments.index("--output")
        del arguments[at : at + 2]
    return " ".join(["python", "-m", *arguments])


def max_difference(a: object, b: object) -> float:
    """Return the largest absolute difference of two tensors, or of tuples of them."""
    return max(
        float((x.double().cpu() - y.double().cpu()).abs().max())
        for x, y in zip(_tensors(a), _tensors(b), strict=True)
    )


def mismatch_share(a: Tensor, b: Tensor) -> float:
    """Return the share of positions where two masks differ."""
    return float((a.cpu().long() != b.cpu().long()).double().mean())


def _bars(
    rows: list[dict[str, Any]],
    reference: str,
    bars: Mapping[str, float],
    memory_bars: Mapping[str, float],
) -> list[dict[str, Any]]:
    by_name = {row["name"]: row for row in rows if not row.get("absent")}
    found: list[dict[str, Any]] = [
        {"what": "time", "over": name, "wanted": wanted, "met": by_name[name]["ratio"] >= wanted}
        for name, wanted in bars.items()
        if name in by_name
    ]
    for name, wanted in memory_bars.items():
        share = memory_share(by_name.get(name, {}), by_name[reference])
        if share is not None:
            bar = {"what": "memory", "over": name, "wanted": wanted, "met": share <= wanted}
            found.append(bar)
    return found


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for part in value:  # type: ignore[attr-defined]
            yield from _tensors(part)


def _cpu_ms(fn: Candidate, repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        fn()
    return 1e3 * (time.process_time() - start) / repeats


def _cuda_ms(fn: Candidate, repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        fn()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / repeats


def _repeats(fn: Candidate, sample: Callable[[Candidate, int], float], least_ms: float) -> int:
    return min(1000, max(1, math.ceil(least_ms / max(sample(fn, 1), 1e-3))))


def _peak_mib(fn: Candidate, device: str) -> float | None:
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        fn()
        torch.cuda.synchronize()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    try:
        _trim()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        before = _status("VmRSS")
        fn()
        return round((_status("VmHWM") - before) / 1024, 1)
    except OSError:  # not Linux, or not allowed
        return None


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _trim() -> None:
    # What earlier calls have freed but the allocator keeps would hide what this one takes.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _digits(x: float) -> float:
    return float(f"{x:.4g}")


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if not done.returncode else ""

    commit = git("rev-parse", "HEAD")
    if not commit:
        return "unknown"
    changed = git("status", "--porcelain", "--", "src", "benchmarks", ":!benchmarks/results")
    return f"{commit} with changes" if changed else commit


def _show(result: dict[str, Any]) -> None:
    width = max(len(row["name"]) for row in result["rows"]) + 2
    print(f"\n{result['case']} ({result['device']})")
    print(f"  {'':{width}}{'ms':>10}{'x ' + result['reference']:>16}{'MiB':>10}{'differs by':>13}")
    for row in result["rows"]:
        if row.get("absent"):
            print(f"  {row['name']:{width}}{'absent':>10}")
            continue
        memory = "?" if row["mib"] is None else f"{row['mib']:.1f}"
        ratio = f"{row['ratio']:.2f}x"
        print(
            f"  {row['name']:{width}}{row['ms']:10.4g}{ratio:>16}{memory:>10}"
            f"{row['difference']:13.2g}"
        )
    for bar in result["bars"]:
        word = "met" if bar["met"] else "NOT met"
        wanted = (
            f"at most {bar['wanted']:.3g} of the memory of {bar['over']}"
            if bar["what"] == "memory"
            else f"at least {bar['wanted']:g}x faster than {bar['over']}"
        )
        print(f"  {wanted}: {word}", flush=True)
