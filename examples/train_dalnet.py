"""Train DALNet (DIAL, ECCV 2024, https://arxiv.org/abs/2409.15801): image labels in, masks out.

    python examples/train_dalnet.py                                # generated scenes, CPU, minutes
    python examples/train_dalnet.py --data voc --root VOCdevkit    # the paper's recipe, one GPU
    accelerate launch examples/train_dalnet.py --data voc --root VOCdevkit       # several GPUs
    python examples/train_dalnet.py --predict photo.jpg --output runs/dalnet     # use the result

One step: classification on the final and on an intermediate layer, alignment of the global token
with the class names (GIA), alignment of object regions with the class names (LEA), and a decoder
taught by the network's own refined class maps. docs/systems/dalnet.md says what is inferred.
"""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from wsss_blocks import backbones, cam, cli, data, decoders, heads, losses, pooling, training
from wsss_blocks.metrics import EvaluationProtocol
from wsss_blocks.refine import PixelAdaptiveRefine, refine_to_label


@dataclass(frozen=True)
class Config(cli.RunConfig):
    """What DALNet can be told beside the options of every example (:class:`cli.RunConfig`)."""

    output: Path = Path("runs/dalnet")
    steps: int = 1100
    lr: float = 1.5e-3
    # the network
    encoder: str = "small-cnn"  # small-cnn, small-vit, mobilenet, or the name of any timm ViT
    weights: str | None = None  # of the encoder: "pretrained" for timm's, or a safetensors file
    cache: bool = False  # run a frozen encoder once over the images; colours stay as they are
    neck: int = 0  # channels of a trainable 1x1 layer that all heads share; 0 for none
    layer: int | None = 2  # of the object mask (0-based block, or CNN stage); None: the final one
    skip: int | None = 2  # layer that gives the decoder a finer grid
    top_k: float = 0.1  # share of positions that is pooled; 0 pools the maximum, as ToCo does
    hidden: int = 64  # channels of the decoder
    dilation: int = 2
    text: Path | None = None  # a saved TextBank; without one, stand-in vectors
    text_dim: int = 64  # of the stand-in
    # what is learnt, how strongly, and from which step on
    gia: bool = True
    lea: bool = True
    seg: bool = True  # the decoder
    gia_weight: float = 0.2
    lea_weight: float = 0.2
    seg_weight: float = 1.0
    gia_start: int = 0
    lea_start: int = 450
    seg_start: int = 450
    beta: float = 0.5  # background threshold of the object mask
    # pseudo-labels
    source: Literal["classifier", "text", "layer"] = "classifier"  # the map they are made from
    cam_scales: tuple[float, ...] = ()  # (): the class map of the training forward itself
    thresholds: tuple[float, float] = (0.1, 0.15)
    dilations: tuple[int, ...] = (1, 2, 4, 8, 12)  # of the refinement, in its pixels
    refine_stride: int = 2  # image pixels per pixel of the refinement
    label_stride: int = 2  # and per pixel of the pseudo-label, which the decoder's loss has too
    # images and optimisation
    size: int = 96
    square: bool = False  # show the network whole images, squeezed into a square; else crops
    scale: tuple[float, float] = (0.85, 1.2)
    flip: bool = False
    colour: Literal["photometric", "permute"] = "permute"
    head_lr: float = 1.0  # multiplier for all that is not the encoder
    eval_scales: tuple[float, ...] = (1.0,)


VOC = Config(
    data="voc", preset="voc", split="train_aug", weights="pretrained", layer=9, top_k=0.0,
    encoder="vit_base_patch16_224.augreg_in21k_ft_in1k", hidden=512, dilation=5, text_dim=512,
    gia_weight=1.0, lea_weight=1.0, seg_weight=0.1, lea_start=1000, seg_start=2000, label_stride=1,
    thresholds=(0.25, 0.7), cam_scales=(1.0, 0.5, 1.5), dilations=(1, 2, 4, 8, 12, 24), size=448,
    scale=(0.5, 2.0), flip=True, colour="photometric", steps=20_000, batch_size=4, lr=6e-5,
    skip=None, head_lr=10.0, eval_every=2000, eval_scales=(1.0, 1.25, 1.5), warmup=1500, workers=4,
)  # fmt: skip
PRESETS = {
    "scenes": Config(),
    "scenes-vit": Config(preset="scenes-vit", encoder="small-vit", layer=0, skip=None, lr=1e-3,
                         source="layer", steps=1500, lea_start=700, seg_start=700, warmup=100),
    "voc": VOC,
    "voc-small": Config(
        data="voc", preset="voc-small", encoder="mobilenet", neck=512, layer=None, skip=None,
        gia_weight=1.0, lea_weight=1.0, lea_start=100, seg_start=200, steps=500, batch_size=8,
        refine_stride=4, label_stride=4, thresholds=(0.2, 0.4), dilations=(1, 2, 4, 8), top_k=1.0,
        size=384, square=True, scale=(1.0, 1.0), flip=True, cache=True, gia=False, lr=1e-3,
    ),
    "coco": replace(VOC, data="folder", preset="coco", steps=80_000, batch_size=8,
                    lea_start=8000, seg_start=8000, thresholds=(0.25, 0.65)),
    "folder": replace(VOC, data="folder", preset="folder"),
}  # fmt: skip


class DALNet(nn.Module):
    """Encoder, class heads, projection to the text space and decoder, and the losses of a step."""

    def __init__(self, cfg: Config, bank: backbones.TextBank):
        super().__init__()
        self.cfg, self.bank, classes = cfg, bank, len(bank.names)
        self.encoder = backbones.create_encoder(cfg.encoder, weights=cfg.weights)
        dim, dims = cfg.neck or self.encoder.dim, self.encoder.layer_dims
        self.layers = tuple({n for n in (cfg.layer, cfg.skip) if n is not None})
        neck = [nn.Conv2d(self.encoder.dim, dim, 1), nn.ReLU()] if cfg.neck else []
        self.neck = nn.Sequential(*neck)
        pool = partial(pooling.global_top_k_pool, fraction=cfg.top_k) if cfg.top_k else None
        head = partial(heads.ClassHead, pool=pool, pool_at="cam" if cfg.top_k else "features")
        self.head = head(dim, classes)
        self.aux_head = None if cfg.layer is None else head(dims[cfg.layer], classes)
        self.project = heads.ProjectionHead(dim, bank.classes.shape[1])
        self.decoder = decoders.LargeFOV(
            dim,
            classes + 1,
            hidden_dim=cfg.hidden,
            dilation=cfg.dilation,
            skip_dim=dims.get(cfg.skip),
        )
        downsample = max(1, cfg.refine_stride // cfg.label_stride)
        self.refiner = PixelAdaptiveRefine(dilations=cfg.dilations, downsample=downsample)

    def encode(self, images: Tensor, cached: Tensor | None = None):
        if cached is None:
            features = self.encoder(images, layers=self.layers)
        else:
            features = backbones.Features(cached, cached.flatten(2).mT[:, :0], {}, {}, {})
        return self.neck(features.feature_map), features

    def maps(self, x: Tensor, features: backbones.Features) -> tuple[Tensor, ...]:
        """Raw class maps: final classifier, similarity to the texts and, if any, the layer's."""
        text, background = self.bank.classes, self.bank.background
        margin = cam.similarity_cam(self.project(x), text, background=background, mode="margin")
        if self.aux_head is None:
            return self.head(x).cam, margin
        return self.head(x).cam, margin, self.aux_head(features.intermediates[self.cfg.layer]).cam

    def decode(self, x: Tensor, features: backbones.Features) -> Tensor:
        return self.decoder(x, skip=features.intermediates.get(self.cfg.skip))

    def segment(self, images: Tensor) -> Tensor:
        return self.decode(*self.encode(images))

    @torch.no_grad()
    def pseudo_label(self, images: Tensor, labels: Tensor, box: Tensor, encoded=None) -> Tensor:
        maps, cfg = self.maps(*(encoded or self.encode(images))), self.cfg
        if cfg.cam_scales:
            size, maps_of = images.shape[-2:], lambda views: self.maps(*self.encode(views))
            maps = cam.multi_scale_cam(maps_of, images, scales=cfg.cam_scales, size=size)
        chosen = maps[("classifier", "text", "layer").index(cfg.source)]
        scores = cam.normalize_cam(chosen) * labels[:, :, None, None]
        size = [side // cfg.label_stride for side in images.shape[-2:]]
        box = cam.scale_box(box, image_size=images.shape[-2:], size=size)
        images = nn.functional.interpolate(images, size, mode="bilinear")
        return refine_to_label(
            scores, images, labels, self.refiner, thresholds=cfg.thresholds, box=box
        )

    def forward(self, batch: dict[str, Tensor], active: frozenset[str]) -> dict[str, Tensor]:
        cfg, images, labels, box = self.cfg, batch["image"], batch["labels"], batch["box"]
        text, background = self.bank.classes, self.bank.background
        x, features = self.encode(images, batch.get("features"))
        aux = self.head(x)
        terms = {"cls": losses.multi_label_soft_margin_loss(aux.logits, labels)}
        if self.aux_head is not None:
            aux = self.aux_head(features.intermediates[cfg.layer])
            terms["aux"] = losses.multi_label_soft_margin_loss(aux.logits, labels)
        if "gia" in active:
            token = features.global_token if features.class_tokens.shape[1] else x.mean((2, 3))
            terms["gia"] = cfg.gia_weight * losses.global_implicit_alignment_loss(
                self.project(token), labels, text, background, gather_distributed=True
            )
        if "lea" in active:
            size = x.shape[-2:]
            cells = cam.scale_box(box, image_size=images.shape[-2:], size=size)
            mask = cam.cam_to_label(aux.cam, labels, size=size, threshold=cfg.beta, box=cells)
            terms["lea"] = cfg.lea_weight * losses.cross_contrastive_loss(
                self.project(x), mask, labels, text, background, gather_distributed=True
            )
        if "seg" in active:
            pseudo = self.pseudo_label(images, labels, box, (x, features))
            terms["seg"] = cfg.seg_weight * losses.balanced_segmentation_loss(
                self.decode(x, features), pseudo, gather_distributed=True
            )
        return terms


def build_model(cfg: Config, names: tuple[str, ...]) -> DALNet:
    if cfg.text is None:
        return DALNet(cfg, backbones.TextBank.stand_in(names, dim=cfg.text_dim, seed=0))
    return DALNet(cfg, backbones.TextBank.load(cfg.text, names=names))


def train(cfg: Config, accelerator: Accelerator) -> DALNet:
    dataset, device = cli.open_data(cfg, "train"), accelerator.device
    model = build_model(cfg, dataset.names).to(device, memory_format=torch.channels_last)
    rates = {"weight_decay": cfg.weight_decay, "multipliers": {"": cfg.head_lr, "encoder.": 1.0}}
    optimizer = torch.optim.AdamW(training.param_groups(model, lr=cfg.lr, **rates))
    length = {"total_steps": cfg.steps, "warmup_steps": min(cfg.warmup, cfg.steps - 1)}
    schedule = training.polynomial_schedule(optimizer, **length)
    starts = {"gia": cfg.gia_start, "lea": cfg.lea_start, "seg": cfg.seg_start}
    phases = training.Phases({term: start for term, start in starts.items() if getattr(cfg, term)})
    step_model = torch.compile(model) if cfg.compile else model
    step_model, optimizer = accelerator.prepare(step_model, optimizer)
    scaler = {"scaler": accelerator.scaler} if accelerator.scaler else {}
    stateful = {"model": model, "optimizer": optimizer, "schedule": schedule} | scaler
    folder, start = cfg.output / "checkpoint", 0
    if cfg.resume and (folder / "latest.json").exists():
        start = training.load_run_state(folder, stateful=stateful)
    transform = data.training_transform(
        cfg.size, scale=cfg.scale, flip=cfg.flip, colour=cfg.colour, square=cfg.square
    )
    fn, whole = (lambda x: model.encoder(x).feature_map), data.Resize((cfg.size, cfg.size))
    maps = {"features": data.compute_maps(fn, dataset, whole, device=device)} if cfg.cache else None
    loader = data.step_loader(
        dataset, transform, batch_size=cfg.batch_size, steps=cfg.steps, start=start, seed=cfg.seed,
        workers=cfg.workers, maps=maps,
    )  # fmt: skip
    bar = tqdm(loader, initial=start, total=cfg.steps, disable=not accelerator.is_main_process)
    for step, batch in enumerate(bar, start=start + 1):
        step_model.train()
        inputs = {key: batch[key] for key in ("image", "labels", "box")} | batch.get("maps", {})
        inputs = {key: value.to(device) for key, value in inputs.items()}
        with accelerator.autocast():
            terms = step_model(inputs, phases.active_at(step - 1))
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            values = {name: term.item() for name, term in terms.items()}
            accelerator.log({"loss": loss.item(), **values}, step=step)
            bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()})
        if step % cfg.save_every == 0 or step == cfg.steps:
            training.save_run_state(folder, step=step, stateful=stateful)
        if cfg.evaluate and cfg.eval_every and step % cfg.eval_every == 0 and step < cfg.steps:
            accelerator.log(evaluate(cfg, model, device), step=step)
    return model


@torch.no_grad()
def evaluate(cfg: Config, model: DALNet, device: torch.device, **extra: float) -> dict[str, float]:
    """Score class maps, pseudo-labels and decoder; write OUTPUT/metrics.json and OUTPUT/figures."""
    model.eval()
    val, kinds = cli.open_data(cfg, "val", with_masks=True), ("cam", "text_cam", "layer_cam")
    views = {"scales": cfg.cam_scales or (1.0,), "flip": bool(cfg.cam_scales)}

    def class_maps(images: Tensor) -> dict[str, Tensor]:
        found = cam.multi_scale_cam(lambda x: model.maps(*model.encode(x)), images, **views)
        return dict(zip(kinds, found, strict=False))

    protocol = EvaluationProtocol(
        dataset=cfg.data, split="val", num_images=len(val), scales=cfg.eval_scales, flip=cfg.flip,
        refiner="none", labels_used=False, threshold=cfg.threshold, threshold_source="preset",
        text=model.bank.source, size_policy=f"{cfg.size} square" if cfg.square else "resize",
    )  # fmt: skip
    seg_fn = partial(decoders.multi_scale_logits, scales=cfg.eval_scales, flip=cfg.flip)
    refiner = PixelAdaptiveRefine(
        dilations=cfg.dilations, downsample=cfg.refine_stride, softmax=False
    )
    maps_protocol = replace(protocol, flip_reduce="max", scale_reduce="sum", **views)
    return cli.evaluate_system(
        cfg.output, protocol=protocol, maps_protocol=maps_protocol, val=val,
        train=cli.open_data(cfg, "train", with_masks=True), class_maps=class_maps,
        pseudo_label=model.pseudo_label, logits=partial(seg_fn, model.segment) if cfg.seg else None,
        refiner=refiner, size=cfg.size if cfg.square else None, train_images=cfg.eval_images,
        device=device, seed=cfg.seed, extra=extra,
    )  # fmt: skip


def main(cfg: Config) -> dict[str, float]:
    """Train, evaluate and return the results; or segment ``cfg.predict``."""
    accelerator = cli.start_run(cfg)
    device, config = accelerator.device, cfg.output / "config.json"
    if cfg.predict:
        saved, extra = cli.load_config(config, like=cfg)
        model = build_model(replace(saved, weights=None), tuple(extra["names"])).to(device).eval()
        training.load_weights(cfg.output / "model.safetensors", model)
        folder = cfg.output / "predictions"
        cli.segment_files(model.segment, cfg.predict, output=folder, device=device)
        return {}
    wall, cpu = time.perf_counter(), time.process_time()
    model = train(cfg, accelerator)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if accelerator.is_main_process:
        training.save_weights(cfg.output / "model.safetensors", model)
        cli.save_config(config, cfg, names=model.bank.names)
    spent = {"train_seconds": wall, "train_cpu_seconds": cpu}
    results = evaluate(cfg, model, device, **spent) if cfg.evaluate else {}
    accelerator.end_training()
    return results


if __name__ == "__main__":
    main(cli.parse_config(PRESETS, description=__doc__))
