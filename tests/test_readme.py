"""The README's code runs without data or network, and its results are those of the JSON."""

import re
import socket
from pathlib import Path

import pytest

from tools import assembly_matrix, result_tables

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def test_code_runs_without_network(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("the README's code opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["loss"].isfinite()
    assert any(p.grad is not None for p in namespace["network"].parameters())


def test_results_are_up_to_date():
    missing = [
        name
        for name in result_tables.README_TABLES
        if not (ROOT / "benchmarks" / "results" / f"{name}.json").is_file()
    ]
    if missing:
        pytest.skip(f"no results yet: {', '.join(missing)}")
    text = README.read_text()
    wanted = result_tables.update_readme(text, result_tables.readme_results())
    assert text == wanted, "run python tools/result_tables.py --readme"


def test_table_of_assemblies_is_up_to_date():
    text = README.read_text()
    made = assembly_matrix.assembly_matrix()
    wanted = result_tables.update_readme(text, made, assembly_matrix.MARKS)
    assert text == wanted, "run python tools/result_tables.py --readme"


def test_blocks_are_read_from_imports(tmp_path):
    (tmp_path / "part.py").write_text("from wsss_blocks.memory import EMA\n")
    script = tmp_path / "train.py"
    script.write_text(
        "from part import x\n"
        "from wsss_blocks import cam, losses as l\n"
        "from wsss_blocks.training import Phases\n"
        "def f(cam_to):\n"
        "    return cam.normalize_cam(l.no_such_loss(cam_to.normalize))\n"
    )
    found = {"memory": {"EMA"}, "cam": {"normalize_cam"}, "training": {"Phases"}}
    assert assembly_matrix.blocks_of(script) == found


def test_each_example_is_in_the_table_of_assemblies():
    trained = {path.stem for path in (ROOT / "examples").glob("train_*.py")}
    assert trained <= set(assembly_matrix.SYSTEMS.values())


def test_only_generated_results_have_a_spread():
    text = README.read_text()
    typed = text.split(result_tables.BEGIN)[0] + text.split(result_tables.END)[1]
    assert "±" not in typed


def test_links_to_files_exist():
    text = re.sub(r"^```.*?^```", "", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (ROOT / target).exists(), target
