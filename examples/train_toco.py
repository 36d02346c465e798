"""Train ToCo (CVPR 2023, https://arxiv.org/abs/2303.01267): image labels in, masks out.

    python examples/train_toco.py                                # generated scenes, CPU
    accelerate launch examples/train_toco.py --data voc --root VOCdevkit   # the paper's recipe

Class maps of an earlier layer say which patch tokens belong together (PTC) and which crops show no
object, for their class tokens (CTC). Refined maps teach the decoder; an energy finds the edges.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from wsss_blocks import cam, cli, data, heads, losses, memory, pooling, refine, segmenters, training


@dataclass(frozen=True)
class Config(cli.RunConfig):
    """What ToCo can be told beside the options of every example (:class:`cli.RunConfig`)."""

    output: Path = Path("runs/toco")
    head_lr: float = 1.0  # multiplier of the learning rate for all that is not the encoder
    layer: int = -3  # block of the earlier classifier
    top_k: float = 0.1  # share of the patches that is pooled; 0 pools the maximum, as in the paper
    decoder: tuple[int, int] = (64, 2)  # hidden channels, dilation
    ptc_weight: float = 0.2
    ctc_weight: float = 0.5
    seg_weight: float = 0.1
    energy_weight: float = 0.05
    contrast_start: int = 700  # step, of PTC and CTC
    seg_start: int = 700  # and of the energy
    temperature: float = 0.5  # of CTC
    crops: tuple[int, int] = (4, 32)  # of CTC: how many per image, and their side
    layer_until: int = 1500  # up to this step the earlier layer's map makes the pseudo-labels
    cam_scales: tuple[float, ...] = (1.0,)
    thresholds: tuple[float, float] = (0.25, 0.7)  # of regions and crops
    refined: tuple[float, float] = (0.1, 0.15)  # of the pseudo-labels, behind the refinement


VOC = Config(
    data="voc", preset="voc", split="train_aug", weights="pretrained", decoder=(512, 5), top_k=0.0,
    encoder="vit_base_patch16_224.augreg_in21k_ft_in1k", contrast_start=0, seg_start=2000,
    crops=(8, 96), layer_until=0, cam_scales=(1.0, 0.5, 1.5), size=448, scale=(0.5, 2.0), flip=True,
    colour="photometric", steps=20_000, batch_size=4, lr=6e-5, head_lr=10.0, warmup=1500, workers=4,
    eval_scales=(1.0, 1.25, 1.5), eval_fuse=("mean", "max"), threshold=0.5, refined=(0.25, 0.7),
)  # fmt: skip
PRESETS = {"scenes": Config(encoder="small-vit", steps=1500, warmup=100), "voc": VOC} | {
    "coco": replace(VOC, data="coco", preset="coco", steps=80_000, batch_size=8, temperature=1.0,
                    seg_start=8000, contrast_start=12_000, layer_until=12_000, eval_size=448,
                    thresholds=(0.25, 0.65), refined=(0.25, 0.65), eval_fuse=("max", "max"),
                    threshold=0.45),
}  # fmt: skip
CODE = {"": "ToCo, released code, as far as known", "encoder": "inferred: which file of weights"}
SOURCES = {"voc": CODE | {"contrast_start": "inferred"}, "coco": CODE, "scenes": {"": "ours"}}


class ToCo(nn.Module):
    """Network, class heads and token head with its teacher; targets and losses of a batch."""

    def __init__(self, cfg: Config, classes: int):
        super().__init__()
        self.cfg, sizes = cfg, dict(zip(("hidden_dim", "dilation"), cfg.decoder, strict=True))
        sizes |= {"num_classes": classes + 1}
        self.net = segmenters.SegmentationNetwork(cfg.encoder, weights=cfg.weights, **sizes)
        self.layer = list(self.net.encoder.layer_dims)[cfg.layer]
        pool = partial(pooling.global_top_k_pool, fraction=cfg.top_k) if cfg.top_k else None
        head = partial(heads.ClassHead, pool=pool, pool_at="cam" if cfg.top_k else "features")
        self.head, self.aux_head = (head(self.net.dim, classes) for _ in range(2))
        self.project, self.refiner = heads.DINOHead(self.net.dim), refine.PixelAdaptiveRefine()
        self.teacher = memory.EMA(self.project, decay=0.9)
        self.contrast = losses.CropTokenContrastLoss(temperature=cfg.temperature)

    def classify(self, images: Tensor):
        x, features = self.net.encode(images, layers=(self.layer,))
        return x, features, self.head(x), self.aux_head(features.intermediates[self.layer])

    @torch.no_grad()
    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:  # of the final and the earlier layer
        cams = lambda view: tuple(found.cam for found in self.classify(view)[2:])  # noqa: E731
        return cam.multi_scale_cam(cams, images, scales=self.cfg.cam_scales)

    def pseudo_label(self, images, labels, box, maps=None) -> Tensor:
        maps = self.maps(images)[self.cfg.layer_until >= self.cfg.steps] if maps is None else maps
        scores = cam.normalize_cam(maps) * labels[:, :, None, None]
        options = {"thresholds": self.cfg.refined, "box": box}
        return refine.refine_to_label(scores, images, labels, self.refiner, **options)

    def targets(self, batch: dict[str, Tensor], active: frozenset[str], first: int) -> dict:
        """What the network teaches itself; crops by their image's number, from ``first`` on."""
        cfg, (images, labels, box) = self.cfg, (batch[key] for key in ("image", "labels", "box"))
        (final, earlier), size = self.maps(images), images.shape[-2:]
        whole = cam.cam_to_label(earlier, labels, size=size, threshold=cfg.thresholds, box=box)
        grid = [-(-side // self.net.encoder.stride) for side in size]
        regions = nn.functional.interpolate(whole[:, None].float(), grid)[:, 0].long()
        drawn = [torch.Generator().manual_seed(cfg.seed + first + i) for i in range(len(images))]
        cut = {"number": cfg.crops[0], "size": cfg.crops[1], "generator": drawn}
        crops, _, positive = cam.negative_crops(images, whole, box=box, **cut)
        pseudo = self.pseudo_label(images, labels, box, final if "final" in active else earlier)
        return {"regions": regions, "crops": crops, "positive": positive, "pseudo": pseudo}

    def token_contrast(self, token: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """CTC of two views, by the teacher, with the same two and the crops, by the student."""
        second = self.net.encode(batch["second_image"])[1].global_token
        local = self.net.encode(batch["crops"].flatten(0, 1))[1].global_token
        views = torch.stack([token, second], 1)
        tokens = torch.cat([views, local.unflatten(0, (len(views), -1))], 1)
        positive = torch.cat([batch["positive"].new_ones(len(views), 2), batch["positive"]], 1)
        return self.contrast(self.project(tokens), self.teacher(views.detach()), positive)

    def forward(self, batch, active: frozenset[str], pairs=None, pixels=None) -> dict[str, Tensor]:
        """The share of a batch with its targets in the losses of the step, by the counts of it."""
        cfg, labels, every = self.cfg, batch["labels"], {"gather_distributed": True}
        x, features, final, earlier = self.classify(batch["image"])
        margin, terms = losses.multi_label_soft_margin_loss, {}
        means = {"cls": margin(final.logits, labels), "aux": margin(earlier.logits, labels)}
        if "contrast" in active:
            ptc = losses.patch_token_contrast_loss(x, batch["regions"], counts=pairs, **every)
            ctc = self.token_contrast(features.global_token, batch)
            terms["ptc"], means["ctc"] = cfg.ptc_weight * ptc, cfg.ctc_weight * ctc
        if "seg" in active:
            logits, mask = self.net.decode(x, features), batch["pseudo"]
            seg = losses.balanced_segmentation_loss(logits, mask, counts=pixels, **every)
            energy = losses.dense_energy_loss(logits, batch["image"], mask=mask, box=batch["box"])
            terms["seg"], means["energy"] = cfg.seg_weight * seg, cfg.energy_weight * energy
        return terms | {name: mean / cfg.accumulate for name, mean in means.items()}  # of images


def train(cfg: Config, accelerator: Accelerator, dataset) -> ToCo:
    model = ToCo(cfg, len(dataset.names)).to(accelerator.device)
    rates = {"weight_decay": cfg.weight_decay, "multipliers": {"": cfg.head_lr, "net.encoder.": 1}}
    optimizer = torch.optim.AdamW(training.param_groups(model, lr=cfg.lr, **rates))
    warmup = min(cfg.warmup, cfg.steps - 1)
    schedule = training.polynomial_schedule(optimizer, total_steps=cfg.steps, warmup_steps=warmup)
    starts = {"contrast": cfg.contrast_start, "seg": cfg.seg_start, "final": cfg.layer_until}
    phases, change = training.Phases(starts), {"flip": cfg.flip, "colour": cfg.colour}
    step_model = torch.compile(model) if cfg.compile else model
    step_model, optimizer = accelerator.prepare(step_model, optimizer)
    stateful = {"model": model, "optimizer": optimizer, "schedule": schedule}
    kept = {"names": dataset.names, "segmenter": cli.run_segmenter(cfg, model.net, dataset.names)}
    checkpoints = cli.Checkpoints(cfg, accelerator, stateful, **kept)
    first = data.training_transform(cfg.size, scale=cfg.scale, **change)
    second = data.training_transform(cfg.size, scale=(1.0, 1.0), **change)
    second = data.Compose(data.RandomResizedCrop(cfg.size, scale=(0.4, 1.0)), second)
    options = {"transform": data.Compose(data.AddView("second", second), first)}
    steps = cli.TrainingSteps(cfg, dataset, accelerator, start=checkpoints.resume(), **options)
    for step, group in steps:
        active, shares = phases.active_at(step - 1), []
        step_model.train()
        taught = group if active & {"contrast", "seg"} else []
        with accelerator.autocast():  # all targets first: they say what the losses divide by
            for number, batch in enumerate(taught, (step - 1) * cfg.accumulate):
                place = number * accelerator.num_processes + accelerator.process_index
                batch |= model.targets(batch, active, place * cfg.batch_size)
        pairs = sum(losses.patch_token_contrast_counts(batch["regions"]) for batch in taught)
        pixels = sum(losses.balanced_segmentation_counts(batch["pseudo"]) for batch in taught)
        optimizer.zero_grad()
        for micro, batch in enumerate(group):
            with steps.synchronised(step_model, micro):
                with accelerator.autocast():
                    shares.append(step_model(batch, active, pairs, pixels))
                accelerator.backward(sum(shares[-1].values()))
        optimizer.step()
        schedule.step()
        model.teacher.update(model.project)
        steps.log(shares)
        checkpoints.save(step)
    return model.eval()


def main(cfg: Config) -> dict[str, float]:
    """Train, evaluate and return the results; or segment ``cfg.predict``."""
    accelerator = cli.start_run(cfg)
    if cfg.predict:
        return cli.segment_predicted(cfg, device=accelerator.device)
    accelerator.print(cli.describe_recipe(cfg, PRESETS[cfg.preset], sources=SOURCES[cfg.preset]))
    dataset, *scored = cli.open_splits(cfg)
    model, results = train(cfg, accelerator, dataset), {}
    if accelerator.is_main_process:
        cli.save_config(cfg.output / "config.json", cfg, names=dataset.names)
    if cfg.evaluate:
        whole = cli.run_segmenter(cfg, model.net, dataset.names, num_images=len(scored[0]))
        plain = replace(whole.protocol, threshold=cfg.threshold, threshold_source="preset")
        view = {"scales": cfg.cam_scales, "flip": True, "flip_reduce": "max", "scale_reduce": "sum"}
        results = cli.evaluate_system(
            cfg.output, protocol=plain, maps_protocol=replace(plain, **view), logits=whole,
            class_maps=lambda x, _: dict(zip(("cam", "layer_cam"), model.maps(x), strict=True)),
            pseudo_label=model.pseudo_label, refiner=refine.PixelAdaptiveRefine(softmax=False),
            val=scored[0], train=scored[1], refine=cfg.refine, size=cfg.eval_size, seed=cfg.seed,
            device=accelerator.device,
        )  # fmt: skip
    accelerator.end_training()
    return results


if __name__ == "__main__":
    main(cli.parse_config(PRESETS, description=__doc__))
