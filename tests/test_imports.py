"""Importing is cheap and silent; every third-party import is declared."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:wsss_blocks", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_package_import_loads_neither_torch_nor_timm():
    heavy = "('torch', 'timm', 'numpy')"
    code = f"import sys, wsss_blocks; print([m for m in {heavy} if m in sys.modules])"
    assert run(code) == "[]"


def test_blocks_import_without_timm_open_clip_torchvision_and_pot():
    # The blocks must work in an environment that has torch alone.
    code = """
import sys
for gone in ("timm", "open_clip", "torchvision", "ot", "sklearn", "matplotlib", "PIL", "triton",
             "transformers", "webdataset"):
    sys.modules[gone] = None
import wsss_blocks
for name in ("cam", "decoders", "distributed", "heads", "losses", "memory", "metrics", "pooling",
             "refine", "training", "viz", "backbones", "data", "segmenters"):
    getattr(wsss_blocks, name)
from wsss_blocks.backbones import Features, SmallTextEncoder, TextBank
from wsss_blocks.data import augment_words
from wsss_blocks.segmenters import LoDAModel, ZeroShotSegmenter
print("ok")
"""
    assert run(code) == "ok"


def third_party_imports(folder: Path) -> set[str]:
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {a.name.split(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.split(".")[0])
            elif (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") == "require"
                and isinstance(node.args[0], ast.Constant)
            ):
                found.add(str(node.args[0].value).split(".")[0])
    local = {p.stem for p in folder.rglob("*.py")} | {"wsss_blocks"}
    return found - set(sys.stdlib_module_names) - local


def declared(extras: set[str]) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    names = set()
    for line in lines:
        own = re.match(r"wsss-blocks\[(.*)\]", line)
        if own:
            names |= declared(set(own[1].split(",")))
        else:
            names.add(re.split(r"[\[<>=;! ]", line)[0].lower().replace("_", "-"))
    return names


def test_third_party_imports_are_declared():
    # They come with timm; a cap on torchvision or safetensors would break torch.
    transitive = {"torchvision", "safetensors", "huggingface-hub"}
    dists = packages_distributions()
    allowed = declared({"cli", "text", "webdata", "seg", "export", "examples"}) | transitive
    for folder in (ROOT / "src", ROOT / "examples"):
        for module in third_party_imports(folder):
            names = {d.lower().replace("_", "-") for d in dists.get(module, [module])}
            assert names & allowed, f"{module} is imported in {folder.name} but undeclared"


def test_torch_has_no_upper_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"]:
        assert "<" not in line, f"upper bound: {line}"
