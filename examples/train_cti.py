"""Train CTI (CVPR 2024) or MCTformer (arXiv 2203.02891): image labels in, masks out.

    python examples/train_cti.py                                  # generated scenes, CPU, minutes
    python examples/train_cti.py --method mctformer-plus          # or mctformer-v1, -v2, bgt
    python examples/train_cti.py --data voc --root VOCdevkit      # the paper's recipe, one GPU
    accelerate launch examples/train_cti.py --data voc --root VOCdevkit          # several GPUs
    python examples/train_dhr.py --masks runs/cti/pseudo_labels   # a network taught by the masks

A transformer has one token per class, and in CTI one for the background. What the tokens look at,
times what the patches say, are the class maps; CTI asks them to stay the same when the tokens are
mixed with those of another view or of other images. docs/systems/cti.md says what is inferred.
"""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from wsss_blocks import (
    backbones,
    cam,
    cli,
    data,
    heads,
    losses,
    memory,
    pooling,
    refine,
)
from wsss_blocks.training import Phases, param_groups, save_weights


@dataclass(frozen=True)
class Method:
    """What a system is assembled from; systems differ in nothing else."""

    fuse: Literal["product", "sqrt", "attention"] = "product"
    last: int | None = None  # blocks whose attention makes the class maps; None: all
    pool: Literal["average", "rank"] = "average"  # of the patch scores
    contrast: bool = False  # between the class tokens of an image
    generator: bool = False  # class tokens come from a perceptron
    token: bool = False  # one for the background
    views: int = 1  # of each image, classified in each step
    losses: tuple[str, ...] = ()  # of CTI: background, intra, cross


MAPS = ("seed", "cam", "attention", "fused", "spread", "stem")  # without a classifier, no stem
CTI = Method(generator=True, token=True, views=2, losses=("background", "intra", "cross"))
METHODS = {
    "mctformer-v1": Method(fuse="attention", last=3),
    "mctformer-v2": Method(last=3),
    "mctformer-plus": Method(fuse="sqrt", pool="rank", contrast=True),
    # the rungs of CTI's ladder
    "baseline": replace(CTI, token=False, losses=()),
    "tokenless": replace(CTI, token=False, losses=("background",)),
    "bgt": replace(CTI, losses=("background",)),
    "intra": replace(CTI, losses=("background", "intra")),
    "cti": CTI,
}


@dataclass(frozen=True)
class Config(cli.RunConfig):
    """What CTI can be told beside the options of every example (:class:`cli.RunConfig`)."""

    output: Path = Path("runs/cti")
    refine: Literal["none", "crf"] = "none"
    encoder: str = "small-vit"  # or the name of a timm ViT, or a CNN below a small transformer
    method: Literal["mctformer-v1", "mctformer-v2", "mctformer-plus", "baseline", "tokenless",
                    "bgt", "intra", "cti"] = "cti"  # fmt: skip
    steps: int = 1150
    scale: tuple[float, float] = (1.0, 1.2)
    weight_decay: float = 0.05
    min_lr: float = 0.0  # of the cosine
    clip: float = 5.0  # norm of the gradient; 0: as it is
    crop: Literal["shift", "resized"] = "shift"  # resized: by area and ratio, as ImageNet's
    rand_augment: bool = False  # of the second view, or of the only one
    # the class maps
    stem: bool = True  # a classifier on the patches themselves, below the transformer
    stem_steps: int = 700  # in which nothing else learns
    top_k: float = 0.1  # share of the patches that is pooled; 1: all of them
    propagate: bool = False  # by the affinity of the patches, in the class maps
    infuse_layer: int = 0  # behind which class tokens are mixed
    background_last: int = 3  # blocks whose attention the background loss takes
    background_spread: bool = True  # its maps are propagated by the affinity of the patches first
    background_weight: float = 0.1
    infusion_weight: float = 1.0
    background_start: int = 800
    infusion_start: int = 800
    detach: bool = False  # the class maps inside of the background loss
    mask_absent: bool = True  # compare the maps of present classes only
    bank: int = 30  # tokens per class
    # the masks
    threshold: float = 0.1  # of the background
    walk: Literal["none", "psa", "irn"] = "none"  # how scores spread before the masks are made
    walk_start: int = 1000  # step from which on affinities are learnt
    walk_labels: tuple[float, float] = (0.05, 0.3)  # backgrounds below and above which one is sure
    masks: bool = True  # write those of all training images to OUTPUT/pseudo_labels
    # keep these class maps of all training images in OUTPUT/cams
    cams: Literal["none", "seed", "cam", "attention", "fused", "spread", "stem"] = "none"


VOC = Config(
    data="voc", preset="voc", split="train_aug", encoder="deit_small_patch16_224",
    weights="pretrained", stem=False, stem_steps=0, top_k=1.0, propagate=True, infuse_layer=3,
    background_last=6, background_start=0, infusion_start=0, mask_absent=False, steps=9900,
    batch_size=64, size=224, crop="resized", scale=(0.3, 1.2), flip=True, colour="none",
    rand_augment=True, lr=6.25e-5, min_lr=1e-5, warmup=825, clip=0.0, threshold=0.4,
    walk_start=8000, workers=4, save_every=1000,
)  # fmt: skip
SMALL = Config(
    data="voc", preset="voc-small", encoder="mobilenet", cache=True, size=256, square=True,
    scale=(1.0, 1.0), flip=True, stem_steps=60, steps=300, batch_size=8, top_k=1.0,
    background_start=140, infusion_start=140, walk_start=240, eval_size=256, threshold=0.3,
)  # fmt: skip
PRESETS = {
    "scenes": Config(),
    "voc": VOC,
    "coco": replace(VOC, data="coco", preset="coco", steps=19_400, background_start=2588,
                    infusion_start=2588, infusion_weight=0.1, detach=True, warmup=6470),
    "voc-small": SMALL,
    "coco-small": replace(SMALL, data="coco", preset="coco-small"),
    "folder": replace(VOC, data="folder", preset="folder"),
    "folder-small": replace(SMALL, data="folder", preset="folder-small",
                            encoder="mobilenetv1_100", weights="pretrained"),
}  # fmt: skip
CODE = "CTI, released code"
PAPER = dict.fromkeys((
    "encoder", "weights", "infuse_layer", "background_last", "background_weight",
    "infusion_weight", "background_start", "infusion_start", "detach", "mask_absent", "bank",
    "batch_size", "size", "scale", "flip", "rand_augment", "lr", "min_lr", "warmup", "steps",
    "weight_decay", "propagate", "background_spread",
), CODE) | {"": "ours"}  # fmt: skip
SOURCES = {"voc": PAPER, "coco": PAPER, "folder": PAPER}


class CTISystem(nn.Module):
    """Transformer with class tokens, its heads and token bank; class maps and losses of a step."""

    def __init__(self, cfg: Config, names: tuple[str, ...]):
        super().__init__()
        self.cfg, self.method, classes = cfg, METHODS[cfg.method], len(names)
        self.encoder = backbones.create_token_encoder(
            cfg.encoder, classes, weights=cfg.weights, background=self.method.token,
            generator=self.method.generator,
        )  # fmt: skip
        dim, depth = self.encoder.dim, len(self.encoder.layer_dims)
        top = pooling.global_average_pool
        if cfg.top_k < 1:
            top = partial(pooling.global_top_k_pool, fraction=cfg.top_k)
        pool = pooling.global_weighted_rank_pool if self.method.pool == "rank" else top
        # Without its token the background still has a map: that of the patches alone (inferred).
        self.has_background = "background" in self.method.losses
        self.head = heads.PatchCAMHead(dim, classes, background=self.has_background, pool=pool)
        stem = partial(heads.ClassHead, pool=top, pool_at="cam")
        self.stem_head = stem(dim, classes) if cfg.stem else None
        self.bank = memory.ClassTokenBank(classes, dim, size=cfg.bank, gather_distributed=True)
        self.layers = {
            "all": range(depth),
            "maps": range(depth)[-self.method.last :] if self.method.last else range(depth),
            "background": range(depth)[-cfg.background_last :],
            "later": range(cfg.infuse_layer + 1, depth),
        }
        self.walk = None if cfg.walk == "none" else refine.LearntWalk(dim, kind=cfg.walk)

    def patches(self, batch: dict[str, Tensor], view: str = "") -> Tensor:
        if (cached := batch.get(f"{view}features")) is not None:
            return self.encoder.model.patch_embed.proj.project(cached)
        return self.encoder.embed(batch[f"{view}image"])

    def frozen_maps(self, images: Tensor) -> Tensor:
        """What the frozen CNN below the transformer makes of images, to be cached."""
        return self.encoder.model.patch_embed.proj.encoder(images).feature_map

    def attention(self, features: backbones.Features, layers) -> Tensor:
        """What the class tokens look at ``(B, n, h, w)``."""
        return cam.class_to_patch_attention(
            features.attention, num_class_tokens=self.encoder.num_class_tokens,
            grid=tuple(features.feature_map.shape[-2:]), layers=layers,
        )  # fmt: skip

    def classify(self, features: backbones.Features, inside: Tensor | None = None):
        """Logits of tokens and of patches, and the raw maps of the patches."""
        tokens = heads.class_token_logits(features.class_tokens, background=self.method.token)
        return tokens, *self.head(features.feature_map, valid=inside)

    def maps(self, patches: Tensor) -> dict[str, Tensor]:
        """Class maps by their names, those of this method first."""
        features = self.encoder.encode_patches(patches, attention_layers=self.layers["all"])
        scores = self.head(features.feature_map).cam[:, int(self.has_background) :]
        looked = self.attention(features, self.layers["maps"])[:, int(self.method.token) :]
        fused = cam.fuse_cams(looked, scores, mode=self.method.fuse)
        spread = refine.attention_affinity_refine(fused, features.attention)
        found = {"seed": spread if self.cfg.propagate else fused, "cam": scores.relu()}
        found |= {"attention": looked, "fused": fused, "spread": spread}
        if self.stem_head is not None:
            found["stem"] = self.stem_head(patches).cam.relu()
        return found

    def class_maps(self, images: Tensor, _: Tensor | None = None) -> dict[str, Tensor]:
        """The same of images and, with ``flip``, their mirror images."""

        def maps(x: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.maps(self.patches({"image": x})).values())

        views = {"scales": self.cfg.eval_scales, "flip": self.cfg.flip, "flip_reduce": "sum"}
        return dict(zip(MAPS, cam.multi_scale_cam(maps, images, **views), strict=False))

    def tokens(self, images: Tensor) -> dict[str, Tensor]:
        """Tokens of the classes ``(B, K, D)`` behind each block."""
        patches, layers = self.patches({"image": images}), self.layers["all"]
        found = self.encoder.encode_patches(patches, layers=layers).class_tokens_at
        return {f"block {i + 1}": x[:, int(self.method.token) :] for i, x in found.items()}

    def background_maps(self, features: backbones.Features, scores: Tensor, labels: Tensor):
        """The maps that the background loss compares: of the classes, and of the background."""
        inside = scores.detach() if self.cfg.detach else scores
        looked, own = self.attention(features, self.layers["background"]), scores[:, :1]
        fused = cam.fuse_cams(looked[:, int(self.method.token) :], inside[:, 1:])
        if self.method.token:
            own = cam.fuse_cams(looked[:, :1], own)
        both = torch.cat([cam.foreground_map(fused, labels), own.relu()], 1)
        if self.cfg.background_spread:
            later = {"layers": self.layers["later"]}
            both = refine.attention_affinity_refine(both, features.attention, **later)
        return both.split(1, 1)

    def pseudo_label(self, images: Tensor, labels: Tensor, box: Tensor) -> Tensor:
        """Masks of whole images, of the size of the images."""
        scores = cam.normalize_cam(self.class_maps(images)["seed"]) * labels[:, :, None, None]
        if self.walk is not None:
            features = self.encoder.encode_patches(self.patches({"image": images})).feature_map
            scores = cam.normalize_cam(self.walk(scores, features)) * labels[:, :, None, None]
        scores = F.interpolate(scores, images.shape[-2:], mode="bilinear")
        options = {"thresholds": (self.cfg.threshold,) * 2, "box": box}
        return refine.refine_to_label(scores, images, labels, refine.NoRefiner(), **options)

    def affinity_loss(self, patches: Tensor, features: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Affinities of the patches against those of confident seeds."""
        labels, size = batch["labels"], tuple(patches.shape[-2:])
        with torch.no_grad():
            scores = cam.normalize_cam(self.maps(patches)["seed"]) * labels[:, :, None, None]
            box = cam.scale_box(batch["box"], image_size=batch["image"].shape[-2:], size=size)
            images = F.interpolate(batch["image"], size, mode="area")
            options = {"thresholds": self.cfg.walk_labels, "box": box}
            sure = refine.refine_to_label(scores, images, labels, refine.NoRefiner(), **options)
        pairs = self.walk.pairs(sure, size=size)
        return losses.affinity_loss(self.walk.affinity(features), pairs, gather_distributed=True)

    def forward(self, batch, active: frozenset[str], counts=None) -> dict[str, Tensor]:
        """Losses; with ``counts`` this batch's share in those of the step."""
        cfg, method, labels, box = self.cfg, self.method, batch["labels"], batch["box"]
        patches, size = self.patches(batch), {"image_size": tuple(batch["image"].shape[-2:])}
        inside = cam.box_to_valid(box, **size, size=tuple(patches.shape[-2:]))
        margin, terms = losses.multi_label_soft_margin_loss, {}

        def share(term: str) -> dict[str, object]:
            return {"counts": (counts or {}).get(term), "gather_distributed": True}

        if self.stem_head is not None:
            found = margin(self.stem_head(patches, valid=inside).logits, labels)
            terms["stem"] = found / cfg.accumulate
        if "tokens" not in active:
            return terms
        mixed, at = active & {"intra", "cross"}, (cfg.infuse_layer,)
        kinds = ("background", "later") if "background" in active else ()
        asked = {layer for kind in kinds for layer in self.layers[kind]}
        tapped = self.layers["all"] if method.contrast else at if mixed else ()
        first = self.encoder.encode_patches(patches, layers=tapped, attention_layers=sorted(asked))
        token_logits, logits, scores = self.classify(first, inside)
        cls = margin(token_logits, labels)
        if method.fuse != "attention":
            cls = cls + margin(logits, labels)
        if method.views == 2:
            second = self.encoder.encode_patches(self.patches(batch, "second_"), layers=at)
            shown = cam.box_to_valid(batch["second_box"], **size, size=inside.shape[-2:])
            token_logits, logits, _ = self.classify(second, shown)
            cls = cls + margin(token_logits, labels) + margin(logits, labels)
        terms["cls"] = cls / cfg.accumulate
        if method.contrast:
            tokens = torch.stack([first.class_tokens_at[i] for i in self.layers["all"]])
            found = losses.class_token_contrast_loss(tokens, labels, **share("contrast"))
            terms["contrast"] = found
        if "background" in active:
            pair = self.background_maps(first, scores, labels)
            options = {"labels": labels, **share("background")}
            found = losses.background_consistency_loss(*pair, **options)
            terms["background"] = cfg.background_weight * found
        if "intra" in active:
            given = second.class_tokens_at[cfg.infuse_layer]
            infuse = partial(heads.infuse_class_tokens, source=given)
            again = self.encoder.continue_from(first, *at, infuse=infuse)
            other = self.head(again.feature_map).cam
            options = share("intra") | ({"labels": labels} if cfg.mask_absent else {})
            found = losses.cam_consistency_loss(scores, other, **options)
            terms["intra"] = cfg.infusion_weight * found
        if "cross" in active:
            terms["cross"] = cfg.infusion_weight * self.cross(first, scores, labels)
        if self.walk is not None and "walk" in active:
            found = self.affinity_loss(patches, first.feature_map, batch)
            terms["walk"] = found / cfg.accumulate
        return terms

    def cross(self, first: backbones.Features, scores: Tensor, labels: Tensor) -> Tensor:
        """Cross-image infusion: the same maps with the class tokens of other images."""
        layer, token, bg = self.cfg.infuse_layer, int(self.method.token), int(self.has_background)
        self.bank.push(first.class_tokens_at[layer][:, token:], labels)
        given = self.bank.prototypes()
        known = labels * given.valid  # the classes of which the bank holds enough
        again = self.encoder.continue_from(
            first, layer, attention_layers=self.layers["later"],
            infuse=partial(heads.infuse_class_tokens, source=given.tokens, labels=known),
        )  # fmt: skip
        looked = self.attention(again, self.layers["later"])[:, token:]
        other = cam.fuse_cams(looked, self.head(again.feature_map).cam[:, bg:])
        share = {"gather_distributed": True} | ({"labels": known} if self.cfg.mask_absent else {})
        found = losses.cam_consistency_loss(scores[:, bg:], other, **share) / self.cfg.accumulate
        return found if self.cfg.mask_absent else found * given.valid.all()


def loss_counts(cfg: Config, group: list[dict[str, Tensor]], channels: int) -> dict[str, Tensor]:
    """What the losses of a step divide by, summed over its micro-batches."""
    background = channels > group[0]["labels"].shape[1]

    def maps(labels: Tensor) -> Tensor:
        kept = labels if cfg.mask_absent else torch.ones_like(labels)
        return losses.cam_consistency_counts(kept, background=background)

    counted = {
        "contrast": losses.class_token_contrast_counts,
        "background": losses.background_consistency_counts,
        "intra": maps,
    }
    return {name: sum(count(b["labels"]) for b in group) for name, count in counted.items()}


def augmentation(cfg: Config, views: int) -> data.Transform:
    """Both views are drawn independently; RandAugment changes the last one alone."""
    plain = data.training_transform(
        cfg.size, scale=cfg.scale, flip=cfg.flip, colour=cfg.colour, square=cfg.square
    )
    if cfg.crop == "resized":
        crop = data.RandomResizedCrop(cfg.size, scale=cfg.scale)
        plain = data.Compose(crop, data.RandomHorizontalFlip())
    strong = data.Compose(plain, data.RandAugment()) if cfg.rand_augment else plain
    return data.Compose(data.AddView("second", strong), plain) if views == 2 else strong


def train(cfg: Config, accelerator: Accelerator, dataset, *scored) -> CTISystem:
    device = accelerator.device
    model = CTISystem(cfg, dataset.names).to(device)
    optimizer = torch.optim.AdamW(param_groups(model, lr=cfg.lr, weight_decay=cfg.weight_decay))
    warmup = min(cfg.warmup, cfg.steps - 1)
    rising = LinearLR(optimizer, 1e-2, total_iters=warmup)
    falling = CosineAnnealingLR(optimizer, cfg.steps - warmup, eta_min=cfg.min_lr)
    schedule = SequentialLR(optimizer, [rising, falling], [warmup])
    starts = {"background": cfg.background_start, "intra": cfg.infusion_start}
    starts = {name: starts.get(name, cfg.infusion_start) for name in model.method.losses}
    tokens = cfg.stem_steps if cfg.stem else 0
    phases = Phases(starts | {"tokens": tokens, "walk": cfg.walk_start})
    step_model = torch.compile(model) if cfg.compile else model
    step_model, optimizer = accelerator.prepare(step_model, optimizer)
    stateful = {"model": model, "optimizer": optimizer, "schedule": schedule}
    checkpoints = cli.Checkpoints(cfg, accelerator, stateful, names=dataset.names)
    steps = cli.TrainingSteps(
        cfg, dataset, accelerator, start=checkpoints.resume(),
        transform=augmentation(cfg, model.method.views),
        cache={"features": model.frozen_maps} if cfg.cache else {},
    )  # fmt: skip
    for step, group in steps:
        step_model.train()
        active, shares, counts = phases.active_at(step - 1), [], None
        if cfg.accumulate > 1:
            counts = loss_counts(cfg, group, len(model.head.bias))
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
def evaluate(cfg: Config, model: CTISystem, device, val, masked, **extra) -> dict[str, float]:
    """Score classifiers, class maps and masks; write OUTPUT/metrics.json and OUTPUT/figures."""
    model.eval()
    protocol = replace(
        cli.run_protocol(cfg, num_images=len(val)), flip_reduce="sum", scale_reduce="sum",
        labels_used=True, threshold=cfg.threshold, threshold_source="preset",
    )  # fmt: skip

    def class_scores(images: Tensor) -> dict[str, Tensor]:
        patches = model.patches({"image": images})
        tokens, logits, _ = model.classify(model.encoder.encode_patches(patches))
        found = {"token": tokens, "patch": logits}
        if model.stem_head is not None:
            found["stem"] = model.stem_head(patches).logits
        return found

    def background(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        asked = {"attention_layers": model.layers["all"]}
        features = model.encoder.encode_patches(model.patches(batch), **asked)
        scores = model.head(features.feature_map).cam
        pair = model.background_maps(features, scores, batch["labels"])
        return dict(zip(("classes", "background"), pair, strict=True))

    figures, seen = cfg.output / "figures", {"size": cfg.eval_size, "device": device}
    cli.draw_class_tokens(figures / "class_tokens.png", model.tokens, val, **seen)
    if model.has_background:
        cli.draw_maps(figures / "background.png", background, val, **seen)
    return cli.evaluate_system(
        cfg.output, class_maps=model.class_maps, logits=None,
        pseudo_label=model.pseudo_label, class_scores=class_scores, val=val, train=masked,
        protocol=protocol, size=cfg.eval_size, refiner=refine.NoRefiner(), refine=cfg.refine,
        device=device, seed=cfg.seed, extra=extra,
    )  # fmt: skip


def main(cfg: Config) -> dict[str, float]:
    """Train, write the masks, evaluate and return the results."""
    if cfg.predict:
        raise SystemExit("no network for photographs without labels: examples/train_segmenter.py.")
    accelerator = cli.start_run(cfg)
    device = accelerator.device
    if found := SOURCES.get(cfg.preset):
        accelerator.print(cli.describe_recipe(cfg, PRESETS[cfg.preset], sources=found))
    dataset, *scored = cli.open_splits(cfg)
    wall, cpu = time.perf_counter(), time.process_time()
    model = train(cfg, accelerator, dataset, *scored)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if accelerator.is_main_process:
        save_weights(cfg.output / "model.safetensors", model)
        cli.save_config(cfg.output / "config.json", cfg, names=dataset.names)
    seen = {"size": cfg.eval_size, "device": device}
    if cfg.cams != "none":
        kept = {"name": cfg.cams, "model": model, **seen}
        cli.write_train_cams(model.class_maps, dataset, cfg.output / "cams", **kept)
    if cfg.masks:
        mask = partial(cli.whole_mask, model.eval().pseudo_label, **seen)
        cli.write_train_masks(mask, dataset, cfg.output / "pseudo_labels")
    spent = {"train_seconds": wall, "train_cpu_seconds": cpu}
    results = evaluate(cfg, model, device, *scored, **spent) if scored else {}
    accelerator.end_training()
    return results


if __name__ == "__main__":
    main(cli.parse_config(PRESETS, description=__doc__))
