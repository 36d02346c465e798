"""Make the tables of the docs and of the README from the committed results.

A table of systems comes from ``benchmarks/results/<name>.json``::

    {"command": str, "commit": str, "date": str, "hardware": {...}, "protocol": {name: {...}},
     "notes": [str], "columns": [str],
     "rows": [{"name": str, "seeds": {"0": {column: number, ...}, ...}}]}

Each cell is mean ± sample standard deviation over the seeds. The tables of single blocks come from
the ``bench_*.json`` anywhere below that folder (see ``benchmarks/_harness.py``), the table of
presets from the training script.

Usage::

    python tools/result_tables.py            # write docs/_generated/*.md
    python tools/result_tables.py --readme   # rewrite results and assemblies in README.md
"""

import argparse
import dataclasses
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.assembly_matrix import MARKS, assembly_matrix  # noqa: E402

SYSTEM_TABLES = (
    *("dalnet_scenes", "dalnet_scenes_sweep", "dalnet_voc_small"),
    *("dhr_systems", "dhr_ladder"),
    *("cti_scenes", "cti_voc", "cti_background"),
    *("simseg_scenes", "simseg_equal", "simseg_masking", "simseg_responses", "simseg_coco"),
)
MAY_LACK = ("dalnet_voc_small_crf", "stage2_scenes", "stage2_voc", "toco_scenes", "folder_guide")
README_TABLES = {
    "dalnet_scenes": "DALNet, generated scenes (`--data scenes`)",
    "dalnet_voc_small": "DALNet, photographs, a subset of PASCAL VOC 2012 (`--preset voc-small`)",
    "dhr_systems": "DHR, generated scenes (`--data scenes`)",
    "dhr_ladder": "DHR, masks of training images, rung by rung (`--ladder`)",
    "cti_scenes": "CTI, generated scenes (`--method`, rung by rung)",
    "cti_voc": "CTI, photographs, a subset of PASCAL VOC 2012 (`--preset voc-small`)",
    "simseg_scenes": "SimSeg, generated scenes, masks from class names alone",
    "stage2_scenes": "The second stage, generated scenes, by the masks of several systems",
}
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
NOTHING = "n/a"


def read_results(path: Path) -> dict[str, Any]:
    """Read and check one file of results; say in words what is wrong with it."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent.name}/{path.name} is missing: tables are made from committed results, "
            "never typed. Run the benchmark that writes it."
        )
    content = json.loads(path.read_text())
    wanted = {
        "command": str,
        "commit": str,
        "date": str,
        "hardware": dict,
        "protocol": dict,
        "notes": list,
        "columns": list,
        "rows": list,
    }
    for key, kind in wanted.items():
        if not isinstance(content.get(key), kind):
            raise ValueError(f"{path.name} must have {key!r} of type {kind.__name__}.")
    columns = content["columns"]
    for row in content["rows"]:
        if not row.get("seeds"):
            raise ValueError(f"{path.name}: row {row.get('name')!r} must have at least one seed.")
        for seed, values in row["seeds"].items():
            for column, value in values.items():
                where = f"{path.name}: row {row['name']!r}, seed {seed}"
                if column not in columns:
                    raise ValueError(f"{where}: {column!r} is not among the columns.")
                if value is not None and (
                    isinstance(value, bool) or not isinstance(value, int | float)
                ):
                    raise ValueError(f"{where}: {column!r} must be a number, got {value!r}.")
    return content  # type: ignore[no-any-return]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a table, the first column left, the others right."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _cell(values: list[float], seeds: int, decimals: int) -> str:
    if not values:
        return NOTHING
    cell = f"{statistics.fmean(values):.{decimals}f}"
    if len(values) > 1:
        cell += f" ± {statistics.stdev(values):.{decimals}f}"
    return cell if len(values) == seeds else f"{cell} (n = {len(values)})"


def _decimals(values: list[float]) -> int:
    if all(float(v).is_integer() for v in values):
        return 0
    largest = max(map(abs, values))
    return 0 if largest >= 1000 else 1 if largest >= 2 else 3


def system_table(content: dict[str, Any]) -> str:
    """Return mean ± standard deviation of each column, one line per row."""
    columns = content["columns"]
    cells = {
        (r, column): [v for s in row["seeds"].values() if (v := s.get(column)) is not None]
        for r, row in enumerate(content["rows"])
        for column in columns
    }
    lines = [[row["name"]] for row in content["rows"]]
    for column in columns:
        every = [v for r in range(len(lines)) for v in cells[r, column]]
        decimals = _decimals(every)
        for r, line in enumerate(lines):
            line.append(_cell(cells[r, column], len(content["rows"][r]["seeds"]), decimals))
    for line, row in zip(lines, content["rows"], strict=True):
        line.append(str(len(row["seeds"])))
    return markdown_table(["", *columns, "seeds"], lines)


def describe_hardware(hardware: dict[str, Any]) -> str:
    """Return one line for people."""
    bare = {"cpu", "platform"}
    parts = [str(v) if k in bare else f"{k} {v}" for k, v in hardware.items() if v is not None]
    return ", ".join(parts)


def describe_protocol(protocol: dict[str, Any]) -> str:
    """Return the protocol's own line, or its fields."""
    line = protocol.get("line")
    return str(line) if line else ", ".join(f"{k} {v}" for k, v in protocol.items())


def system_page(content: dict[str, Any]) -> str:
    """Return the table with what each number must come with."""
    facts = [f"- {note}" for note in content["notes"]]
    facts += [f"- Protocol, {n}: {describe_protocol(p)}." for n, p in content["protocol"].items()]
    facts += [
        "- Cells are mean ± sample standard deviation over the seeds.",
        f"- Hardware: {describe_hardware(content['hardware'])}.",
        f"- Commit `{content['commit']}`, {content['date']}.",
    ]
    command = f"```bash\n{content['command']}\n```"
    return f"{system_table(content)}\n\n{command}\n\n" + "\n".join(facts) + "\n"


def system_figure(content: dict[str, Any], path: Path) -> None:
    """Draw the shares (columns that are no cost) of each row, with the spread over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = [c for c in content["columns"] if "," not in c]  # costs name their unit: "x, s"
    rows = content["rows"]
    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        values = [[s[c] for s in row["seeds"].values() if s.get(c) is not None] for c in columns]
        at = [j + i * width for j, v in enumerate(values) if v]
        means = [statistics.fmean(v) for v in values if v]
        spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values if v]
        axes.bar(at, means, width * 0.95, yerr=spread, capsize=2, label=row["name"])
    axes.set_xticks([j + 0.4 - width / 2 for j in range(len(columns))], columns)
    axes.set_ylabel("per cent")
    axes.legend(fontsize="small", ncols=2, loc="upper left")
    axes.set_ylim(top=1.25 * axes.get_ylim()[1])
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def read_benchmarks(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the benchmark files below a folder, by the name of the benchmark."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.rglob("bench_*.json")):
        content = json.loads(path.read_text())
        for key in ("name", "command", "commit", "date", "hardware", "cases"):
            if key not in content:
                raise ValueError(
                    f"{path.name} must have {key!r}, as benchmarks/_harness.py writes it."
                )
        if content.get("quick"):
            raise ValueError(f"{path.name} holds a quick run: its sizes measure nothing.")
        found.setdefault(content["name"], []).append(content)
    return found


def benchmark_page(benchmarks: Mapping[str, list[dict[str, Any]]]) -> str:
    """Return one table per benchmark; what no GPU has run is said to be not measured."""
    parts = []
    for name, files in benchmarks.items():
        cells: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        unmet = []
        for case in (case for content in files for case in content["cases"]):
            for row in case["rows"]:
                cells.setdefault((case["case"], row["name"]), {})[case["device"]] = row
            unmet += [
                f"- Not met on {case['device']}, {case['case']}: {_wanted(bar)}."
                + (f" {case['note']}" if "note" in case else "")
                for bar in case["bars"]
                if not bar["met"]
            ]
        header = ["case", "variant", *(f"{d} {x}" for d in ("CPU", "GPU") for x in _UNITS)]
        rows, last = [], ""
        for (case_name, variant), by_device in cells.items():
            shown = [x for d in ("cpu", "cuda") for x in _timing(by_device.get(d))]
            rows.append(["" if case_name == last else case_name, variant, *shown])
            last = case_name
        facts = [
            f"- `{content['command']}`; {describe_hardware(content['hardware'])}; commit "
            f"`{content['commit']}`, {content['date']}."
            for content in files
        ]
        title = name.removeprefix("bench_").replace("_", " ")
        parts += [f"## {title}", markdown_table(header, rows), "\n".join(unmet + facts)]
    return "\n\n".join(parts or ["No benchmark has been recorded yet."]) + "\n"


def profile_page(path: Path) -> str:
    """Return where the time of a training step goes, the versions of the library side by side."""
    if not path.is_file():
        return "Not measured.\n"
    found = json.loads(path.read_text())
    parts = []
    for preset, by_label in found["runs"].items():
        whole = {label: sum(stages.values()) for label, stages in by_label.items()}
        header = [f"{preset}: stage", *(f"{label}, {x}" for label in by_label for x in ("ms", "%"))]
        stages = list(dict.fromkeys(stage for row in by_label.values() for stage in row))
        rows = [
            [stage, *(x for la in by_label for x in _share(by_label[la].get(stage), whole[la]))]
            for stage in stages
        ]
        rows.append(["a step", *(x for ms in whole.values() for x in _share(ms, ms))])
        parts.append(markdown_table(header, rows))
    sources = [
        f"- {label}: `{source['command']}`; {describe_hardware(source['hardware'])}; commit "
        f"`{source['commit']}`, {source['date']}."
        for label, source in found["labels"].items()
    ]
    return "\n\n".join([*parts, "\n".join(sources)]) + "\n"


def _share(ms: float | None, whole: float) -> tuple[str, str]:
    return (NOTHING, "") if ms is None else (f"{ms:.1f}", f"{100 * ms / whole:.1f}")


_UNITS = ("ms", "ratio", "MiB")


def _wanted(bar: dict[str, Any]) -> str:
    if bar.get("what") == "memory":
        return f"at most {bar['wanted']:.3g} of the memory of {bar['over']}"
    return f"{bar['wanted']:g} times faster than {bar['over']}"


def _timing(row: dict[str, Any] | None) -> list[str]:
    if row is None:
        return ["not measured", "", ""]
    if row.get("absent"):
        return ["not installed", "", ""]
    memory = NOTHING if row["mib"] is None else f"{row['mib']:.1f}"
    return [f"{row['ms']:.3g}", f"{row['ratio']:.2f}", memory]


def read_presets(script: Path) -> Mapping[str, Any]:
    """Import a training script and return its presets."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[script.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PRESETS  # type: ignore[no-any-return]


def preset_table(presets: Mapping[str, Any]) -> str:
    """Return one line per option and one column per preset."""
    of_a_run = {"preset", "root", "output", "resume", "seed", "device", "predict", "workers"}
    of_a_run |= {"compile", "mixed_precision", "save_every", "evaluate", "eval_every", "log_every"}
    of_a_run |= {"labels", "strict", "keep_empty", "outside", "refine"}
    of_a_run |= {"captions", "shards", "vocabulary", "eval_root"}
    names = [f.name for f in dataclasses.fields(next(iter(presets.values())))]
    rows = [
        [f"`{name}`", *(_option(getattr(preset, name)) for preset in presets.values())]
        for name in names
        if name not in of_a_run
    ]
    return markdown_table(["", *(f"`{name}`" for name in presets)], rows)


def _option(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_option, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in (None, "") else str(value)


def reliability_page(path: Path) -> str:
    """Return the counts of ``benchmarks/reliability.py``: one table, and where each comes from."""
    if not path.is_file():
        return "Not measured.\n"
    found = json.loads(path.read_text())
    rows, sources = [], []
    if "faults" in found:
        for kind, row in found["faults"]["kinds"].items():
            rows.append([f"faults planted, {kind}", row["planted"], f"{row['named']} named"])
    if "fuzz" in found:
        row = found["fuzz"]["totals"]
        rows.append([
            f"random calls of {row['names']} public names", row["cases"],
            f"{row['clear_errors']} clear errors, {row['finite_results']} finite results, "
            f"{row['failures']} failures",
        ])  # fmt: skip
    if "kill" in found:
        for name, row in found["kill"]["runs"].items():
            what = f"kill points, {name} run ({row['while_saving']} of them while saving)"
            rows.append([what, row["points"], f"{row['exact']} exact to the bit"])
    if "processes" in found:
        for layout, row in found["processes"]["layouts"].items():
            what = f"{found['processes']['steps']} steps as {layout}, against 1 x 16"
            worst = f"losses within {row['losses']:.1g}, weights within {row['weights']:.1g}"
            rows.append([what, 1, worst])
    for name, section in found.items():
        where = describe_hardware(section["hardware"])
        sources.append(
            f"- {name}: `{section['command']}`, commit `{section['commit'][:12]}`, "
            f"{section['date'][:10]}, {where}"
        )
    table = markdown_table(["tried", "count", "outcome"], [list(map(str, row)) for row in rows])
    return table + "\n\n" + "\n".join(sources) + "\n"


def refiners_page(path: Path) -> str:
    """Return the table of ``benchmarks/refiner_table.py refiners``, with how it was measured."""
    header = ["refiner", "works on", "background", "mIoU", "mFPR", "mFNR", "CPU, ms per image"]
    return _measured_page(path, [*header, "memory, MiB", "gradient"], lambda row: [
        row["name"], row["resolution"], f"{row['background']:g}", f"{row['miou']:.1f}",
        f"{row['mfpr']:.1f}", f"{row['mfnr']:.1f}", f"{row['cpu_ms']:.0f}",
        NOTHING if row["mib"] is None else f"{row['mib']:.0f}", "yes" if row["gradient"] else "no",
    ])  # fmt: skip


def thresholds_page(path: Path) -> str:
    """Return the table of ``benchmarks/refiner_table.py thresholds``, with how it was measured."""
    header = ["maps, threshold", "value", "mIoU train", "mIoU val", "CPU, ms"]
    return _measured_page(path, header, lambda row: [
        f"{row['maps']}, {row['name']}", f"{row['threshold']:.3f}", f"{row['train']:.1f}",
        f"{row['val']:.1f}", f"{row['cpu_ms']:.0f}",
    ])  # fmt: skip


def evaluation_page(path: Path) -> str:
    """Return the table of ``benchmarks/evaluate_files.py``, with how it was measured."""
    if not path.is_file():
        return "Not measured.\n"
    found = json.loads(path.read_text())
    header = ["variant", "pairs", "seconds", "times the loop's speed", "peak, MiB", "sum, MiB"]
    rows = (
        [
            f"`{row['variant']}`" if row["variant"].startswith("wsss") else row["variant"],
            f"{row['masks']:,}", f"{row['seconds']:.1f}", f"{row['ratio']:.2f}",
            f"{row['peak_mib']}", f"{row['sum_mib']}",
        ]
        for row in found["rows"]
    )  # fmt: skip
    facts = (
        f"- `{found['command']}`; {found['workers']} workers, medians of {found['rounds']} rounds; "
        f"{describe_hardware(found['hardware'])}; commit `{found['commit'][:7]}`, {found['date']}."
    )
    return f"{markdown_table(header, rows)}\n\n{facts}\n"


def coco_export_page(path: Path) -> str:
    """Return the table of ``benchmarks/coco_export.py``: measured, and in proportion for all."""
    if not path.is_file():
        return "Not measured.\n"
    found = json.loads(path.read_text())
    images, half, whole = found["images"], found["half"], found["whole"]
    header = [
        "step", "CPU, ms per image", "disk, kB per image", f"memory, MiB, {half:,} images",
        f"memory, MiB, {images:,} images", f"extrapolated to {whole:,}: CPU, minutes",
        f"extrapolated to {whole:,}: disk, GB",
    ]  # fmt: skip
    rows = [
        [
            row["step"], f"{row['cpu_ms']:.2f}", _scaled(row.get("bytes"), 1e-3 / images),
            f"{row['half_mib']:.0f}", f"{row['mib']:.0f}", f"{row['cpu_ms'] * whole / 6e4:.1f}",
            _scaled(row.get("bytes"), 1e-9 * whole / images),
        ]
        for row in found["rows"]
    ]  # fmt: skip
    mapped = max(row["mapped_mib"] for row in found["rows"])
    facts = [
        f"- Measured: {images:,} drawn images for COCO's, {found['classes']:.2f} classes "
        f"and {found['objects']:.1f} objects each, and half of them. Extrapolated: the last two "
        f"columns, in proportion to the number of images; nothing was run on {whole:,}.",
        "- CPU time is that of all threads in the step alone, on cores that other work shared; "
        "seconds on the clock were not measured.",
        "- Memory is the most that a process took of its own, above what it had after two images. "
        f"Mapped files come on top, {mapped:.0f} MiB here and at most the size of the store, in "
        "memory that the system takes back when it needs it.",
        "- Exported are the masks of the `uint8` store; the copies of photographs that `mmseg` and "
        "`yolo-seg` hold are not counted as disk.",
        f"- `{found['command']}`; {describe_hardware(found['hardware'])}; commit "
        f"`{found['commit'][:7]}`, {found['date']}.",
    ]
    return f"{markdown_table(header, rows)}\n\n" + "\n".join(facts) + "\n"


def _scaled(value: float | None, factor: float) -> str:
    return NOTHING if value is None else f"{value * factor:.2f}"


def _measured_page(path: Path, header: list[str], cells: Callable[[Any], list[str]]) -> str:
    if not path.is_file():
        return "Not measured.\n"
    found = json.loads(path.read_text())
    facts = [
        f"- Protocol: {found['protocol']}.",
        f"- Network: {found['checkpoint']}.",
        f"- `{found['command']}`; {describe_hardware(found['hardware'])}; commit "
        f"`{found['commit']}`, {found['date']}.",
    ]
    return markdown_table(header, map(cells, found["rows"])) + "\n\n" + "\n".join(facts) + "\n"


def write_generated(root: Path = ROOT) -> None:
    """Write ``docs/_generated/*.md``, what the pages of the docs include."""
    results, folder = root / "benchmarks" / "results", root / "docs" / "_generated"
    folder.mkdir(exist_ok=True)
    pages = {name: system_page(read_results(results / f"{name}.json")) for name in SYSTEM_TABLES}
    pages["benchmarks"] = benchmark_page(read_benchmarks(results))
    pages["profile"] = profile_page(results / "profile_dalnet.json")
    for name in MAY_LACK:
        path = results / f"{name}.json"
        pages[name] = system_page(read_results(path)) if path.is_file() else "Not measured.\n"
    pages["refiners"] = refiners_page(results / "refiners.json")
    pages["thresholds"] = thresholds_page(results / "thresholds.json")
    pages["evaluate_files"] = evaluation_page(results / "evaluate_files.json")
    pages["coco_export"] = coco_export_page(results / "coco_export.json")
    pages["reliability"] = reliability_page(results / "reliability.json")
    for system in ("dalnet", "dhr", "cti", "simseg", "segmenter", "toco"):
        presets = read_presets(root / "examples" / f"train_{system}.py")
        pages[f"{system}_presets"] = preset_table(presets) + "\n"
    pages["assembly"] = assembly_matrix(root) + "\n"
    for name in SYSTEM_TABLES:
        system_figure(read_results(results / f"{name}.json"), folder / f"{name}.png")
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.is_file() or path.read_text() != text:  # an unchanged file is not rebuilt
            path.write_text(text)


def readme_results(root: Path = ROOT) -> str:
    """Return the results section of the README."""
    parts = []
    for name, title in README_TABLES.items():
        content = read_results(root / "benchmarks" / "results" / f"{name}.json")
        parts += [
            f"**{title}**",
            system_table(content),
            f"`{content['command']}`",
            f"{describe_hardware(content['hardware'])}; commit `{content['commit']}`.",
        ]
    return "\n\n".join(parts)


def update_readme(text: str, made: str, marks: tuple[str, str] = (BEGIN, END)) -> str:
    """Replace what stands between the markers."""
    begin, end = marks
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    return f"{head}{begin}\n\n{made}\n\n{end}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--readme", action="store_true", help="rewrite the tables in README.md")
    if parser.parse_args().readme:
        path = ROOT / "README.md"
        text = update_readme(path.read_text(), readme_results())
        path.write_text(update_readme(text, assembly_matrix(), MARKS))
    else:
        write_generated()


if __name__ == "__main__":
    main()
