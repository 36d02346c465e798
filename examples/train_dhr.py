"""Train DHR (ECCV 2024, https://arxiv.org/abs/2404.00380): image labels in, masks out.

    python examples/train_dhr.py                                  # generated scenes, CPU, minutes
    python examples/train_dhr.py --data voc --root VOCdevkit      # the paper's recipe, one GPU
    accelerate launch examples/train_dhr.py --data voc --root VOCdevkit          # several GPUs
    python examples/train_dhr.py --data voc --root VOCdevkit --masks pseudo_labels   # your masks
    python examples/train_dhr.py --masks runs/dalnet/segmenter.safetensors       # DALNet's masks
    python examples/train_dhr.py --predict photo.jpg --output runs/dhr           # use the result

A network learns to classify; the masks to start from are its class maps, or those of any other
method. In each step the masks are rebalanced by frozen unsupervised features (USS) and by the
network's own (WSS), and teach its decoder. docs/systems/dhr.md says what is inferred.
"""

import time
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from wsss_blocks import backbones, cam, cli, data, heads, losses, pooling, refine, segmenters
from wsss_blocks.distributed import rank
from wsss_blocks.memory import EMA
from wsss_blocks.training import Phases, param_groups, polynomial_schedule, save_weights

RUNGS = ("none", "ot", "ot+refine", "ot+refine+wss", "ot+refine+uss", "full")
REFINERS = {
    "none": refine.NoRefiner,
    "par": partial(refine.PixelAdaptiveRefine, dilations=(1, 2, 4, 8, 12)),
    "crf": partial(refine.DenseCRF.preset, "dhr"),
}


@dataclass(frozen=True)
class Config(cli.RunConfig):
    """What DHR can be told beside the options of every example (:class:`cli.RunConfig`)."""

    output: Path = Path("runs/dhr")
    refine: Literal["none", "crf"] = "none"
    steps: int = 780
    lr: float = 1.5e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    head_lr: float = 1.0  # multiplier of the learning rate for all that is not the encoder
    ema: float = 0.99  # decay of the averaged network, which is the one that is kept
    long_side: tuple[int, int] | None = None  # images are resized to; None: by ``scale``
    # the network
    decoder: Literal["large-fov", "deeplabv3plus"] = "large-fov"
    layers: tuple[int, ...] = (2,)  # whose features are WSS features (C4), beside the final ones
    neck: int = 0  # channels of a trainable 1x1 layer that all heads share; 0 for none
    skip: int | None = 2  # layer that gives LargeFOV a finer grid
    hidden: int = 64  # channels of LargeFOV, and its dilation
    dilation: int = 2
    top_k: float = 0.1  # share of positions that the classifier pools; 1: all of them
    cam_stride: int = 1  # cells of the features per cell of the class map
    # the masks to start from
    masks: str = "cam"  # or a folder of mask files, or the segmenter.safetensors of another run
    mask_threshold: float = 0.2  # background of the class maps' masks
    mask_refiner: Literal["none", "par", "crf"] = "none"  # and what refines them
    mask_start: int = 490  # step from which on masks are made, and teach the decoder
    # rebalancing
    ablate: Literal["none", "ot", "ot+refine", "ot+refine+wss", "ot+refine+uss", "full"] = "full"
    ladder: bool = False  # score the masks of all of these in the end
    refiner: Literal["none", "par", "crf"] = "crf"
    refine_seed: bool = True  # by the full method; on scenes it costs a third and changes nothing
    tau: float = 0.8  # cosine above which two classes are alike
    class_mass: Literal["uniform", "area"] = "area"  # of each class in the transport problems
    num_iters: int = 20  # of Sinkhorn
    grid_stride: int = 2  # image pixels per cell of the heat-maps
    label_stride: int = 2  # and per pixel of the masks in training
    mask_stride: int = 1  # and of those that are scored
    # unsupervised features: bilateral (no network), a name for create_encoder, or "saved"
    uss: str = "bilateral"
    uss_weights: str | None = None  # of the encoder, as --weights
    uss_layer: int | None = None  # its layer; None: the final one
    uss_scales: tuple[float, ...] = (2.0, 1.0, 1.5, 0.5)
    uss_folder: Path | None = None  # of the cached (None: OUTPUT/uss) or saved (CAUSE) features


VOC = Config(
    data="voc", preset="voc", split="train_aug", encoder="resnet101.tv_in1k", weights="pretrained",
    decoder="deeplabv3plus", layers=(4,), cam_stride=2, top_k=1.0, optimizer="sgd", lr=1e-3,
    head_lr=10.0, weight_decay=4e-5, ema=0.999, warmup=0, steps=66_100, mask_start=6610,
    batch_size=16, size=512, long_side=(320, 640), flip=True, uss_weights="pretrained", workers=4,
    uss="vit_base_patch14_dinov2.lvd142m", class_mass="uniform", grid_stride=8, label_stride=4,
    mask_threshold=0.3, refine="crf", eval_scales=(1.0, 0.5, 1.5, 2.0), save_every=2000,
)  # fmt: skip
SMALL = Config(
    data="voc", preset="voc-small", encoder="mobilenet", cache=True, layers=(4,), neck=512,
    skip=None, top_k=1.0, lr=1e-3, steps=500, mask_start=350, batch_size=8, size=384, square=True,
    scale=(1.0, 1.0), flip=True, eval_size=384, mask_threshold=0.3, grid_stride=8, label_stride=4,
    uss="mobilenet", uss_layer=4, uss_scales=(1.5,), mask_stride=2,
)  # fmt: skip
PRESETS = {
    "scenes": Config(refine_seed=False),
    "scenes-hard": Config(data="scenes-hard", preset="scenes-hard", steps=1000, mask_start=800),
    "voc": VOC,
    "coco": replace(VOC, data="coco", preset="coco", steps=123_000, mask_start=12_300),
    "voc-small": SMALL,
    "coco-small": replace(SMALL, data="coco", preset="coco-small"),
    "folder": replace(VOC, data="folder", preset="folder"),
    "folder-small": replace(SMALL, data="folder", preset="folder-small", weights="pretrained",
                            encoder="mobilenetv1_100", uss="mobilenetv1_100"),
} | {
    name: replace(VOC, data=kind, preset=name, split="train", steps=steps, mask_start=steps // 10,
                  mask_threshold=0.0)
    for name, kind, steps in (("context", "context", 33_000), ("ade", "ade20k", 72_700),
                              ("stuff", "coco-stuff", 264_000))
}  # fmt: skip
CODE, HOURS = "DHR, released code", "inferred: DHR, supplement, Tab. A (hours over those on VOC)"
PAPER = dict.fromkeys((
    "encoder", "decoder", "layers", "cam_stride", "top_k", "optimizer", "lr", "head_lr", "size",
    "weight_decay", "batch_size", "long_side", "flip", "ema", "class_mass", "tau", "eval_scales",
    "refiner", "uss_scales",
), CODE) | {"steps": CODE, "uss": "inferred: CAUSE on DINOv2 in the paper", "": "ours"}  # fmt: skip
OTHERS = ("coco", "context", "ade", "stuff")
SOURCES = {"voc": PAPER} | dict.fromkeys(OTHERS, PAPER | {"steps": HOURS})


def inside(box: Tensor, images: Tensor, maps: Tensor) -> Tensor:
    """The cells of maps that show image and not padding."""
    sizes = {"image_size": tuple(images.shape[-2:]), "size": tuple(maps.shape[-2:])}
    return cam.box_to_valid(box, **sizes)


class DHR(nn.Module):
    """Segmentation network and class head; the masks that teach it, and the losses of a step."""

    def __init__(self, cfg: Config, names: tuple[str, ...]):
        super().__init__()
        self.cfg, classes = cfg, len(names)
        sizes = {"num_classes": classes + 1, "weights": cfg.weights}
        if cfg.decoder == "deeplabv3plus":
            if cfg.cache:
                raise ValueError("cache must be off with deeplabv3plus, whose encoder is trained.")
            self.net = segmenters.DeepLabV3PlusNetwork(cfg.encoder, **sizes)
        else:
            self.net = segmenters.SegmentationNetwork(
                cfg.encoder, neck_dim=cfg.neck, skip=cfg.skip, hidden_dim=cfg.hidden,
                dilation=cfg.dilation, **sizes,
            )  # fmt: skip
        pool = partial(pooling.global_top_k_pool, fraction=cfg.top_k)
        self.head = heads.ClassHead(self.net.dim, classes, pool=pool, pool_at="cam")
        self.uss = backbones.BilateralFeatures() if cfg.uss == "bilateral" else None
        self.refiner, self.mask_refiner = REFINERS[cfg.refiner](), REFINERS[cfg.mask_refiner]()
        known = cfg.data in data.CLASS_TABLES
        self.background = not known or data.class_table(cfg.data).background

    def encode(self, images: Tensor, cached: Tensor | None = None):
        layers = {"layers": self.cfg.layers}
        if cached is None:
            return self.net.encode(images, **layers)
        return self.net.encode_cached(cached, **layers)

    def classify(self, x: Tensor, images: Tensor, box: Tensor | None = None):
        """Class logits, of the part of the crop that is image, and class maps."""
        if (stride := self.cfg.cam_stride) > 1:
            x = F.interpolate(x, [-(-side // stride) for side in x.shape[-2:]], mode="bilinear")
        valid = None if box is None else inside(box, images, x)
        return self.head(x, valid=valid)

    def masks(self, batch: dict[str, Tensor], encoded, *, stride: int, rung: str):
        """Rebalance the masks of a batch; at ``1 / stride`` of the images' size."""
        cfg, images, labels, box = self.cfg, batch["image"], batch["labels"], batch["box"]
        (x, features), whole = encoded, tuple(images.shape[-2:])
        size, grid = (tuple(-(-side // n) for side in whole) for n in (stride, cfg.grid_stride))
        maps, uss, valid = self.classify(x, images).cam, None, None
        shown = inside(box, images, maps)
        if rung.endswith(("uss", "full")):
            uss = batch["uss"] if self.uss is None else self.uss(images).feature_map
            valid = batch.get("uss_valid")
        images = F.interpolate(images, size, mode="area")
        box = cam.scale_box(box, image_size=whole, size=size)
        if (mask := batch.get("pseudo_mask")) is not None:
            mask = F.interpolate(mask[:, None].float(), size, mode="nearest-exact")[:, 0].long()
        else:
            shown = cam.normalize_cam(maps, valid=shown) * labels[:, :, None, None]
            options = {"thresholds": (cfg.mask_threshold,) * 2, "box": box}
            mask = refine.refine_to_label(shown, images, labels, self.mask_refiner, **options)
        if not self.background:
            mask = mask.masked_fill(mask == 0, 255)
        if rung == "none":
            return refine.RebalancedMask(mask, mask, None)
        seeds = cfg.refine_seed if rung == "full" else "refine" in rung
        rebalancer = refine.ClassRebalancer(
            refiner=self.refiner, refine_seed=seeds, size=grid,
            threshold=cfg.tau, class_mass=cfg.class_mass, num_iters=cfg.num_iters,
        )  # fmt: skip
        wss = [*features.intermediates.values(), x] if rung.endswith(("wss", "full")) else []
        return rebalancer(images, maps, mask, labels, uss, wss, box=box, valid=valid)

    @torch.compiler.disable  # it would take many graphs, and learns nothing
    @torch.no_grad()
    def targets(self, batch: dict[str, Tensor], encoded=None) -> dict[str, Tensor]:
        """What the network teaches itself."""
        encoded = encoded or self.encode(batch["image"], batch.get("features"))
        cfg = self.cfg
        return {"target": self.masks(batch, encoded, stride=cfg.label_stride, rung=cfg.ablate).mask}

    def forward(self, batch, active: frozenset[str], counts=None) -> dict[str, Tensor]:
        """Losses; with ``counts`` this batch's share in those of the step."""
        x, features = encoded = self.encode(batch["image"], batch.get("features"))
        logits = self.classify(x, batch["image"], batch["box"]).logits
        found = losses.multi_label_soft_margin_loss(logits, batch["labels"])
        terms = {"cls": found / self.cfg.accumulate}
        if "seg" in active:
            target = batch.get("target")
            if target is None:
                target = self.targets(batch, encoded)["target"]
            share = {"gather_distributed": True, "counts": counts}
            terms["seg"] = losses.segmentation_loss(self.net.decode(x, features), target, **share)
        return terms


def train(cfg: Config, accelerator: Accelerator, uss, dataset, *scored) -> DHR:
    device = accelerator.device
    model = DHR(cfg, dataset.names).to(device, memory_format=torch.channels_last)
    rates = {"weight_decay": cfg.weight_decay, "multipliers": {"": cfg.head_lr, "net.encoder.": 1}}
    groups = param_groups(model, lr=cfg.lr, **rates)
    sgd = partial(torch.optim.SGD, momentum=0.9)
    optimizer = (sgd if cfg.optimizer == "sgd" else torch.optim.AdamW)(groups)
    warmup = min(cfg.warmup, cfg.steps - 1)
    schedule = polynomial_schedule(optimizer, total_steps=cfg.steps, warmup_steps=warmup)
    phases = Phases({"seg": 0 if cfg.masks != "cam" else cfg.mask_start})
    average = EMA(model, decay=cfg.ema, average_buffers=True)
    step_model = torch.compile(model) if cfg.compile else model
    step_model, optimizer = accelerator.prepare(step_model, optimizer)
    stateful = {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}
    images = len(scored[0]) if scored else 0
    network = cli.run_segmenter(cfg, average.model.net, dataset.names, num_images=images)
    saved = cli.Checkpoints(cfg, accelerator, stateful, names=dataset.names, segmenter=network)
    side = -(-cfg.size // cfg.grid_stride)
    transform = None if cfg.long_side is None else data.Compose(
        data.RandomResize(*cfg.long_side), data.RandomHorizontalFlip(),
        data.ColorJitter(0.3, 0.3, 0.3, 0.1, p=1.0), data.RandomCrop(cfg.size),
    )  # fmt: skip
    steps = cli.TrainingSteps(
        cfg, dataset, accelerator, start=saved.resume(), transform=transform,
        cache={"features": partial(model.net.frozen_maps, layers=cfg.layers)} if cfg.cache else {},
        maps={"uss": uss.maps(dataset.ids)} if uss else {},
        map_sizes={"uss": (side, side)} if uss else {},
    )  # fmt: skip
    for step, group in steps:
        step_model.train()
        active, shares, counts = phases.active_at(step - 1), [], None
        if cfg.accumulate > 1 and "seg" in active:  # the targets say what the loss divides by
            with accelerator.autocast():
                group = [batch | model.targets(batch) for batch in group]
            counts = sum(losses.segmentation_counts(batch["target"]) for batch in group)
        optimizer.zero_grad()
        for micro, batch in enumerate(group):
            with steps.synchronised(step_model, micro):
                with accelerator.autocast():
                    shares.append(step_model(batch, active, counts))
                accelerator.backward(sum(shares[-1].values()))
        optimizer.step()
        schedule.step()
        average.update(model)
        steps.log(shares)
        saved.save(step)
        if scored and cfg.eval_every and step % cfg.eval_every == 0 and step < cfg.steps:
            accelerator.log(evaluate(cfg, average.model, device, uss, *scored), step=step)
    return average.model


@torch.no_grad()
def evaluate(cfg: Config, model: DHR, device, uss, val, masked, **extra) -> dict[str, float]:
    """Score class maps, masks and decoder; write OUTPUT/metrics.json and OUTPUT/figures."""
    model.eval()
    whole = cli.run_segmenter(cfg, model.net, val.names, num_images=len(val))
    protocol = replace(whole.protocol, threshold=cfg.mask_threshold, threshold_source="preset")

    def rebalanced(sample, rung: str):
        """A whole training image as a batch of one, and its rebalanced mask."""
        batch = cli.whole_image(sample, size=cfg.eval_size, device=device)
        if uss:
            batch["uss"] = uss[sample["id"]][None].to(device, torch.float32)
        how = {"stride": cfg.mask_stride, "rung": rung}
        return batch, model.masks(batch, model.encode(batch["image"]), **how)

    def mask(rung: str, sample) -> Tensor:
        found, size = rebalanced(sample, rung)[1].mask, sample["image"].shape[-2:]
        return F.interpolate(found[None].float(), size, mode="nearest-exact")[0, 0].long().cpu()

    rungs = {"initial": "none", "rebalanced": cfg.ablate}
    rungs |= {f"rung_{rung}": rung for rung in RUNGS} if cfg.ladder else {}
    results = cli.evaluate_system(
        cfg.output, val=val, train=masked, size=cfg.eval_size, device=device, seed=cfg.seed,
        class_maps=lambda x, _: {"cam": model.classify(model.encode(x)[0], x).cam},
        pseudo_label=None, masks={name: partial(mask, rung) for name, rung in rungs.items()},
        logits=whole, protocol=protocol, maps_protocol=replace(protocol, scales=(1.0,), flip=False),
        refiner=model.refiner, refine=cfg.refine, crf=refine.DenseCRF.preset("dhr"), extra=extra,
    )  # fmt: skip
    if rank() == 0 and "mask" in masked[0]:
        samples, cases = map(masked.__getitem__, range(len(masked))), []
        several = islice((s for s in samples if s["labels"].sum() > 1), 4)
        for sample in list(several) or [masked[0]]:
            batch, found = rebalanced(sample, "full")
            features = batch["uss"] if uss else model.uss(batch["image"]).feature_map
            shown = (batch["image"], batch["labels"], features, found, sample["mask"][None])
            cases.append(cli.RebalancedCase(*shown))
        cli.draw_rebalancing(cfg.output / "figures" / "rebalancing.png", cases, names=val.names)
    return results


def main(cfg: Config) -> dict[str, float]:
    """Train, evaluate and return the results; or segment ``cfg.predict``."""
    accelerator = cli.start_run(cfg)
    device = accelerator.device
    if cfg.predict:
        return cli.segment_predicted(cfg, device=device)
    if found := SOURCES.get(cfg.preset):
        accelerator.print(cli.describe_recipe(cfg, PRESETS[cfg.preset], sources=found))
    dataset, *scored = cli.open_splits(cfg)
    if cfg.masks != "cam":
        options = {"output": cfg.output, "device": device}
        dataset = cli.with_masks(dataset, cfg.masks, **options)
        scored[1:] = [cli.with_masks(masked, cfg.masks, **options) for masked in scored[1:]]
    options = {"weights": cfg.uss_weights, "layer": cfg.uss_layer, "scales": cfg.uss_scales}
    folder, images = cfg.uss_folder or cfg.output / "uss", [dataset, *scored[1:]]
    build = partial(cli.frozen_features, cfg.uss, folder, images, device=device, **options)
    uss = None if cfg.uss == "bilateral" else build()
    wall, cpu = time.perf_counter(), time.process_time()
    model = train(cfg, accelerator, uss, dataset, *scored)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if accelerator.is_main_process:
        save_weights(cfg.output / "model.safetensors", model)
        cli.save_config(cfg.output / "config.json", cfg, names=dataset.names)
    spent = {"train_seconds": wall, "train_cpu_seconds": cpu}
    results = evaluate(cfg, model, device, uss, *scored, **spent) if scored else {}
    accelerator.end_training()
    return results


if __name__ == "__main__":
    main(cli.parse_config(PRESETS, description=__doc__))
