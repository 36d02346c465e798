"""The documentation names what exists, its code runs, and its results come from JSON."""

import dataclasses
import importlib
import json
import re
import statistics
import zlib
from pathlib import Path

import pytest

import wsss_blocks
from tools import result_tables

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CHAIN = DOCS / "guides" / "folder_to_model.md"  # tests/examples/test_folder_guide.py runs it
GUIDES = sorted(
    {DOCS / "quickstart.md", *(DOCS / "guides").glob("*.md"), *(DOCS / "systems").glob("*.md")}
    - {CHAIN}
)


def public_names(package: str) -> set[str]:
    return set(importlib.import_module(f"wsss_blocks.{package}").__all__)


def listed_names(page: Path) -> list[str]:
    """Names under the autosummary directives of an API page."""
    blocks = re.findall(r"\.\. autosummary::\n(?:   :.*\n)*\n((?:   \S+\n)+)", page.read_text())
    return [line.strip() for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("package", wsss_blocks.__all__)
def test_each_public_name_is_listed_once(package):
    listed = listed_names(DOCS / "api" / f"{package}.rst")
    assert len(listed) == len(set(listed))
    assert set(listed) == public_names(package)
    assert f"module:: wsss_blocks.{package}\n" in (DOCS / "api" / f"{package}.rst").read_text()


def test_each_package_has_a_page():
    pages = {path.stem for path in (DOCS / "api").glob("*.rst")} - {"index"}
    assert pages == set(wsss_blocks.__all__)
    entries = re.findall(r"^   (\w+)$", (DOCS / "api" / "index.rst").read_text(), re.MULTILINE)
    assert set(entries) == pages


def inventory(path: Path) -> set[str]:
    """Names in a Sphinx inventory: four header lines, then zlib."""
    body = path.read_bytes().split(b"\n", 4)[4]
    return {line.split(" ", 1)[0] for line in zlib.decompress(body).decode().splitlines()}


def test_each_public_name_is_in_the_built_inventory():
    path = DOCS / "_build" / "html" / "objects.inv"
    sources = (ROOT / "src" / "wsss_blocks").glob("*/__init__.py")
    if not path.is_file() or path.stat().st_mtime < max(s.stat().st_mtime for s in sources):
        pytest.skip("no docs are built from this source (make docs); the pages are checked above")
    wanted = {f"wsss_blocks.{p}.{n}" for p in wsss_blocks.__all__ for n in public_names(p)}
    assert wanted <= inventory(path)


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", GUIDES, ids=lambda path: path.stem)
def test_code_of_guides_runs(page, tmp_path, monkeypatch):
    # One namespace per page, in an empty folder, as a reader who follows it from the top.
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in python_blocks(page):
        exec(compile(block, page.name, "exec"), namespace)


@pytest.mark.parametrize("system", ["dalnet", "dhr", "cti", "simseg"])
def test_results_of_systems_are_generated(system):
    text = (DOCS / "systems" / f"{system}.md").read_text()
    names = [name for name in result_tables.SYSTEM_TABLES if name.startswith(f"{system}_")]
    assert names
    for name in names:
        assert f"```{{include}} ../_generated/{name}.md\n```" in text
    assert "±" not in text, "a measured number is typed into the page: it belongs into the JSON"


@pytest.fixture
def results(tmp_path):
    """A file of results as the benchmarks write it, and what it holds."""
    content = {
        "command": "python train.py --seed 0",
        "commit": "abc1234",
        "date": "2026-01-02",
        "hardware": {"cpu": "Some CPU", "threads": 2, "gpu": None},
        "protocol": {"seg": {"line": "scenes val, 200 images", "dataset": "scenes"}},
        "notes": ["A note."],
        "columns": ["CAM", "steps", "seconds"],
        "rows": [
            {"name": "base", "seeds": {"0": {"CAM": 40.0, "steps": 100}, "1": {"CAM": 43.5}}},
            {"name": "a | b", "seeds": {"0": {"CAM": 50.25, "steps": 200, "seconds": 0.5}}},
        ],
    }
    path = tmp_path / "benchmarks" / "results" / "x.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    return path, content


def test_table_shows_mean_and_standard_deviation(results):
    table = result_tables.system_table(result_tables.read_results(results[0])).splitlines()
    spread = statistics.stdev([40.0, 43.5])
    assert table[0] == "|  | CAM | steps | seconds | seeds |"
    assert table[2] == f"| base | 41.8 ± {spread:.1f} | 100 (n = 1) | n/a | 2 |"
    assert table[3] == "| a \\| b | 50.2 | 200 | 0.500 | 1 |"


def test_page_says_where_the_numbers_come_from(results):
    page = result_tables.system_page(results[1])
    for fact in ("python train.py --seed 0", "abc1234", "Some CPU", "scenes val, 200", "A note."):
        assert fact in page
    assert "None" not in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("commit"), "must have 'commit'"),
        (lambda c: c["rows"][0].update(seeds={}), "at least one seed"),
        (lambda c: c["rows"][0]["seeds"]["0"].update(other=1.0), "not among the columns"),
        (lambda c: c["rows"][0]["seeds"]["0"].update(CAM="40"), "must be a number"),
    ],
)
def test_malformed_results_are_refused(results, change, message):
    path, content = results
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        result_tables.read_results(path)


def test_benchmark_table_says_what_was_not_measured(tmp_path):
    rows = [
        {"name": "ours", "ms": 1.5, "ratio": 1.0, "mib": 2.0, "difference": 0.0},
        {"name": "peer", "ms": 6.0, "ratio": 4.0, "mib": None, "difference": 0.0},
        {"name": "other", "absent": True},
    ]
    bars = [
        {"what": "time", "over": "peer", "wanted": 5.0, "met": False},
        {"what": "memory", "over": "peer", "wanted": 0.2, "met": False},
        {"what": "memory", "over": "peer", "wanted": 0.7, "met": True},
    ]
    case = {"case": "B1", "device": "cpu", "reference": "ours", "rows": rows, "bars": bars}
    content = {"name": "bench_x", "command": "run", "commit": "abc", "date": "today"}
    content |= {"hardware": {"cpu": "Some CPU"}, "cases": [case], "quick": False}
    path = tmp_path / "bench_x.json"
    path.write_text(json.dumps(content))
    page = result_tables.benchmark_page(result_tables.read_benchmarks(tmp_path))
    assert "| B1 | ours | 1.5 | 1.00 | 2.0 | not measured |  |  |" in page
    assert "|  | peer | 6 | 4.00 | n/a | not measured |  |  |" in page
    assert "|  | other | not installed |" in page
    assert "Not met on cpu, B1: 5 times faster than peer." in page
    assert "Not met on cpu, B1: at most 0.2 of the memory of peer." in page
    assert page.count("Not met") == 2
    assert "Bound by" not in page
    case["note"] = "Bound by x."
    page = result_tables.benchmark_page({"bench_x": [content]})
    assert "5 times faster than peer. Bound by x." in page
    path.write_text(json.dumps(content | {"quick": True}))
    with pytest.raises(ValueError, match="quick run"):
        result_tables.read_benchmarks(tmp_path)


def test_profile_shows_versions_side_by_side(tmp_path):
    path = tmp_path / "profile_dalnet.json"
    assert result_tables.profile_page(path) == "Not measured.\n"
    source = {"command": "run", "commit": "abc", "date": "today", "hardware": {"cpu": "Some CPU"}}
    runs = {
        "scenes": {"before": {"data": 1.0, "rest": 3.0}, "after": {"data": 1.0, "new": 1.0}},
        "voc": {"after": {"data": 5.0}},
    }
    path.write_text(json.dumps({"labels": {"before": source, "after": source}, "runs": runs}))
    page = result_tables.profile_page(path)
    assert "| scenes: stage | before, ms | before, % | after, ms | after, % |" in page
    assert "| data | 1.0 | 25.0 | 1.0 | 50.0 |" in page
    assert "| rest | 3.0 | 75.0 | n/a |  |" in page
    assert "| new | n/a |  | 1.0 | 50.0 |" in page
    assert "| a step | 4.0 | 100.0 | 2.0 | 100.0 |" in page
    assert "| voc: stage | after, ms | after, % |" in page
    assert "- before: `run`; Some CPU; commit `abc`, today." in page


def test_refiners_and_thresholds_come_with_their_protocol(tmp_path):
    path = tmp_path / "x.json"
    assert result_tables.refiners_page(path) == "Not measured.\n"
    facts = {"command": "run", "commit": "abc", "date": "today", "hardware": {"cpu": "Some CPU"}}
    facts |= {"protocol": "voc val, 9 images", "checkpoint": "seed 0"}
    row = {"name": "CRF", "resolution": "image", "background": 0.2, "miou": 40.04, "mfpr": 30.0}
    row |= {"mfnr": 29.96, "cpu_ms": 412.3, "mib": None, "gradient": False}
    path.write_text(json.dumps(facts | {"rows": [row]}))
    page = result_tables.refiners_page(path)
    assert "| CRF | image | 0.2 | 40.0 | 30.0 | 30.0 | 412 | n/a | no |" in page
    assert "- Protocol: voc val, 9 images." in page
    assert "- `run`; Some CPU; commit `abc`, today." in page
    row = {"maps": "CAM", "name": "Otsu", "threshold": 0.3164, "train": 31.8, "val": 28.6}
    path.write_text(json.dumps(facts | {"rows": [row | {"cpu_ms": 70.3}]}))
    assert "| CAM, Otsu | 0.316 | 31.8 | 28.6 | 70 |" in result_tables.thresholds_page(path)


def test_preset_table_tells_numbers_from_flags():
    @dataclasses.dataclass
    class Config:
        preset: str = "a"
        gia: bool = True
        start: int = 0
        lr: float = 1.0
        scales: tuple[float, ...] = ()

    table = result_tables.preset_table({"a": Config(), "b": Config(gia=False, scales=(1.0, 0.5))})
    lines = table.splitlines()
    assert lines[0] == "|  | `a` | `b` |"
    assert lines[2:] == [
        "| `gia` | yes | no |",
        "| `start` | 0 | 0 |",
        "| `lr` | 1.0 | 1.0 |",
        "| `scales` | none | 1.0, 0.5 |",
    ]


def test_missing_results_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results/dalnet_scenes\.json is missing"):
        result_tables.read_results(tmp_path / "results" / "dalnet_scenes.json")


def test_committed_results_can_be_read():
    for name in result_tables.SYSTEM_TABLES:
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        if path.is_file():
            assert result_tables.system_page(result_tables.read_results(path))
