"""Agreement of the dense CRF with pydensecrf on photographs of VOC 2012, image by image.

``python -m benchmarks.crf_agreement [--shared DIR] [--images 24] [--output FILE]``

The maps are what a good class activation map looks like: the mask of the image, background and
present classes, averaged over cells of 16 pixels, upsampled, and mixed with a fifth of the uniform
distribution. "lattice" runs at full size with the constants of DHR and of MCTformer, against
pydensecrf. "exact" takes minutes there: pydensecrf and "cells" are compared with it at 1/5 of the
size on every third image, with the deviations in pixels divided likewise. Both approximate it, and
this says how well.
"""

import argparse
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._harness import _commit, command
from benchmarks.baselines.dense_crf import pydensecrf
from wsss_blocks.data import read_image, read_mask
from wsss_blocks.metrics import hardware
from wsss_blocks.refine import dense_crf

ROOT = Path(__file__).resolve().parents[1]
CONSTANTS: dict[str, dict[str, Any]] = {
    "dhr": {"gaussian": (1.0, 3.0), "bilateral": (67.0, 3.0, 4.0)},
    "mctformer": {"gaussian": (3.0, 3.0), "bilateral": (80.0, 13.0, 10.0)},
}
PEER = "pydensecrf"
SHRINK = 5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crf_agreement")
    shared = Path(os.environ.get("WSSS_SHARED_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--shared", type=Path, default=shared)
    parser.add_argument("--images", type=int, default=24)
    output = ROOT / "benchmarks" / "results" / "crf_agreement.json"
    parser.add_argument("--output", type=Path, default=output)
    chosen = parser.parse_args()
    peer = pydensecrf()
    if peer is None:
        raise SystemExit("pydensecrf is not installed: pip install pydensecrf2")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    folder = chosen.shared / "VOCdevkit" / "VOC2012"
    names = (folder / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    for n, name in enumerate(names[: chosen.images]):
        image = read_image(folder / "JPEGImages" / f"{name}.jpg")[None]
        probs = maps_of(read_mask(folder / "SegmentationClass" / f"{name}.png"))
        for preset, constants in CONSTANTS.items():
            theirs = peer(image, probs, **constants)
            ours = dense_crf(image, probs, method="lattice", **constants)
            about = {"image": name, "constants": preset}
            rows.append(row({**about, "method": "lattice", "to": PEER}, probs, ours, theirs))
            if n % 3 == 0:
                small = [s // SHRINK for s in image.shape[-2:]]
                pair = [F.interpolate(x, size=small, mode="area") for x in (image, probs)]
                pair[0] = pair[0].mul(255).round() / 255
                less = shrunk(constants)
                truth = dense_crf(*pair, method="exact", **less)
                for method, result in (
                    (PEER, peer(*pair, **less)),
                    ("cells", dense_crf(*pair, method="cells", **less)),
                ):
                    rows.append(
                        row({**about, "method": method, "to": "exact"}, pair[1], result, truth)
                    )
    write(chosen.output, rows)


def maps_of(mask: Tensor) -> Tensor:
    """Return soft maps ``(1, C, H, W)`` of background and the present classes."""
    classes = [c for c in mask.unique().tolist() if c not in (0, 255)]
    one_hot = torch.stack([mask == c for c in (0, *classes)]).float()[None]
    cells = F.interpolate(one_hot, size=[max(1, s // 16) for s in mask.shape], mode="area")
    soft = F.interpolate(cells, size=mask.shape, mode="bilinear")
    count = soft.shape[1]
    return 0.8 * soft / soft.sum(1, keepdim=True).clamp_min(1e-3) + 0.2 / count


def shrunk(constants: dict[str, Any]) -> dict[str, Any]:
    near, weight = constants["gaussian"]
    far, colour, strength = constants["bilateral"]
    return {"gaussian": (near / SHRINK, weight), "bilateral": (far / SHRINK, colour, strength)}


def row(about: dict[str, Any], probs: Tensor, result: Tensor, truth: Tensor) -> dict[str, Any]:
    difference = (result - truth).abs()
    found = {
        **about,
        "size": list(probs.shape[-2:]),
        "channels": probs.shape[1],
        "same_labels": float((result.argmax(1) == truth.argmax(1)).double().mean()),
        "changed_by_crf": float((truth.argmax(1) != probs.argmax(1)).double().mean()),
        "mean_difference": float(difference.double().mean()),
        "max_difference": float(difference.max()),
    }
    print(" ".join(f"{v:.3g}" if isinstance(v, float) else f"{v}" for v in found.values()))
    return found


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    summary = []
    keys = ("method", "to", "constants")
    for group in sorted({tuple(r[k] for k in keys) for r in rows}):
        some = [r for r in rows if tuple(r[k] for k in keys) == group]
        summary.append(
            {
                **dict(zip(keys, group, strict=True)),
                "images": len(some),
                "same_labels": mean(r["same_labels"] for r in some),
                "least_same_labels": min(r["same_labels"] for r in some),
                "mean_difference": mean(r["mean_difference"] for r in some),
                "max_difference": max(r["max_difference"] for r in some),
            }
        )
        print(summary[-1])
    content = {
        "name": "crf_agreement",
        "command": command("crf_agreement"),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "data": "VOC 2012 val, the first images of the shared subset",
        "peer": "pydensecrf2 1.1, built from its source distribution",
        "summary": summary,
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
