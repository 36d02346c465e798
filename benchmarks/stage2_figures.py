"""Draw the figures of the pages "The second stage" and "Which blocks make which system".

    python -m benchmarks.stage2_figures

From trainings that ``benchmarks.stage2_tables scenes`` left: what networks taught by the masks of
several systems, and by the ground truth, make of validation images; and ToCo's own grid.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks._systems import ROOT
from benchmarks.cti_figures import smaller
from wsss_blocks.cli._spread import spread
from wsss_blocks.data import Scenes
from wsss_blocks.segmenters import Segmenter
from wsss_blocks.viz import figure_grid, overlay_mask


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where trainings are, and where figures go."""

    work: Path = ROOT / "runs" / "tables" / "stage2-scenes"
    seed: int = 0
    images: int = 6
    output: Path = ROOT / "docs" / "images"


TAUGHT = {
    "taught by CTI": "from-cti",
    "by DHR": "from-dhr",
    "by ToCo": "from-toco",
    "by DALNet": "from-dalnet",
    "by the truth": "full",
}


def main(options: Options) -> None:
    val = Scenes("val")
    samples = [val[i] for i in spread(len(val), options.images)]
    columns = {"image": [sample["image"] for sample in samples]}
    for title, name in TAUGHT.items():
        run = options.work / f"{name}-seed{options.seed}"
        network = Segmenter.load(run / "segmenter.safetensors")
        masks = [network.segment(sample["image"]).mask for sample in samples]
        columns[title] = [
            overlay_mask(s["image"], mask) for s, mask in zip(samples, masks, strict=True)
        ]
    columns["truth"] = [overlay_mask(s["image"], s["mask"]) for s in samples]
    path = options.output / "stage2_scenes.png"
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    figure_grid(rows, path=path, titles=list(columns))
    smaller(path, path)
    toco = options.work / f"toco-seed{options.seed}" / "figures" / "segmentation.png"
    smaller(toco, options.output / "toco_scenes_grid.png")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(tyro.cli(Options, description=__doc__))
