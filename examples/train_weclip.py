"""Train WeCLIP (CVPR 2024, https://arxiv.org/abs/2406.11189): image labels in, masks out.

    python examples/train_weclip.py --data voc --root VOCdevkit       # CLIP is downloaded, one GPU
    accelerate launch examples/train_weclip.py --data coco --root coco2014       # several GPUs
    python examples/train_weclip.py --data folder --root photos --labels labels.csv
    python examples/train_weclip.py --predict photo.jpg --output runs/weclip     # use the result

A frozen CLIP gives class maps as in clip_es.py and, from all of its blocks, the features of a small
decoder. The maps teach the decoder; its features learn which patches belong together, and after
some steps that chooses among CLIP's attention, along which the maps spread. The code is tried with
random weights of a small model only: numbers need CLIP's own. docs/systems/dalnet.md says why image
labels are an argument here: the released code reads them out of the true masks.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from clip_es import CODE, FrozenCLIP, normalized
from clip_es import Config as ClipConfig
from torch import Tensor, nn
from torch.nn import functional as F

from wsss_blocks import cam, cli, decoders, losses, refine, training


@dataclass(frozen=True)
class Config(ClipConfig):
    """What WeCLIP can be told beside the options of CLIP-ES."""

    output: Path = Path("runs/weclip")
    lr: float = 2e-3
    power: float = 1.0  # of the polynomial schedule
    hidden: int = 256  # channels of the fused map
    decoder_layers: int = 3
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
PRESETS = {
    "scenes": Config(),
    "voc": VOC,
    "coco": replace(VOC, data="coco", preset="coco", steps=80_000, choose=10, box_threshold=0.7),
    "folder": replace(VOC, data="folder", preset="folder", refine="none"),
}  # fmt: skip
KNOWN = (
    "lr power hidden decoder_layers heads choose radius affinity_weight learnt_start par_start "
    "iterations size scale steps batch_size warmup weight_decay"
)
SOURCES = CODE | dict.fromkeys(KNOWN.split(), "WeCLIP, released code") | {"": "inferred, or ours"}


class WeCLIP(nn.Module):
    """A frozen CLIP and the decoder over its blocks: logits of images, losses of a batch."""

    def __init__(self, cfg: Config, names: tuple[str, ...]):
        super().__init__()
        self.cfg, self.clip, self.num_classes = cfg, FrozenCLIP(cfg, names), len(names) + 1
        self.layers = tuple(self.clip.image.layer_dims)
        self.decoder = decoders.AllBlocksDecoder(
            list(self.clip.image.layer_dims.values()), self.num_classes, hidden_dim=cfg.hidden,
            layers=cfg.decoder_layers, heads=cfg.heads,
        )  # fmt: skip
        self.spread = refine.ClassAwareAffinity(threshold=cfg.box_threshold)
        options = {"iterations": cfg.iterations, "downsample": 1, "softmax": False}
        self.par = refine.PixelAdaptiveRefine(**options)
        self.phases = training.Phases({"learnt": cfg.learnt_start, "par": cfg.par_start})

    def forward(self, images: Tensor) -> Tensor:
        found = self.clip.image(images, layers=self.layers).intermediates
        return self.decoder(list(found.values()))

    def encode(self, images: Tensor, labels: Tensor):
        """Class maps and attention of CLIP, the fused map and the affinity of its patches."""
        maps, looked, features = self.clip(images, labels, layers=self.layers)
        fused = self.decoder.fuse([x.detach() for x in features.intermediates.values()])
        with torch.autocast(fused.device.type, enabled=False):
            patches = fused.float().flatten(2)
            return maps, looked, fused, torch.sigmoid(patches.mT @ patches)

    def chosen(self, looked: Tensor, affinity: Tensor) -> Tensor:
        """The mean of the layers whose attention is like the affinity, times the affinity."""
        looked = looked[:, -self.cfg.choose :]
        unlike = (affinity[:, None] - looked).abs().sum((2, 3))
        kept = (unlike <= unlike.mean(1, keepdim=True)).to(looked.dtype)
        total = torch.einsum("bl,blij->bij", kept, looked)
        return affinity * total / kept.sum(1).clamp_min(1)[:, None, None]

    @torch.no_grad()
    def pseudo_label(self, images, labels, box, encoded=None, active=None) -> Tensor:
        """Masks of the present classes; without more, as at the end of the run."""
        active = self.phases.active_at(self.cfg.steps) if active is None else active
        maps, looked, _, affinity = encoded or self.encode(images, labels)
        along = self.chosen(looked, affinity) if "learnt" in active else looked.mean(1)
        seeds = normalized(self.spread(maps, along, labels))
        scores = refine.add_background(seeds, mode="power", value=self.cfg.background_power)
        refiner = self.par if "par" in active else refine.NoRefiner()
        likely = refiner(images, scores, labels=labels, box=box)
        return cam.confident_label(likely, confidence=0.0, box=box)

    def losses(self, batch: dict[str, Tensor], active: frozenset[str]) -> dict[str, Tensor]:
        """Losses of a batch; those of micro-batches are averaged."""
        cfg, labels, every = self.cfg, batch["labels"], {"gather_distributed": True}
        encoded = self.encode(batch["image"], labels)
        pseudo = self.pseudo_label(batch["image"], labels, batch["box"], encoded, active)
        _, _, fused, affinity = encoded
        cells = F.interpolate(pseudo[:, None].float(), fused.shape[-2:], mode="nearest")[:, 0]
        pairs = refine.affinity_matrix_labels(cells.long(), radius=cfg.radius)
        seg = losses.balanced_segmentation_loss(self.decoder.decode(fused), pseudo, **every)
        found = losses.affinity_matrix_loss(affinity, pairs, **every)
        terms = {"seg": seg, "affinity": cfg.affinity_weight * found}
        return {name: term / cfg.accumulate for name, term in terms.items()}


class Step(nn.Module):
    """What processes share in a step of training."""

    def __init__(self, model: WeCLIP):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor], active: frozenset[str]) -> dict[str, Tensor]:
        return self.model.losses(batch, active)


def train(cfg: Config, accelerator: Accelerator, dataset) -> WeCLIP:
    if cfg.compile:
        raise SystemExit("--compile is not possible: a gradient is taken inside of CLIP.")
    model = WeCLIP(cfg, dataset.names).to(accelerator.device)
    groups = training.param_groups(model.decoder, lr=cfg.lr, weight_decay=cfg.weight_decay)
    optimizer = torch.optim.AdamW(groups)
    warmup = min(cfg.warmup, cfg.steps - 1)
    rates = {"total_steps": cfg.steps, "warmup_steps": warmup, "power": cfg.power}
    schedule = training.polynomial_schedule(optimizer, **rates)
    step_model, optimizer = accelerator.prepare(Step(model), optimizer)
    stateful = {"decoder": model.decoder, "optimizer": optimizer, "schedule": schedule}
    checkpoints = cli.Checkpoints(cfg, accelerator, stateful, names=dataset.names)
    steps = cli.TrainingSteps(cfg, dataset, accelerator, start=checkpoints.resume())
    for step, group in steps:
        active, shares = model.phases.active_at(step - 1), []
        step_model.train()
        optimizer.zero_grad()
        for micro, batch in enumerate(group):
            with steps.synchronised(step_model, micro):
                with accelerator.autocast():
                    shares.append(step_model(batch, active))
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
        results = cli.evaluate_system(
            cfg.output, class_maps=None, pseudo_label=model.pseudo_label, logits=whole,
            val=scored[0], train=scored[1], protocol=whole.protocol, refiner=model.par,
            refine=cfg.refine, crf=refine.DenseCRF.preset("afa"), size=cfg.eval_size,
            device=accelerator.device, seed=cfg.seed,
        )  # fmt: skip
    accelerator.end_training()
    return results


if __name__ == "__main__":
    main(cli.parse_config(PRESETS, description=__doc__))
