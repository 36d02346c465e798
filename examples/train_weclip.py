"""Train WeCLIP (CVPR 2024, https://arxiv.org/abs/2406.11189): image labels in, masks out.

    python examples/train_weclip.py --data voc --root VOCdevkit       # CLIP is downloaded, one GPU
    accelerate launch examples/train_weclip.py --data coco --root coco2014       # several GPUs
    python examples/train_weclip.py --predict photo.jpg --output runs/weclip     # use the result

A frozen CLIP gives class maps (clip_es.py) and the features of a small decoder, which the maps
teach. The decoder learns which patches belong together, and after some steps that chooses among
CLIP's attention, along which the maps spread. Tried with random weights only: numbers need CLIP's
own. Image labels are an argument; the released code reads them out of the true masks. Dropout is
drawn per forward pass: with --dropout 0, processes and micro-batches learn what one batch does.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from clip_es import CODE, FrozenCLIP, normalized
from clip_es import Config as ClipConfig
from torch import Tensor, nn

from wsss_blocks import cam, cli, decoders, losses, refine, training


@dataclass(frozen=True)
class Config(ClipConfig):
    """What WeCLIP can be told beside the options of CLIP-ES."""

    output: Path = Path("runs/weclip")
    lr: float = 2e-3
    power: float = 1.0  # of the polynomial schedule
    hidden: int = 256  # channels of the fused map
    decoder_layers: int = 3
    dropout: float = 0.1  # of channels of the fused map
    heads: int = 8
    choose: int = 6  # last layers among whose attention the learnt affinity chooses
    radius: int = 8  # patches further apart than this teach no affinity
    affinity_weight: float = 0.1
    learnt_start: int = 500  # step from which on the maps spread along the learnt affinity
    par_start: int = 0  # and from which on they are refined by the colours of the image
    iterations: int = 20  # of that refinement
    refine: Literal["none", "par", "crf"] = "none"  # crf: the decoder is scored behind one, too


VOC = Config(
    data="voc", preset="voc", split="train_aug", size=320, scale=(0.5, 2.0), flip=True,
    colour="photometric", steps=30_000, batch_size=4, learnt_start=15_000, workers=4, refine="crf",
    eval_scales=(0.75, 1.0), eval_fuse=("mean", "mean"),
)  # fmt: skip
PRESETS = {"scenes": Config(), "voc": VOC} | {
    "coco": replace(VOC, data="coco", preset="coco", steps=80_000, choose=10, box_threshold=0.7),
    "folder": replace(VOC, data="folder", preset="folder", refine="none"),
}  # fmt: skip
KNOWN = """lr power hidden decoder_layers dropout heads choose radius affinity_weight learnt_start
par_start iterations size scale steps batch_size warmup weight_decay"""
SOURCES = CODE | dict.fromkeys(KNOWN.split(), "WeCLIP, released code") | {"": "inferred, or ours"}


class WeCLIP(nn.Module):
    """A frozen CLIP and the decoder over its blocks: logits of images, losses of a batch."""

    def __init__(self, cfg: Config, names: tuple[str, ...]):
        super().__init__()
        self.cfg, self.clip, self.num_classes = cfg, FrozenCLIP(cfg, names), len(names) + 1
        dims = self.clip.image.layer_dims
        self.layers, sizes = tuple(dims), {"hidden_dim": cfg.hidden, "heads": cfg.heads}
        sizes |= {"layers": cfg.decoder_layers, "dropout": cfg.dropout}
        self.decoder = decoders.AllBlocksDecoder(list(dims.values()), self.num_classes, **sizes)
        self.spread = refine.ClassAwareAffinity(threshold=cfg.box_threshold)
        options = {"iterations": cfg.iterations, "downsample": 1, "softmax": False}
        self.par = refine.PixelAdaptiveRefine(**options)
        self.phases = training.Phases({"learnt": cfg.learnt_start, "par": cfg.par_start})
        self.active = self.phases.active_at(cfg.steps - 1)  # in training: of the step

    def forward(self, images: Tensor) -> Tensor:
        found = self.clip.image(images, layers=self.layers).intermediates
        return self.decoder(list(found.values()))

    def relate(self, frozen: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The fused map of CLIP's features and the affinity of its patches."""
        fused = self.decoder.fuse(frozen)
        with torch.autocast(fused.device.type, enabled=False):
            patches = fused.float().flatten(2)
            return fused, torch.sigmoid(patches.mT @ patches)

    def chosen(self, looked: Tensor, affinity: Tensor) -> Tensor:
        """The mean of the layers whose attention is like the affinity, times the affinity."""
        looked = looked[:, -self.cfg.choose :]
        unlike = (affinity[:, None] - looked).abs().sum((2, 3))
        kept = (unlike <= unlike.mean(1, keepdim=True)).to(looked.dtype)
        total = torch.einsum("bl,blij->bij", kept, looked)
        return affinity * total / kept.sum(1).clamp_min(1)[:, None, None]

    @torch.no_grad()
    def class_maps(self, images, labels, seen=None) -> dict[str, Tensor]:
        """CLIP's maps of the present classes in [0, 1], and these spread along attention."""
        maps, looked, features = seen or self.clip(images, labels, layers=self.layers)
        along = looked.mean(1)
        if "learnt" in self.active:
            along = self.chosen(looked, self.relate(list(features.intermediates.values()))[1])
        return {"cam": maps, "spread": normalized(self.spread(maps, along, labels))}

    def pseudo_label(self, images, labels, box, seen=None) -> Tensor:
        seeds = self.class_maps(images, labels, seen)["spread"]
        scores = refine.add_background(seeds, mode="power", value=self.cfg.background_power)
        refiner = self.par if "par" in self.active else refine.NoRefiner()
        likely = refiner(images, scores, labels=labels, box=box)
        return cam.confident_label(likely, confidence=0.0, box=box)

    def targets(self, batch: dict[str, Tensor]) -> dict:
        """What the decoder is taught, and the features of the frozen CLIP that it learns from."""
        images, labels, box = (batch[key] for key in ("image", "labels", "box"))
        *_, features = seen = self.clip(images, labels, layers=self.layers)
        pseudo, size = self.pseudo_label(images, labels, box, seen), features.feature_map.shape[-2:]
        cells = nn.functional.interpolate(pseudo[:, None].float(), size)[:, 0].long()
        pairs = refine.affinity_matrix_labels(cells, radius=self.cfg.radius)
        frozen = [x.detach() for x in features.intermediates.values()]
        return {"frozen": frozen, "pseudo": pseudo, "pairs": pairs}


class Step(nn.Module):
    """What processes share: a batch's part in the losses of a step, which divide by its counts."""

    def __init__(self, model: WeCLIP):
        super().__init__()
        self.model = model

    def forward(self, batch: dict, pixels: Tensor, pairs: Tensor) -> dict[str, Tensor]:
        fused, affinity = self.model.relate(batch["frozen"])
        logits, every = self.model.decoder.decode(fused), {"gather_distributed": True}
        seg = losses.balanced_segmentation_loss(logits, batch["pseudo"], counts=pixels, **every)
        found = losses.affinity_matrix_loss(affinity, batch["pairs"], counts=pairs, **every)
        return {"seg": seg, "affinity": self.model.cfg.affinity_weight * found}


def train(cfg: Config, accelerator: Accelerator, dataset) -> WeCLIP:
    model = WeCLIP(cfg, dataset.names).to(accelerator.device)
    groups = training.param_groups(model.decoder, lr=cfg.lr, weight_decay=cfg.weight_decay)
    optimizer = torch.optim.AdamW(groups)
    rates = {"warmup_steps": min(cfg.warmup, cfg.steps - 1), "power": cfg.power}
    schedule = training.polynomial_schedule(optimizer, total_steps=cfg.steps, **rates)
    step_model = torch.compile(Step(model)) if cfg.compile else Step(model)
    step_model, optimizer = accelerator.prepare(step_model, optimizer)
    stateful = {"decoder": model.decoder, "optimizer": optimizer, "schedule": schedule}
    checkpoints = cli.Checkpoints(cfg, accelerator, stateful, names=dataset.names)
    steps = cli.TrainingSteps(cfg, dataset, accelerator, start=checkpoints.resume())
    for step, group in steps:
        model.active, shares = model.phases.active_at(step - 1), []
        step_model.train()
        with accelerator.autocast():  # all targets first: they say what the losses divide by
            group = [batch | model.targets(batch) for batch in group]
        pixels = sum(losses.balanced_segmentation_counts(batch["pseudo"]) for batch in group)
        pairs = sum(losses.affinity_matrix_counts(batch["pairs"]) for batch in group)
        optimizer.zero_grad()
        for micro, batch in enumerate(group):
            with steps.synchronised(step_model, micro):
                with accelerator.autocast():
                    shares.append(step_model(batch, pixels, pairs))
                accelerator.backward(sum(shares[-1].values()))
        optimizer.step()
        schedule.step()
        steps.log(shares)
        checkpoints.save(step)
    return model.eval()


def main(cfg: Config) -> dict[str, float]:
    """Train, evaluate and return the results; or segment ``cfg.predict``."""
    accelerator, weights = cli.start_run(cfg), cfg.output / "decoder.safetensors"
    if cfg.predict:
        kept, more = cli.load_config(cfg.output / "config.json", like=cfg)
        model = WeCLIP(kept, tuple(more["names"]))
        training.load_weights(weights, model.decoder)
        trained = cli.run_segmenter(kept, model.to(accelerator.device), more["names"])
        cli.segment_files(trained, cfg.predict, output=cfg.output / "predictions")
        return {}
    accelerator.print(cli.describe_recipe(cfg, PRESETS[cfg.preset], sources=SOURCES))
    dataset, *scored = cli.open_splits(cfg)
    model, results = train(cfg, accelerator, dataset), {}
    if accelerator.is_main_process:
        training.save_weights(weights, model.decoder)
        cli.save_config(cfg.output / "config.json", cfg, names=dataset.names)
    if scored:
        text = {"text": model.clip.bank.source, "num_images": len(scored[0])}
        whole = cli.run_segmenter(cfg, model, dataset.names, **text)
        protocol = replace(whole.protocol, threshold=cfg.threshold, threshold_source="preset")
        results = cli.evaluate_system(
            cfg.output, class_maps=model.class_maps, pseudo_label=model.pseudo_label, logits=whole,
            val=scored[0], train=scored[1], protocol=protocol, refiner=model.par, seed=cfg.seed,
            maps_protocol=replace(protocol, scales=(1.0,), flip=False), size=cfg.eval_size,
            refine=cfg.refine, crf=refine.DenseCRF.preset("afa"), device=accelerator.device,
        )  # fmt: skip
    accelerator.end_training()
    return results


if __name__ == "__main__":
    main(cli.parse_config(PRESETS, description=__doc__))
