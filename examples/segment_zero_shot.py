"""Masks of classes that are only named: no training, no labels (SimSeg, CVPR 2023).

    python examples/segment_zero_shot.py --images photos --classes dog grass sky
    python examples/segment_zero_shot.py --data voc --root VOCdevkit --model ViT-B-16/openai

With ``--data`` the masks of a data set are scored by its published protocol (VOC with 21 classes,
PASCAL Context with 60, COCO-Object with 81: see ``zero_shot_protocol``), and OUTPUT gets
metrics.json, examples, and a histogram of what each class scores where it is and where it is not;
also scored are masks of the classes that each image is known to show.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from wsss_blocks import metrics
from wsss_blocks.cli import (
    evaluate_zero_shot,
    load_image_text_model,
    segment_files,
    segmenter_of_names,
)
from wsss_blocks.data import UsableImages, open_dataset
from wsss_blocks.segmenters import PROTOCOL_OF_DATA, ZeroShotSegmenter

OFFICIAL_SPLIT = {"coco-object": "val2017"}


@dataclass(frozen=True)
class Config:
    """What to segment, and with what."""

    images: tuple[Path, ...] = ()  # files and folders, for masks of the classes
    classes: tuple[str, ...] = ()
    data: Literal["scenes", "voc", "context", "coco-object", "folder"] | None = None  # to score
    root: Path | None = None  # of the data, as :func:`wsss_blocks.data.open_dataset` wants it
    split: str | None = None  # default: the one that papers report
    eval_images: int | None = None  # only the first of them
    model: str = "ViT-B-16/openai"  # or ARCH/PATH of open_clip, or a file of train_simseg.py
    crf: bool = True
    sigma: float | None = None  # deviations above the mean that a class must reach
    size: int | None = None  # of the square that images are squeezed into: 288, or the model's
    figure_images: int = 8
    output: Path = Path("runs/zero_shot")
    device: Literal["auto", "cpu"] = "auto"


def load_model(text: str, device: str) -> torch.nn.Module:
    """Return a model with encode_image, encode_patches, encode_text and tokenize."""
    return load_image_text_model(text, device=device)


def build(cfg: Config, names: tuple[str, ...], device: str) -> ZeroShotSegmenter:
    """Build the segmenter of a published protocol, or one of the names that were given."""
    model = load_model(cfg.model, device)
    options = {"sigma": cfg.sigma, "size": cfg.size, "crf": cfg.crf}
    if protocol := PROTOCOL_OF_DATA.get(cfg.data):
        segmenter = ZeroShotSegmenter.from_protocol(protocol, model, **options)
    else:
        segmenter = segmenter_of_names(model, names, **options)
    return segmenter.to(device).eval()


def evaluate(cfg: Config, device: str) -> dict[str, float]:
    """Score the masks of a data set; leave numbers and figures, and print a table."""
    split = cfg.split or OFFICIAL_SPLIT.get(cfg.data, "val")
    dataset = open_dataset(cfg.data, split, root=cfg.root, with_masks=True)
    count = min(cfg.eval_images or len(dataset), len(dataset))
    samples = UsableImages(dataset, range(count), {})
    if "mask" not in samples[0]:
        raise SystemExit(f"--data {cfg.data} needs masks to score, and there are none.")
    segmenter = build(cfg, dataset.names, device)
    protocol = dataclasses.replace(
        segmenter.protocol, dataset=cfg.data, split=split,
        ground_truth_hash=metrics.hash_masks(sample["mask"] for sample in samples),
    )  # fmt: skip
    results = evaluate_zero_shot(
        cfg.output, segmenter, samples, protocol=protocol, figure_images=cfg.figure_images,
        device=device,
    )  # fmt: skip
    saved = metrics.read_metrics(cfg.output / "metrics.json")
    print(f"{saved.protocol['zero_shot'].describe()}\n")
    rows = [(n.rpartition("/")[2], v) for n, v in saved.results.items() if "zero_shot/iou/" in n]
    for name, value in (*rows, *results.items()):
        print(f"{name:24} {100 * value:6.2f}")
    print(f"\nwrote metrics.json and figures into {cfg.output}")
    return results


def main(cfg: Config) -> dict[str, float]:
    """Segment files, or score a data set."""
    device = "cuda" if cfg.device == "auto" and torch.cuda.is_available() else "cpu"
    if cfg.data is not None:
        if cfg.images or cfg.classes:
            raise SystemExit("--images and --classes are instead of --data: it has its own")
        return evaluate(cfg, device)
    if cfg.root or cfg.split or cfg.eval_images:
        raise SystemExit("--root, --split and --eval-images go with --data")
    if not cfg.images or not cfg.classes:
        raise SystemExit("give --images and --classes, or --data")
    segmenter = build(cfg, cfg.classes, device)
    done = segment_files(segmenter, cfg.images, output=cfg.output, strict=False)
    print(f"{len(done)} masks in {cfg.output}")
    return {}


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
