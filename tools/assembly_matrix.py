"""Make the table of systems and their blocks out of what the examples import."""

import ast
import importlib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARKS = ("<!-- assembly:begin -->", "<!-- assembly:end -->")  # in README.md
SYSTEMS = {
    "DALNet (ECCV 2024)": "train_dalnet",
    "DHR (ECCV 2024)": "train_dhr",
    "CTI (CVPR 2024), MCTformer": "train_cti",
    "SimSeg (CVPR 2023)": "train_simseg",
    "ToCo (CVPR 2023)": "train_toco",
    "CLIP-ES (CVPR 2023)": "clip_es",
    "WeCLIP (CVPR 2024)": "train_weclip",
    "second stage": "train_segmenter",
}
COLUMNS = {
    "encoders": ("backbones",),
    "heads and pooling": ("heads", "pooling"),
    "class maps": ("cam",),
    "refinement": ("refine",),
    "losses": ("losses",),
    "decoders and segmenters": ("decoders", "segmenters"),
    "memory and training": ("memory", "training"),
}


def blocks_of(script: Path) -> dict[str, set[str]]:
    """Return subpackage -> public names that a script uses."""
    tree = ast.parse(script.read_text())
    used: dict[str, set[str]] = {}
    packages: dict[str, str] = {}  # name in the script -> subpackage
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        if node.module == "wsss_blocks":
            packages |= {found.asname or found.name: found.name for found in node.names}
        elif node.module.startswith("wsss_blocks."):
            package = node.module.split(".")[1]
            used.setdefault(package, set()).update(found.name for found in node.names)
        elif (
            other := script.with_name(f"{node.module}.py")
        ).is_file():  # a part of another example
            for package, names in blocks_of(other).items():
                used.setdefault(package, set()).update(names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            package = packages.get(node.value.id, "")
            if package and node.attr in importlib.import_module(f"wsss_blocks.{package}").__all__:
                used.setdefault(package, set()).add(node.attr)
    return used


def assembly_matrix(root: Path = ROOT) -> str:
    """Return one line per system and one column per kind of block."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|:--" * (len(COLUMNS) + 1) + "|"]
    for system, script in SYSTEMS.items():
        path = root / "examples" / f"{script}.py"
        if path.is_file():
            lines.append(f"| **{system}** | " + " | ".join(_cells(blocks_of(path))) + " |")
    return "\n".join(lines)


def _cells(used: Mapping[str, set[str]]) -> list[str]:
    return [
        ", ".join(
            f"`{name}`"
            for package in packages
            for name in sorted(used.get(package, ()))
            if not name.endswith("_counts")  # of a loss that stands beside it
        )
        for packages in COLUMNS.values()
    ]
