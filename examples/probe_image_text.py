"""Classify images with a model of images and texts: by class names alone, and by a linear probe.

    python examples/probe_image_text.py --root imagenet --model ViT-B-16/openai
    python examples/probe_image_text.py --root pets --model runs/simseg/model.safetensors
    python examples/probe_image_text.py --data scenes --model runs/simseg/model.safetensors

``--root`` holds ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg. The model is any of open_clip
(ARCH/TAG or ARCH/PATH) or the model.safetensors of examples/train_simseg.py. Names are
compared with the pooled vectors of the validation images (SimSeg, CVPR 2023, table 8), and a linear
layer learns from frozen features of the training images with LARS (tables 9 and 10), made once,
without random crops and mirror images. OUTPUT gets metrics.json and config.json.

``--feature`` says what is probed: the pooled vector of the joint space (``pooled``), the mean of
the encoder's patches (``mean``), or its class token (``class_token``), as the released
configuration of SimSeg has it: LoDA never supervises that one. CNNs have none and give the mean.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from torch.utils.data import DataLoader

from wsss_blocks import metrics
from wsss_blocks.cli import load_image_text_model, save_config
from wsss_blocks.data import Sample, WeakDataset, open_dataset
from wsss_blocks.segmenters import zero_shot_bank
from wsss_blocks.training import linear_probe

KS = (1, 5)


@dataclass(frozen=True)
class Config:
    """Which model, which images, and how the linear layer learns."""

    data: Literal["folder", "scenes"] = "folder"  # scenes: those with a single digit
    root: Path | None = None
    model: str = "ViT-B-16/openai"
    size: int | None = None  # of the square that images are squeezed into; None: the model's own
    at_once: int = 64  # images of one forward pass
    workers: int = 0  # processes that load images
    # class names alone
    spoken: Path | None = None  # JSON {folder: name}, for folders like n01440764
    templates: tuple[str, ...] = ()  # sentences with {} for the name; (): CLIP's 80
    # the linear probe, as in SimSeg's supplement; on small data base_lr must be larger
    probe: bool = True  # else training images are not needed
    feature: Literal["pooled", "mean", "class_token"] = "pooled"
    epochs: int = 90
    base_lr: float = 0.1  # for 256 images per step
    batch_size: int = 32768
    warmup: int = 10  # epochs
    batch_norm: bool = False  # in front of the layer, as MAE has it
    seed: int = 0
    output: Path = Path("runs/probe")
    device: Literal["auto", "cpu"] = "auto"


def of_one_class(samples: Sequence[Sample], size: int | None) -> tuple[list[Tensor], Tensor]:
    """Return images and class ids of the samples with exactly one class."""
    kept = [sample for sample in samples if sample["labels"].sum() == 1]
    images = [sample["image"] for sample in kept]
    if size is not None:
        square = {"size": (size, size), "mode": "bilinear", "antialias": True}
        images = [F.interpolate(image[None], **square)[0] for image in images]
    return images, torch.tensor([int(s["labels"].argmax()) for s in kept], dtype=torch.int64)


def feature_of(model: Any, images: Tensor, kind: str) -> Tensor:
    """Return one vector per image, of the joint space or of the encoder in front of it."""
    if kind == "pooled":
        return model.encode_image(images, normalize=False).float()
    found = getattr(model.image, "encoder", model.image)(images)
    return (found.global_token if kind == "class_token" else found.patch_tokens.mean(1)).float()


@torch.no_grad()
def encode(
    cfg: Config, model: Any, dataset: WeakDataset, kinds: set[str], device: str
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the features of all images with one class, by kind, and their class ids."""
    rows, classes, kept = {kind: [] for kind in kinds}, [], partial(of_one_class, size=cfg.size)
    for images, found in DataLoader(dataset, cfg.at_once, num_workers=cfg.workers, collate_fn=kept):
        classes.append(found)
        alike = len({image.shape for image in images}) == 1
        for x in [torch.stack(images)] if alike else [image[None] for image in images]:
            for kind in kinds:
                rows[kind].append(feature_of(model, x.to(device), kind))
    return {kind: torch.cat(found) for kind, found in rows.items()}, torch.cat(classes).to(device)


def open_split(cfg: Config, split: str) -> WeakDataset:
    if cfg.data == "folder" and not (cfg.root and (cfg.root / split).is_dir()):
        raise SystemExit(f"--root must hold {split}/CLASS/*.jpg, got {cfg.root}.")
    return open_dataset(cfg.data, split, root=cfg.root)


def rows_of(name: str, accuracy: Sequence[float], protocol: metrics.EvaluationProtocol) -> dict:
    return {f"{name}_top{k}": (value, protocol) for k, value in zip(KS, accuracy, strict=True)}


def main(cfg: Config) -> dict[str, float]:
    """Score a model by class names and, unless told otherwise, by a linear probe."""
    device = "cuda" if cfg.device == "auto" and torch.cuda.is_available() else "cpu"
    model, val = load_image_text_model(cfg.model, device=device), open_split(cfg, "val")
    cfg = replace(cfg, size=getattr(model, "size", 224) if cfg.size is None else cfg.size)
    kinds = {"pooled", cfg.feature} if cfg.probe else {"pooled"}
    seen, classes = encode(cfg, model, val, kinds, device)
    said = json.loads(cfg.spoken.read_text()) if cfg.spoken else {}
    names = [said.get(name, name.replace("_", " ")) for name in val.names]
    bank = zero_shot_bank(model, names, templates=cfg.templates or None, background=None)
    protocol = metrics.EvaluationProtocol(
        dataset=cfg.data, split="val (images of one class)", num_images=len(classes), scales=(1.0,),
        flip=False, refiner="none", labels_used=False, text=bank.source,
        size_policy="as they are" if cfg.size is None else f"{cfg.size} square",
    )  # fmt: skip
    accuracy = metrics.zero_shot_accuracy(seen["pooled"], classes, bank.classes, ks=KS)
    scores = rows_of("zero_shot", accuracy, protocol)
    if cfg.probe:
        train = open_split(cfg, "train")
        if tuple(train.names) != tuple(val.names):
            differ = ", ".join(sorted({*train.names} ^ {*val.names}))
            raise SystemExit(f"train and val must have the same classes, but differ in: {differ}.")
        learnt, taught = encode(cfg, model, train, {cfg.feature}, device)
        probed = linear_probe(
            learnt[cfg.feature], taught, seen[cfg.feature], classes, num_classes=len(names),
            epochs=cfg.epochs, base_lr=cfg.base_lr, batch_size=cfg.batch_size, warmup=cfg.warmup,
            batch_norm=cfg.batch_norm, ks=KS, seed=cfg.seed,
        )  # fmt: skip
        plain, name = replace(protocol, text=None), f"linear_{cfg.feature}"
        of_train = replace(plain, split="train (images of one class)", num_images=len(taught))
        scores |= rows_of(name, probed.accuracy, plain)
        scores |= rows_of(f"{name}_train", probed.train_accuracy, of_train)
    results, protocols = ({name: row[i] for name, row in scores.items()} for i in (0, 1))
    metrics.write_metrics(cfg.output / "metrics.json", results, protocols, seed=cfg.seed)
    save_config(cfg.output / "config.json", cfg)
    print(protocol.describe(), *(f"{k:25} {100 * v:6.2f} %" for k, v in results.items()), sep="\n")
    return results


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
