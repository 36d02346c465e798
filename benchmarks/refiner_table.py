"""Refiners, and thresholds without masks, on the photographs of VOC 2012.

    python -m benchmarks.refiner_table refiners
    python -m benchmarks.refiner_table thresholds

All start from the class maps of one network, that of ``dalnet_tables.py voc-small`` ("+ LEA", seed
0), which is trained first where ``--run`` does not hold it yet. Photographs, the network's weights
and texts come from ``--shared``.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from benchmarks._harness import _commit, _peak_mib
from benchmarks._systems import train
from benchmarks.dalnet_tables import clip_text
from wsss_blocks import backbones, cli, refine
from wsss_blocks.cam import mixture_threshold, normalize_cam, otsu_threshold, strongest_scores
from wsss_blocks.data import open_dataset
from wsss_blocks.metrics import SegmentationEvaluator, ThresholdSweep, hardware
from wsss_blocks.training import load_weights

ROOT = Path(__file__).resolve().parents[1]
LEVELS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)
CLASSES = 21
STAGE = 3  # of the encoder, 8 pixels a cell: its features tie the cells of the walk


@dataclass(frozen=True)
class Options:
    """What to measure."""

    table: tyro.conf.Positional[Literal["refiners", "thresholds"]]
    run: Path = ROOT / "runs" / "tables" / "voc-small" / "2-seed0"
    shared: Path = Path(os.environ.get("WSSS_SHARED_DATA", ROOT.parent / "shared" / "data"))
    choosing: int = 24  # training images that choose a background level, evenly spaced
    images: int | None = None  # validation images; None: all
    output: Path = ROOT / "benchmarks" / "results"


class HalfSize(nn.Module):
    """Refine on images of half the size."""

    def __init__(self, refiner: nn.Module) -> None:
        super().__init__()
        self.refiner = refiner

    def forward(self, images: Tensor, maps: Tensor, **rest: Any) -> Tensor:
        """Return maps of the size of the images."""
        size = images.shape[-2:]
        half = [max(1, side // 2) for side in size]
        small = F.interpolate(images, half, mode="bilinear", antialias=True).clamp(0, 1)
        refined: Tensor = self.refiner(small, maps, **rest)
        planes = F.interpolate(refined.flatten(0, -4), size, mode="bilinear")
        return planes.view(*refined.shape[:-2], *size)


def alike(images: Tensor, features: backbones.Features, *, scale: float = 1.0) -> Any:
    """Tie cells whose features are near, in units of their own spread."""
    x = features.intermediates[STAGE]
    return refine.feature_affinity(scale * x / x.std(), radius=5)


def refiners() -> dict[str, tuple[nn.Module, str]]:
    """Refiners by name, each with the resolution it works at."""
    small = {"dilations": (1, 2, 4, 8), "downsample": 4, "softmax": False}
    half = {"gaussian": (1.5, 3.0), "bilateral": (40.0, 13.0, 10.0)}
    crf = refine.DenseCRF
    return {
        "none": (refine.NoRefiner(), "any"),
        "PAR, 4 rings (`voc-small`)": (refine.PixelAdaptiveRefine(**small), "image / 4"),
        "PAR, as ToCo": (refine.PixelAdaptiveRefine(), "image / 2"),
        "PAMR": (refine.PixelAdaptiveRefine.pamr(), "image"),
        "CRF, DHR's constants": (crf.preset("dhr"), "image"),
        "CRF, MCTformer's constants": (crf.preset("mctformer"), "image"),
        "CRF, MCTformer's, half size": (HalfSize(crf(**half)), "image / 2"),
        "transport": (refine.TransportRefine(), "maps (12 x 12)"),
        "walk, ImageNet features": (refine.RandomWalk(alike, beta=8, steps=64), "48 x 48 cells"),
    }


class Network:
    """The class maps of the trained network, and its features."""

    def __init__(self, options: Options) -> None:
        shared, run = options.shared, options.run
        if not (run / "model.safetensors").is_file():
            weights = shared / "weights" / "mobilenetv1_075_imagenet.safetensors"
            text = clip_text(shared, run.parent)
            switches = ["--device", "cpu", "--data", "voc", "--preset", "voc-small", "--no-gia"]
            switches += ["--root", str(shared), "--split", "train", "--eval-images", "60"]
            switches += ["--text", str(text), "--weights", str(weights)]
            train("train_dalnet.py", run, switches)
        sys.path.insert(0, str(ROOT / "examples"))
        example = importlib.import_module("train_dalnet")
        cfg, rest = cli.load_config(run / "config.json", example.PRESETS["voc-small"])
        self.record = json.loads((run / "metrics.json").read_text())
        self.size, self.preset = cfg.eval_size, cfg.preset
        bank = backbones.create_text_bank(cfg.text, rest["names"], dim=64)
        self.model = example.DALNet(cfg, bank).eval()
        load_weights(run / "model.safetensors", self.model)

    def __call__(self, image: Tensor) -> tuple[dict[str, Tensor], backbones.Features]:
        """Return raw class maps by name, and what the encoder computed."""
        square = F.interpolate(image, (self.size, self.size), mode="bilinear")
        x, features = self.model.net.encode(square, layers=(STAGE,))
        return dict(zip(("CAM", "text map"), self.model.maps(x, features), strict=False)), features


def samples(options: Options, split: str, count: int | None) -> Iterator[dict[str, Any]]:
    dataset = open_dataset("voc", split, root=options.shared / "VOCdevkit", with_masks=True)
    count = min(count or len(dataset), len(dataset))
    for i in range(count):
        sample = dataset[i * len(dataset) // count]
        yield {key: sample[key][None] for key in ("image", "labels", "mask")}


def facts(options: Options, network: Network) -> dict[str, Any]:
    run = network.record["run"]
    return {
        "command": f"python -m benchmarks.refiner_table {options.table}",
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "checkpoint": f"{network.preset} (+ LEA), seed {run['seed']}, trained {run['date'][:10]}",
    }


def measure_refiners(options: Options, network: Network) -> dict[str, Any]:
    table = refiners()
    chosen = {(n, v): SegmentationEvaluator(CLASSES) for n in table for v in LEVELS}
    for sample in samples(options, "train", options.choosing):
        cam, features = _normalised(network, sample)
        sets = torch.stack([refine.add_background(cam, value=v) for v in LEVELS], 1)
        for name, (refiner, _) in table.items():
            ids = refiner(sample["image"], sets, labels=sample["labels"], features=features)
            for g, level in enumerate(LEVELS):
                chosen[name, level].update(ids[:, g].argmax(1), sample["mask"])
    train_miou = {key: evaluator.compute().miou for key, evaluator in chosen.items()}
    level = {n: max(LEVELS, key=lambda v, n=n: train_miou[n, v]) for n in table}
    print({n: (level[n], round(100 * train_miou[n, level[n]], 1)) for n in table}, flush=True)
    scored = {n: SegmentationEvaluator(CLASSES) for n in table}
    seconds, images = dict.fromkeys(table, 0.0), 0
    for sample in samples(options, "val", options.images):
        cam, features = _normalised(network, sample)
        for name, (refiner, _) in table.items():
            maps = refine.add_background(cam, value=level[name])
            rest = {"labels": sample["labels"], "features": features}
            started = time.process_time()
            refined = refiner(sample["image"], maps, **rest)
            seconds[name] += time.process_time() - started
            scored[name].update(refined.argmax(1), sample["mask"])
        images += 1
    image = F.interpolate(sample["image"], (375, 500), mode="bilinear")
    three = {"maps": torch.rand(1, 3, *cam.shape[-2:]), "features": network(image)[1]}
    rows = []
    for name, (refiner, resolution) in table.items():
        scores = scored[name].compute()
        rows.append({
            "name": name, "resolution": resolution, "background": level[name],
            "miou": round(100 * scores.miou, 2), "mfpr": round(100 * scores.mfpr, 2),
            "mfnr": round(100 * scores.mfnr, 2), "cpu_ms": round(1e3 * seconds[name] / images, 1),
            "mib": _peak_mib(partial(refiner, image, **three), "cpu"),
            "gradient": _has_gradient(refiner, network),
        })  # fmt: skip
        print(rows[-1], flush=True)
    protocol = (
        f"voc val, {images} images, class maps of one {network.size} x {network.size} view (12 x 12"
        " cells), min-max, image labels USED, no flip; the image at its own size for the refiner; "
        "background a constant channel, its level the best of "
        f"{'/'.join(map(str, LEVELS))} for each refiner on {options.choosing} training images, "
        "argmax over background and present classes, absent both, ignore 255"
    )
    return facts(options, network) | {"protocol": protocol, "rows": rows}


def _normalised(network: Network, sample: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
    maps, features = network(sample["image"])
    return normalize_cam(maps["CAM"]) * sample["labels"][:, :, None, None], features


def _has_gradient(refiner: nn.Module, network: Network) -> bool:
    """Tell whether a gradient arrives at the maps, on a small image."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 96, 96, generator=generator)
    with torch.no_grad():
        _, features = network(image)
    maps = torch.rand(1, 3, 6, 6, generator=generator).requires_grad_()
    with torch.enable_grad():
        refined = refiner(image, maps, features=features)
        if not refined.requires_grad:
            return False
        (refined * torch.rand(refined.shape, generator=generator)).sum().backward()
    return maps.grad is not None and bool(maps.grad.isfinite().all() and maps.grad.any())


def measure_thresholds(options: Options, network: Network) -> dict[str, Any]:
    kinds, sweeps = ("CAM", "text map"), {}
    scores: dict[tuple[str, str], list[Tensor]] = {}
    for split in ("train", "val"):
        for sample in samples(options, split, options.images if split == "val" else None):
            maps, _ = network(sample["image"])
            for kind in kinds:
                sweep = sweeps.setdefault((kind, split), ThresholdSweep(CLASSES))
                sweep.update(maps[kind], sample["labels"], sample["mask"])
                found = strongest_scores(maps[kind], sample["labels"], size=(96, 96))
                scores.setdefault((kind, split), []).append(found)
    rows = []
    for kind in kinds:
        pooled = torch.cat(scores[kind, "train"])
        best, val = sweeps[kind, "train"].compute(), sweeps[kind, "val"].compute()
        rules: dict[str, Callable[[], float]] = {
            "sweep on training masks": lambda best=best: best.best_threshold,
            "Otsu, no masks": lambda pooled=pooled: otsu_threshold(pooled),
            "mixture of two, no masks": lambda pooled=pooled: mixture_threshold(pooled),
            "0.5, `cam_to_label`'s default": lambda: 0.5,
            "best on val (not allowed)": lambda val=val: val.best_threshold,
        }
        for name, rule in rules.items():
            started = time.process_time()
            threshold = rule()
            at = int((val.thresholds - threshold).abs().argmin())
            rows.append({
                "maps": kind, "name": name, "threshold": round(threshold, 3),
                "train": round(100 * float(best.curve[at]), 2),
                "val": round(100 * float(val.curve[at]), 2),
                "cpu_ms": round(1e3 * (time.process_time() - started), 1),
            })  # fmt: skip
            print(rows[-1], flush=True)
    protocol = (
        f"voc train (311 images, which give the thresholds) and val ({options.images or 161}); "
        f"class maps of one {network.size} x {network.size} view, image labels USED, no refiner, "
        "no flip; scores of all training images pooled at 96 x 96; mIoU at the nearest hundredth, "
        "absent both, ignore 255"
    )
    return facts(options, network) | {"protocol": protocol, "rows": rows}


@torch.no_grad()
def main(options: Options) -> None:
    torch.set_num_threads(1)
    measure = {"refiners": measure_refiners, "thresholds": measure_thresholds}[options.table]
    started = time.process_time()
    content = measure(options, Network(options))
    print(f"{time.process_time() - started:.0f} CPU seconds")
    if options.images is None:
        path = options.output / f"{options.table}.json"
        path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
