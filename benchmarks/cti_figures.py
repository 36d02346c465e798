"""Draw the figures of the CTI page from trainings that ``benchmarks.cti_tables scenes`` left.

    python -m benchmarks.cti_figures

Class tokens of all blocks, those of the baseline above those of CTI (the supplement's t-SNE), and
CTI's own grids of masks and of foreground and background maps.
"""

import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from PIL import Image
from torch import Tensor

from benchmarks._systems import ROOT
from wsss_blocks import cli
from wsss_blocks._files import replaced
from wsss_blocks.training import load_weights

sys.path.insert(0, str(ROOT / "examples"))

import train_cti


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where trainings are, and where figures go."""

    work: Path = ROOT / "runs" / "tables" / "cti-scenes"
    seed: int = 0
    output: Path = ROOT / "docs" / "images"


def main(options: Options) -> None:
    runs = {"baseline": "baseline", "CTI": "cti"}
    models, val = {}, None
    for name, method in runs.items():
        run = options.work / f"{method}-seed{options.seed}"
        cfg, _ = cli.load_config(run / "config.json", train_cti.Config())
        val = cli.open_data(cfg, "val")
        models[name] = train_cti.CTISystem(cfg, val.names).eval()
        load_weights(run / "model.safetensors", models[name])
    path = options.output / "cti_scenes_tokens.png"
    cli.draw_class_tokens(path, partial(tokens, models), val, columns=3)
    smaller(path, path)
    for figure, name in (("segmentation", "grid"), ("background", "background")):
        smaller(run / "figures" / f"{figure}.png", options.output / f"cti_scenes_{name}.png")


def tokens(models: dict[str, Any], images: Tensor) -> dict[str, Tensor]:
    found = {name: model.tokens(images) for name, model in models.items()}
    return {f"{name}, {title}": x for name, each in found.items() for title, x in each.items()}


def smaller(source: Path, path: Path) -> None:
    """Write a picture with 256 colours: a repository is no place for large ones."""
    picture = Image.open(source).convert("RGB").quantize(256)
    with replaced(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)
    print(f"wrote {path.name}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(tyro.cli(Options, description=__doc__))
