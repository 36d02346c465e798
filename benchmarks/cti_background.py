"""What the background token of CTI learns on scenes, one change of its loss at a time.

    python -m benchmarks.cti_background

Each variant is a training of its own (--method bgt; finished ones are kept below --work). Then, on
validation images: how well each map tells background from objects (area under the ROC curve over
the patches of an image), how local the affinity of the patches is, and the mIoU of masks whose
background is the learnt map instead of a threshold.
"""

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from benchmarks._systems import ROOT, TableOptions, train_all, write_systems
from wsss_blocks import cam, cli, metrics, refine
from wsss_blocks.training import load_weights

sys.path.insert(0, str(ROOT / "examples"))

import train_cti

VARIANTS = {
    "as in the paper": [],
    "maps not propagated": ["--no-background-spread"],
    "weight 1": ["--background-weight", "1.0"],
    "average pooling": ["--top-k", "1.0"],
}
AUC = ("patch scores", "attention", "fused", "fused, spread", "classes, spread")
READ = ("learnt background", "learnt, each to its range", "threshold 0.1")


@dataclass(frozen=True, kw_only=True)
class Options(TableOptions):
    """What to measure."""

    seeds: tuple[int, ...] = (0,)
    images: int = 100


def main(options: Options) -> None:
    base = ["--device", "cpu", "--no-masks", "--method", "bgt", *options.extra]
    jobs = {
        (name, seed): (
            options.work / "cti-background" / f"{i}-seed{seed}",
            [*base, *switches, "--seed", str(seed)],
        )
        for i, (name, switches) in enumerate(VARIANTS.items())
        for seed in options.seeds
    }
    records = train_all("train_cti.py", jobs, at_once=options.jobs)
    rows = []
    for name in VARIANTS:
        seeds = {str(s): measured(jobs[name, s][0], options.images) for s in options.seeds}
        rows.append({"name": name, "seeds": seeds})
    protocols = {"all": {"line": f"scenes val, first {options.images} images, labels USED"}}
    notes = [
        "AUC: 100 is perfect, 50 is chance, below it the map shows objects. Entropy of the "
        "attention between patches, as a share of that of uniform attention. mIoU of masks "
        "made with the learnt background (raw, or each map normalised), or a fixed threshold.",
    ]
    columns = [*(f"AUC: {a}" for a in AUC), "entropy", *(f"mIoU: {r}" for r in READ)]
    how = {"command": "cti_background", "records": records, "options": options}
    write_systems("cti_background", rows, columns, protocols, notes, **how)


@torch.no_grad()
def measured(run: Path, images: int) -> dict[str, float]:
    """Return all columns of a finished run."""
    cfg, _ = cli.load_config(run / "config.json", train_cti.Config())
    val = cli.open_data(cfg, "val", with_masks=True)
    model = train_cti.CTISystem(cfg, val.names).eval()
    load_weights(run / "model.safetensors", model)
    areas: dict[str, list[float]] = {name: [] for name in (*AUC, "entropy")}
    scored = {name: metrics.SplitEvaluator(len(val.names) + 1) for name in READ}
    for sample in (val[i] for i in range(min(images, len(val)))):
        labels, mask = sample["labels"][None], sample["mask"]
        for name, value in maps_of(model, sample["image"][None], labels):
            if name in READ:
                value = F.interpolate(value, mask.shape, mode="bilinear")
                scored[name].update(sample["id"], value.argmax(1)[0], mask)
            elif name == "entropy":
                areas[name].append(float(value))
            else:
                size = value.shape[-2:]
                share = F.interpolate((mask == 0).float()[None, None], size, mode="area")
                truth = (share > 0.5).flatten()
                if 0 < int(truth.sum()) < len(truth):
                    areas[name].append(float(roc_auc_score(truth, value.flatten())))
    found = {name: 100 * sum(each) / len(each) for name, each in areas.items()}
    named = {f"AUC: {a}": found[a] for a in AUC} | {"entropy": found["entropy"]}
    named |= {f"mIoU: {name}": 100 * each.compute().miou for name, each in scored.items()}
    return {name: round(value, 2) for name, value in named.items()}


def maps_of(model: Any, image: Tensor, labels: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield maps that are large on background, the affinity's entropy, and scores to decide by."""
    layers = model.layers
    features = model.encoder(image, attention_layers=layers["all"])
    scores = model.head(features.feature_map).cam
    looked = model.attention(features, layers["background"])
    spread = {"attention": features.attention, "layers": layers["later"]}
    fused = cam.fuse_cams(looked, scores)
    background, classes = fused[:, :1], fused[:, 1:] * labels[:, :, None, None]
    yield "patch scores", scores[:, :1]
    yield "attention", looked[:, :1]
    yield "fused", background
    yield "fused, spread", refine.attention_affinity_refine(background, **spread)
    shown = cam.foreground_map(fused[:, 1:], labels)
    yield "classes, spread", -refine.attention_affinity_refine(shown, **spread)
    height, width = scores.shape[-2:]
    each = torch.eye(height * width).view(1, -1, height, width)
    rows = refine.attention_affinity_refine(each, **spread)[0].flatten(1)
    rows = rows / rows.sum(0)
    entropy = -(rows * rows.clamp_min(1e-12).log()).sum(0).mean()
    yield "entropy", entropy / math.log(height * width)
    yield "learnt background", torch.cat([background, classes], 1)
    own = [cam.normalize_cam(x, mode="cti") for x in (background, classes)]
    yield "learnt, each to its range", torch.cat(own, 1)
    yield "threshold 0.1", torch.cat([torch.full_like(background, 0.1), own[1]], 1)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(tyro.cli(Options, description=__doc__))
