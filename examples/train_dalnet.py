"""Train DALNet (DIAL, ECCV 2024, https://arxiv.org/abs/2409.15801): image labels in, masks out.

    python examples/train_dalnet.py                                # generated scenes, CPU, minutes
    python examples/train_dalnet.py --data voc --root VOCdevkit    # the paper's recipe, one GPU
    accelerate launch examples/train_dalnet.py --data voc --root VOCdevkit       # several GPUs
    python examples/train_dalnet.py --data folder --root photos --labels labels.csv   # your images
    python examples/train_dalnet.py --predict photo.jpg --output runs/dalnet     # use the result

Classification on two layers; global token (GIA) and object regions (LEA) aligned with class names;
a decoder taught by the refined class maps. docs/systems/dalnet.md says what is inferred.
"""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from wsss_blocks import backbones, cam, cli, heads, losses, pooling, segmenters
from wsss_blocks.refine import PixelAdaptiveRefine, refine_to_label
from wsss_blocks.training import Phases, param_groups, polynomial_schedule, save_weights


@dataclass(frozen=True)
class Config(cli.RunConfig):
    """What DALNet can be told beside the options of every example (:class:`cli.RunConfig`)."""

    output: Path = Path("runs/dalnet")
    steps: int = 1100
    lr: float = 1.5e-3
    neck: int = 0  # channels of a trainable 1x1 layer that all heads share; 0 for none
    layer: int | None = 2  # of the object mask (0-based block, or CNN stage); None: the final one
    skip: int | None = 2  # layer that gives the decoder a finer grid
    top_k: float = 0.1  # share of positions that is pooled; 0 pools the maximum, as ToCo does
    hidden: int = 64  # channels of the decoder
    dilation: int = 2
    text: str = "stand-in"  # or clip, ARCHITECTURE/WEIGHTS of open_clip, or a saved TextBank
    outside: str = "zebra crossing"  # a text of no class, for the similarity figure
    gia: bool = True  # what is learnt, how strongly, and from which step on
    lea: bool = True
    seg: bool = True  # the decoder
    gia_weight: float = 0.2
    lea_weight: float = 0.2
    seg_weight: float = 1.0
    gia_start: int = 0
    lea_start: int = 450
    seg_start: int = 450
    beta: float = 0.5  # background threshold of the object mask
    temperature: float = 1.0  # of the local alignment
    background_weight: float = 1e-3  # of its background term
    source: Literal["classifier", "text", "layer"] = "classifier"  # of pseudo-labels
    layer_until: int = 0  # up to this step they are made from the layer's map instead
    cam_scales: tuple[float, ...] = ()  # (): the class map of the training forward itself
    thresholds: tuple[float, float] = (0.1, 0.15)
    dilations: tuple[int, ...] = (1, 2, 4, 8, 12)  # of the refinement, in its pixels
    cams: Literal["none", "cam", "text_cam", "layer_cam"] = "none"  # kept in OUTPUT/cams
    refine_stride: int = 2  # image pixels per pixel of the refinement
    label_stride: int = 2  # and per pixel of the pseudo-label, which the decoder's loss has too
    head_lr: float = 1.0  # multiplier of the learning rate for all that is not the encoder
    clip: float = 0.0  # norm of the gradient; 0: as it is


VOC = Config(
    data="voc", preset="voc", split="train_aug", weights="pretrained", layer=9, top_k=0.0,
    encoder="vit_base_patch16_224.augreg_in21k_ft_in1k", hidden=512, dilation=5, text="clip",
    gia_weight=1.0, lea_weight=1.0, seg_weight=0.1, lea_start=1000, seg_start=2000, label_stride=1,
    thresholds=(0.25, 0.7), cam_scales=(1.0, 0.5, 1.5), dilations=(1, 2, 4, 8, 12, 24), size=448,
    scale=(0.5, 2.0), flip=True, colour="photometric", steps=20_000, batch_size=4, lr=6e-5,
    skip=None, head_lr=10.0, eval_every=2000, eval_scales=(1.0, 1.25, 1.5), warmup=1500, workers=4,
    eval_fuse=("mean", "max"),
)  # fmt: skip
SMALL = Config(
    data="voc", preset="voc-small", encoder="mobilenet", neck=512, layer=None, skip=None, lr=1e-3,
    gia_weight=1.0, lea_weight=1.0, lea_start=100, seg_start=200, steps=500, batch_size=8,
    refine_stride=4, label_stride=4, thresholds=(0.2, 0.4), dilations=(1, 2, 4, 8), top_k=1.0,
    size=384, square=True, scale=(1.0, 1.0), flip=True, cache=True, gia=False, eval_size=384,
)  # fmt: skip
PRESETS = {
    "scenes": Config(clip=2.0),
    "scenes-vit": Config(preset="scenes-vit", encoder="small-vit", layer=0, skip=None, lr=1e-3,
                         source="layer", steps=1500, lea_start=700, seg_start=700, warmup=100),
    "voc": VOC,
    "voc-small": SMALL,
    "coco": replace(VOC, data="coco", preset="coco", steps=80_000, batch_size=8,
                    lea_start=8000, seg_start=8000, layer_until=12_000, thresholds=(0.25, 0.65),
                    beta=0.45, threshold=0.45, eval_fuse=("max", "max"), eval_size=448),
    "folder": replace(VOC, data="folder", preset="folder"),
    "folder-small": replace(SMALL, data="folder", preset="folder-small", text="clip",
                            encoder="mobilenetv1_100", weights="pretrained"),
}  # fmt: skip
TAB5, TAB6 = "DIAL, supplement, Tab. 5 (on VOC)", "DIAL, supplement, Tab. 6 (on VOC)"
PAPER = {
    "layer": TAB5, "beta": TAB5, "temperature": TAB5, "background_weight": TAB6, "gia_weight": TAB6,
    "lea_weight": TAB6, "text": "prompts: DIAL, supplement, Fig. 10; the tower is inferred",
    "": "inferred: ToCo's, or ours"}  # fmt: skip
SOURCES = {"voc": PAPER, "coco": PAPER | {"beta": "inferred: ToCo's on COCO"}, "folder": PAPER}


class DALNet(nn.Module):
    """Segmentation network, class heads and projection to the text space; the losses of a step."""

    def __init__(self, cfg: Config, bank: backbones.TextBank):
        super().__init__()
        self.cfg, self.bank, classes = cfg, bank, len(bank.names)
        self.views = {"scales": cfg.cam_scales or (1.0,), "flip": bool(cfg.cam_scales)}
        self.net = segmenters.SegmentationNetwork(
            cfg.encoder, num_classes=classes + 1, weights=cfg.weights, neck_dim=cfg.neck,
            skip=cfg.skip, hidden_dim=cfg.hidden, dilation=cfg.dilation,
        )  # fmt: skip
        self.layers = () if cfg.layer is None else (cfg.layer,)
        pool = partial(pooling.global_top_k_pool, fraction=cfg.top_k) if cfg.top_k else None
        head = partial(heads.ClassHead, pool=pool, pool_at="cam" if cfg.top_k else "features")
        self.head, dims = head(self.net.dim, classes), self.net.encoder.layer_dims
        self.aux_head = None if cfg.layer is None else head(dims[cfg.layer], classes)
        self.project = heads.ProjectionHead(self.net.dim, bank.classes.shape[1])
        downsample = max(1, cfg.refine_stride // cfg.label_stride)
        self.refiner = PixelAdaptiveRefine(dilations=cfg.dilations, downsample=downsample)

    def encode(self, images: Tensor, cached: Tensor | None = None):
        if cached is None:
            return self.net.encode(images, layers=self.layers)
        return self.net.encode_cached(cached)

    def maps(self, x: Tensor, features: backbones.Features) -> tuple[Tensor, ...]:
        """Raw class maps: final classifier, similarity to the texts and, if any, the layer's."""
        text, background = self.bank.classes, self.bank.background
        margin = cam.similarity_cam(self.project(x), text, background=background, mode="margin")
        if self.aux_head is None:
            return self.head(x).cam, margin
        return self.head(x).cam, margin, self.aux_head(features.intermediates[self.cfg.layer]).cam

    def class_maps(self, images: Tensor, _: Tensor) -> dict[str, Tensor]:
        found = cam.multi_scale_cam(lambda x: self.maps(*self.encode(x)), images, **self.views)
        return dict(zip(("cam", "text_cam", "layer_cam"), found, strict=False))

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        return cam.similarity_cam(self.project(self.encode(images)[0]), texts)

    def pseudo_label(self, images, labels, box, maps=None, source=None) -> Tensor:
        maps, cfg = maps or self.maps(*self.encode(images)), self.cfg
        if cfg.cam_scales:
            size, maps_of = images.shape[-2:], lambda views: self.maps(*self.encode(views))
            maps = cam.multi_scale_cam(maps_of, images, scales=cfg.cam_scales, size=size)
        chosen = maps[("classifier", "text", "layer").index(source or cfg.source)]
        scores = cam.normalize_cam(chosen) * labels[:, :, None, None]
        size = [max(1, side // cfg.label_stride) for side in images.shape[-2:]]
        box = cam.scale_box(box, image_size=images.shape[-2:], size=size)
        images = nn.functional.interpolate(images, size, mode="bilinear")
        options = {"thresholds": cfg.thresholds, "box": box}
        return refine_to_label(scores, images, labels, self.refiner, **options)

    @torch.no_grad()
    def targets(self, batch: dict[str, Tensor], active: frozenset[str], encoded=None):
        """What the network teaches itself: the object mask of LEA, the decoder's pseudo-labels."""
        cfg, images, labels, box = self.cfg, batch["image"], batch["labels"], batch["box"]
        x, features = encoded or self.encode(images, batch.get("features"))
        made, size = {}, x.shape[-2:]
        maps = self.maps(x, features) if active & {"lea", "seg"} else ()
        if "seg" in active:
            source = cfg.source if "final" in active else "layer"
            made["pseudo"] = self.pseudo_label(images, labels, box, maps, source)
        if "lea" in active:
            box = cam.scale_box(box, image_size=images.shape[-2:], size=size)
            raw = maps[0] if self.aux_head is None else maps[2]
            made["regions"] = cam.cam_to_label(raw, labels, size=size, threshold=cfg.beta, box=box)
        return made

    def forward(self, batch, active: frozenset[str], counts=None) -> dict[str, Tensor]:
        """Losses; with ``counts`` (:func:`loss_counts`) this batch's share in those of the step."""
        cfg, labels = self.cfg, batch["labels"]
        texts = (labels, self.bank.classes, self.bank.background)
        x, features = encoded = self.encode(batch["image"], batch.get("features"))
        batch = batch | (self.targets(batch, active, encoded) if counts is None else {})
        share = {t: {"gather_distributed": True, "counts": (counts or {}).get(t)} for t in active}
        margin = losses.multi_label_soft_margin_loss
        terms = {"cls": margin(self.head(x).logits, labels) / cfg.accumulate}
        if self.aux_head is not None:
            logits = self.aux_head(features.intermediates[cfg.layer]).logits
            terms["aux"] = margin(logits, labels) / cfg.accumulate
        if "gia" in active:
            token = features.global_token if features.class_tokens.shape[1] else x.mean((2, 3))
            token = self.project(token)
            found = losses.global_implicit_alignment_loss(token, *texts, **share["gia"])
            terms["gia"] = cfg.gia_weight * found
        if "lea" in active:
            options = {"temperature": cfg.temperature, "background_weight": cfg.background_weight}
            found = losses.cross_contrastive_loss(
                self.project(x), batch["regions"], *texts, **options, **share["lea"]
            )
            terms["lea"] = cfg.lea_weight * found
        if "seg" in active:
            logits = self.net.decode(x, features)
            found = losses.balanced_segmentation_loss(logits, batch["pseudo"], **share["seg"])
            terms["seg"] = cfg.seg_weight * found
        return terms


def loss_counts(group: list[dict[str, Tensor]], active: frozenset[str]) -> dict[str, Tensor]:
    """What the losses of a step divide by, summed over its micro-batches."""
    count = {
        "gia": lambda b: losses.global_implicit_alignment_counts(b["labels"]),
        "lea": lambda b: losses.cross_contrastive_counts(b["regions"], b["labels"]),
        "seg": lambda b: losses.balanced_segmentation_counts(b["pseudo"]),
    }
    return {term: sum(count[term](batch) for batch in group) for term in active & count.keys()}


def train(cfg: Config, accelerator: Accelerator, dataset, *scored) -> DALNet:
    device, names = accelerator.device, dataset.names
    bank = backbones.create_text_bank(cfg.text, names, dim=max(64, 2 * len(names)))
    model = DALNet(cfg, bank).to(device, memory_format=torch.channels_last)
    rates = {"weight_decay": cfg.weight_decay, "multipliers": {"": cfg.head_lr, "net.encoder.": 1}}
    optimizer = torch.optim.AdamW(param_groups(model, lr=cfg.lr, **rates))
    warmup = min(cfg.warmup, cfg.steps - 1)
    schedule = polynomial_schedule(optimizer, total_steps=cfg.steps, warmup_steps=warmup)
    starts = {t: getattr(cfg, f"{t}_start") for t in ("gia", "lea", "seg") if getattr(cfg, t)}
    phases = Phases(starts | {"final": cfg.layer_until})
    step_model = torch.compile(model) if cfg.compile else model
    step_model, optimizer = accelerator.prepare(step_model, optimizer)
    stateful = {"model": model, "optimizer": optimizer, "schedule": schedule}
    described = {"text": bank.source, "num_images": len(scored[0]) if scored else 0}
    network = cli.run_segmenter(cfg, model.net, names, **described) if cfg.seg else None
    checkpoints = cli.Checkpoints(cfg, accelerator, stateful, names=names, segmenter=network)
    cache = {"features": model.net.frozen_maps} if cfg.cache else {}
    steps = cli.TrainingSteps(cfg, dataset, accelerator, start=checkpoints.resume(), cache=cache)
    for step, group in steps:
        step_model.train()
        active, shares, counts = phases.active_at(step - 1), [], None
        if cfg.accumulate > 1:  # the targets come first: they say what the losses divide by
            with accelerator.autocast():
                group = [batch | model.targets(batch, active) for batch in group]
            counts = loss_counts(group, active)
        optimizer.zero_grad()
        for micro, batch in enumerate(group):
            with steps.synchronised(step_model, micro):
                with accelerator.autocast():
                    shares.append(step_model(batch, active, counts))
                accelerator.backward(sum(shares[-1].values()))
        if cfg.clip:
            accelerator.clip_grad_norm_(model.parameters(), cfg.clip)
        optimizer.step()
        schedule.step()
        steps.log(shares)
        checkpoints.save(step)
        if scored and cfg.eval_every and step % cfg.eval_every == 0 and step < cfg.steps:
            accelerator.log(evaluate(cfg, model, device, *scored), step=step)
    return model


@torch.no_grad()
def evaluate(cfg: Config, model: DALNet, device, val, masked, **extra) -> dict[str, float]:
    """Score class maps, pseudo-labels and decoder; write OUTPUT/metrics.json and OUTPUT/figures."""
    model.eval()
    described = {"text": model.bank.source, "num_images": len(val)}
    whole = cli.run_segmenter(cfg, model.net, model.bank.names, **described)
    refine = {"dilations": cfg.dilations, "downsample": cfg.refine_stride, "softmax": False}
    protocol = replace(whole.protocol, threshold=cfg.threshold, threshold_source="preset")
    results = cli.evaluate_system(
        cfg.output, protocol=protocol, class_maps=model.class_maps, pseudo_label=model.pseudo_label,
        maps_protocol=replace(protocol, flip_reduce="max", scale_reduce="sum", **model.views),
        logits=whole if cfg.seg else None, size=cfg.eval_size, val=val, train=masked, extra=extra,
        refiner=PixelAdaptiveRefine(**refine), refine=cfg.refine, device=device, seed=cfg.seed,
    )  # fmt: skip
    if cfg.gia or cfg.lea:
        file = cfg.output / "figures" / "similarity.png"
        row = backbones.outside_text(cfg.text, cfg.outside, bank=model.bank)
        cli.draw_similarity(file, model.similarity, val, model.bank, outside={cfg.outside: row})
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
    wall, cpu = time.perf_counter(), time.process_time()
    model = train(cfg, accelerator, dataset, *scored)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if accelerator.is_main_process:
        save_weights(cfg.output / "model.safetensors", model)
        cli.save_config(cfg.output / "config.json", cfg, names=model.bank.names)
    if cfg.cams != "none":
        seen = {"model": model, "size": cfg.eval_size, "device": device}
        cli.write_train_cams(model.class_maps, dataset, cfg.output / "cams", name=cfg.cams, **seen)
    spent = {"train_seconds": wall, "train_cpu_seconds": cpu}
    results = evaluate(cfg, model, device, *scored, **spent) if cfg.evaluate else {}
    accelerator.end_training()
    return results


if __name__ == "__main__":
    main(cli.parse_config(PRESETS, description=__doc__))
