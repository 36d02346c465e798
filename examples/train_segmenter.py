"""The second stage: train a segmentation network on masks that another method made.

    python examples/train_segmenter.py --masks runs/cti/pseudo_labels         # scenes, CPU, minutes
    python examples/train_segmenter.py --supervision masks --output runs/full       # upper bound
    python examples/train_segmenter.py --masks MASKS --compare-with runs/full/metrics.json
    python examples/train_segmenter.py --data voc --root VOCdevkit --masks MASKS  # DeepLabV2, GPU
    python examples/train_segmenter.py --data voc --root VOCdevkit --masks MASKS --network smp:Unet
    wsss segment runs/segmenter/segmenter.safetensors photo.jpg

The masks are files ID.png of ids, 255 where nothing is learnt (examples/export_pseudo_labels.py).
With --supervision masks the network learns from the ground truth instead: that is no weak
supervision, it is what weak masks are compared with.
"""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import timm
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from wsss_blocks import backbones, cli, data, losses, metrics, refine, segmenters
from wsss_blocks.training import param_groups, polynomial_schedule, save_weights

FULL = "ground truth masks (fully supervised upper bound)"


@dataclass(frozen=True)
class Config(cli.RunConfig):
    """What the second stage can be told beside the options of every example."""

    output: Path = Path("runs/segmenter")
    masks: str | None = None  # a folder of mask files, or the segmenter.safetensors of a run
    supervision: Literal["pseudo", "masks"] = "pseudo"  # masks: the ground truth, as upper bound
    compare_with: Path | None = None  # metrics.json of a run with --supervision masks
    steps: int = 600
    lr: float = 1.5e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    head_lr: float = 1.0  # multiplier of the learning rate for all that is not the encoder
    refine: Literal["none", "crf"] = "none"
    network: str = "large-fov"  # or deeplabv2, deeplabv3plus, smp:ARCH
    skip: int | None = 2  # of large-fov: layer that gives a finer grid
    hidden: int = 64  # channels of large-fov, and its dilation
    dilation: int = 2
    output_stride: int | None = None  # of deeplabv2 and deeplabv3plus; None: small-cnn and ViTs
    frozen_norms: bool = False  # of deeplabv2: batch norms stay those of the pretrained encoder


VOC = Config(
    data="voc", preset="voc", split="train_aug", network="deeplabv2", encoder="resnet101.tv_in1k",
    weights="pretrained", output_stride=8, frozen_norms=True, skip=None, hidden=512, dilation=5,
    optimizer="sgd", lr=2.5e-4, head_lr=10.0, weight_decay=5e-4, warmup=0, steps=30_000,
    batch_size=10, size=321, scale=(0.5, 2.0), flip=True, colour="none", workers=4, refine="crf",
    eval_scales=(0.5, 0.75, 1.0, 1.25, 1.5), save_every=2000,
)  # fmt: skip
SMALL = Config(
    data="voc", preset="voc-small", network="deeplabv2", encoder="mobilenet", output_stride=16,
    frozen_norms=True, lr=1e-4, head_lr=10.0, steps=300, batch_size=8, size=256, square=True,
    scale=(1.0, 1.0), flip=True, colour="none", eval_size=256,
)  # fmt: skip
PRESETS = {
    "scenes": Config(),
    "voc": VOC,
    "voc-small": SMALL,
    "coco": replace(VOC, data="coco", preset="coco", lr=5e-5, steps=100_000),
    "folder": replace(VOC, data="folder", preset="folder", split="train", steps=5000),
    "folder-small": replace(
        SMALL,
        data="folder",
        preset="folder-small",
        split="train",
        encoder="mobilenetv1_100",
        weights="pretrained",
    ),
}
CTI, RIB = "CTI, supplement", "RIB, documented recipe of its second stage"
DEEPLAB = "DeepLabV2, a public re-implementation"
SAME = dict.fromkeys(("head_lr", "frozen_norms", "output_stride"), DEEPLAB)
SAME |= {"refine": RIB, "scale": RIB, "eval_scales": "inferred: DiG, its test data", "": "ours"}
SOURCES = {
    "voc": SAME | dict.fromkeys(("lr", "steps", "batch_size"), RIB) | dict.fromkeys(
        ("network", "encoder", "optimizer", "weight_decay", "size"), f"inferred: {CTI}, on COCO"),
    "coco": SAME | dict.fromkeys(("lr", "batch_size", "network", "encoder", "optimizer",
                                  "weight_decay", "size"), CTI),
}  # fmt: skip


class TrueMasks(Dataset):
    """Hand the ground truth to training in the place of pseudo-masks: for the upper bound alone."""

    def __init__(self, dataset):
        self.dataset, self.names, self.ids = dataset, dataset.names, dataset.ids
        if "mask" not in dataset[0]:
            raise ValueError("--supervision masks needs the masks of the training images.")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> data.Sample:
        sample = dict(self.dataset[index])
        sample["pseudo_mask"] = sample.pop("mask")
        return sample


class SmpNetwork(nn.Module):
    """Any architecture of segmentation_models_pytorch on an encoder of timm, RGB in [0, 1]."""

    def __init__(self, name: str, encoder: str, *, num_classes: int, weights: str | None):
        super().__init__()
        from segmentation_models_pytorch import create_model

        if weights not in (None, "pretrained"):
            raise ValueError(f"weights must be None or 'pretrained' with smp:{name}, got {weights}")
        pretrained = None if weights is None else "imagenet"
        self.model = create_model(name, f"tu-{encoder}", pretrained, classes=num_classes)
        self.num_classes, colours = num_classes, timm.get_pretrained_cfg(encoder)
        for what in ("mean", "std"):
            self.register_buffer(what, torch.tensor(getattr(colours, what)).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        images = backbones.resize_to_stride(images, stride=32)
        return self.model((images - self.mean) / self.std)


def build(cfg: Config, names: tuple[str, ...]) -> nn.Module:
    if cfg.cache:
        raise ValueError("cache must be off: the encoder is trained.")
    sizes = {"num_classes": len(names) + 1, "weights": cfg.weights}
    if cfg.network.startswith("smp:"):
        return SmpNetwork(cfg.network.removeprefix("smp:"), cfg.encoder, **sizes)
    if cfg.network == "large-fov":
        head = {"skip": cfg.skip, "hidden_dim": cfg.hidden, "dilation": cfg.dilation}
        return segmenters.SegmentationNetwork(cfg.encoder, **head, **sizes)
    if cfg.network == "deeplabv2":
        options = {"output_stride": cfg.output_stride, "frozen_norms": cfg.frozen_norms}
        return segmenters.DeepLabV2Network(cfg.encoder, **options, **sizes)
    if cfg.network == "deeplabv3plus":
        stride = cfg.output_stride or 8
        return segmenters.DeepLabV3PlusNetwork(cfg.encoder, output_stride=stride, **sizes)
    raise ValueError(f"network must be one of those of Config, got {cfg.network!r}.")


def open_masks(cfg: Config, device):
    """Training images with what is learnt from; then, to be scored, those of evaluation."""
    dataset, *scored = cli.open_splits(cfg)
    if cfg.supervision == "masks":  # of the same images
        name = cfg.split if cfg.data == "voc" else "train"
        where = {"root": cfg.root, "labels": cfg.labels, "strict": cfg.strict}
        found = data.open_dataset(cfg.data, name, with_masks=True, **where)
        place = {image: index for index, image in enumerate(found.ids)}
        same = data.UsableImages(found, [place[image] for image in dataset.ids], {})
        return TrueMasks(same), *scored
    given = partial(cli.with_masks, masks=cfg.masks, output=cfg.output, device=device)
    if scored:  # the masks of those that it learns from
        known, masked = set(dataset.ids), scored[1]
        kept = [index for index, image in enumerate(masked.ids) if image in known]
        scored[1] = given(data.UsableImages(masked, kept, {})) if kept else None
    return given(dataset), *scored


def train(cfg: Config, accelerator: Accelerator, dataset, *scored) -> nn.Module:
    model = build(cfg, dataset.names)
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    encoder = "model.encoder." if isinstance(model, SmpNetwork) else "encoder."
    rates = {"weight_decay": cfg.weight_decay, "multipliers": {"": cfg.head_lr, encoder: 1.0}}
    groups = param_groups(model, lr=cfg.lr, **rates)
    sgd = partial(torch.optim.SGD, momentum=0.9)
    optimizer = (sgd if cfg.optimizer == "sgd" else torch.optim.AdamW)(groups)
    warmup = min(cfg.warmup, cfg.steps - 1)
    schedule = polynomial_schedule(optimizer, total_steps=cfg.steps, warmup_steps=warmup)
    step_model = torch.compile(model) if cfg.compile else model
    step_model, optimizer = accelerator.prepare(step_model, optimizer)
    stateful = {"model": model, "optimizer": optimizer, "schedule": schedule}
    network = cli.run_segmenter(cfg, model, dataset.names, num_images=sum(map(len, scored[:1])))
    kept = None if isinstance(model, SmpNetwork) else network  # what has no recipe is not saved
    saved = cli.Checkpoints(cfg, accelerator, stateful, names=dataset.names, segmenter=kept)
    steps = cli.TrainingSteps(cfg, dataset, accelerator, start=saved.resume())
    for step, group in steps:
        step_model.train()
        counts = sum(losses.segmentation_counts(batch["pseudo_mask"]) for batch in group)
        optimizer.zero_grad()
        shares = []
        for micro, batch in enumerate(group):
            with steps.synchronised(step_model, micro):
                with accelerator.autocast():
                    logits = step_model(batch["image"])
                options = {"gather_distributed": True, "counts": counts}
                loss = losses.segmentation_loss(logits, batch["pseudo_mask"], **options)
                accelerator.backward(loss)
            shares.append({"seg": loss})
        optimizer.step()
        schedule.step()
        steps.log(shares)
        saved.save(step)
        if scored and cfg.eval_every and step % cfg.eval_every == 0 and step < cfg.steps:
            accelerator.log(evaluate(cfg, model, accelerator.device, *scored), step=step)
    return model


@torch.no_grad()
def evaluate(cfg: Config, model: nn.Module, device, val, masked, **extra) -> dict[str, float]:
    """Score the network and the masks it learnt from; write OUTPUT/metrics.json and figures."""
    model.eval()
    whole = cli.run_segmenter(cfg, model, val.names, num_images=len(val))
    weak = cfg.supervision == "pseudo" and masked is not None
    return cli.evaluate_system(
        cfg.output, val=val, train=masked, class_maps=None, pseudo_label=None, logits=whole,
        masks={"train_mask": lambda sample: sample["pseudo_mask"]} if weak else {},
        protocol=whole.protocol, refiner=None, refine=cfg.refine,
        crf=refine.DenseCRF.preset("deeplab"), device=device, seed=cfg.seed,
        extra=extra | {"supervision": cfg.masks or FULL},
    )  # fmt: skip


def share_of_full(full: Path, weak: Path) -> str:
    """Return a table: what share of the fully supervised scores weak masks reach."""
    runs = metrics.read_metrics(full), metrics.read_metrics(weak)
    if (learnt := runs[0].run.get("supervision")) != FULL:
        raise ValueError(f"{full} must be of a run with --supervision masks, got: {learnt}.")
    rows = [f"{'per cent':<14}{'full':>8}{'weak':>8}{'weak / full':>13}"]
    for found in metrics.compare_metrics(*runs):
        if found.change is not None and found.name in ("seg_miou", "seg_raw_miou", "seg_crf_miou"):
            old, new = 100 * found.old, 100 * found.new
            share = f"{100 * new / old:.1f}" if old else "-"
            rows.append(f"{found.name:<14}{old:>8.2f}{new:>8.2f}{share:>13}")
    return "\n".join(rows)


def main(cfg: Config) -> dict[str, float]:
    """Train, evaluate and return the results; or segment ``cfg.predict``."""
    if not cfg.predict and (cfg.masks is None) is (cfg.supervision == "pseudo"):
        raise SystemExit("say what to learn from: either --masks, or --supervision masks.")
    if cfg.compare_with:
        metrics.read_metrics(cfg.compare_with)  # a wrong path shows now
    accelerator = cli.start_run(cfg)
    device = accelerator.device
    if cfg.predict:
        return cli.segment_predicted(cfg, device=device)
    if found := SOURCES.get(cfg.preset):
        accelerator.print(cli.describe_recipe(cfg, PRESETS[cfg.preset], sources=found))
    accelerator.print(f"learning from {cfg.masks or FULL}")
    dataset, *scored = open_masks(cfg, device)
    wall, cpu = time.perf_counter(), time.process_time()
    model = train(cfg, accelerator, dataset, *scored)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if accelerator.is_main_process:
        save_weights(cfg.output / "model.safetensors", model)
        cli.save_config(cfg.output / "config.json", cfg, names=dataset.names)
    spent = {"train_seconds": wall, "train_cpu_seconds": cpu}
    results = evaluate(cfg, model, device, *scored, **spent) if scored else {}
    accelerator.end_training()
    if results and cfg.compare_with:
        accelerator.print(share_of_full(cfg.compare_with, cfg.output / "metrics.json"))
    return results


if __name__ == "__main__":
    main(cli.parse_config(PRESETS, description=__doc__))
