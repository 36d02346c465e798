"""CLIP-ES (CVPR 2023, https://arxiv.org/abs/2212.09506): masks of labelled images, no training.

    python examples/clip_es.py --data voc --root VOCdevkit            # CLIP is downloaded
    python examples/clip_es.py --data coco --root coco2014 --model ViT-B-16-quickgelu//path/to/file
    python examples/clip_es.py --data folder --root photos --labels labels.csv --split train
    python examples/train_dhr.py --masks runs/clip_es/pseudo_labels  # a network of these masks

A frozen CLIP is asked which patches make it see the classes of an image rather than each other or
a list of background words (Grad-CAM of their softmax). The maps spread along attention inside boxes
around their strong parts and are sharpened by a CRF; pixels that it is not sure of are 255 in
OUTPUT/pseudo_labels. The code is tried with random weights of a small model only: numbers need
CLIP's own, and on scenes, whose digits CLIP was not taught, they mean little.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsss_blocks import backbones, cam, cli, refine
from wsss_blocks.distributed import rank

# What is said for a class whose name alone means too much, or is no word (released code).
SPOKEN = {
    "bird": "bird avian", "chair": "chair seat", "person": "person with clothes,people,human",
    "tvmonitor": "tvmonitor screen", "tv": "tvmonitor screen", "couch": "sofa",
    "backpack": "backpack,bag", "umbrella": "umbrella,parasol", "handbag": "handbag,purse",
    "tie": "necktie", "baseball glove": "glove", "spoon": "dessertspoon",
    "remote": "remote control", "hair drier": "hairdrier,blowdrier",
}  # fmt: skip
BACKGROUND = (
    "ground", "land", "grass", "tree", "building", "wall", "sky", "lake", "water", "river", "sea",
    "railway", "railroad", "keyboard", "helmet", "cloud", "house", "mountain", "ocean", "road",
    "rock", "street", "valley", "bridge", "sign",
)  # fmt: skip


@dataclass(frozen=True)
class Config(cli.RunConfig):
    """What CLIP-ES can be told; of :class:`cli.RunConfig`, what is said of training is not used."""

    data: Literal["scenes", "voc", "coco", "folder"] = "scenes"
    output: Path = Path("runs/clip_es")
    model: str = "ViT-B-16/openai"  # or another ARCH/TAG, or ARCH/PATH, of open_clip
    prompt: str = "a clean origami {}."
    background: tuple[str, ...] = BACKGROUND  # words that are no class and no part of its name
    logit_scale: float = 100.0  # of the cosines, as CLIP learnt it
    layers: int = 8  # whose attention spreads the maps, the last ones
    box_threshold: float = 0.4  # of strong parts, in their maximum
    background_power: float = 1.0  # of what the strongest class leaves
    confidence: float = 0.95  # of a pixel's class behind the refinement; below it is 255
    refine: Literal["none", "par", "crf"] = "crf"


PRESETS = {
    "scenes": Config(),
    "voc": Config(data="voc", preset="voc", split="train_aug"),
    "coco": Config(data="coco", preset="coco", box_threshold=0.7),
    "folder": Config(data="folder", preset="folder"),
}
CODE = dict.fromkeys((
    "prompt", "background", "logit_scale", "layers", "box_threshold", "background_power",
    "confidence", "model",
), "CLIP-ES, released code") | {"": "not used, or ours"}  # fmt: skip


def text_bank(model: backbones.OpenCLIPModel, cfg: Config, names: tuple[str, ...]):
    """Rows of the classes and of the background words, all in one prompt."""
    words = [w for w in cfg.background if not any(w in name.split() for name in names)]
    said = [SPOKEN.get(name, name) for name in names]
    prompts = [cfg.prompt.format(word) for word in words]
    found = backbones.TextBank.from_encoder(
        model.text, said, templates=(cfg.prompt,), background=prompts
    )
    source = f"{model.source}: {cfg.prompt}; {len(words)} background words"
    return backbones.TextBank(found.classes, found.background, names=names, source=source)


def normalized(maps: Tensor) -> Tensor:
    """Maps to [0, 1]; gradients of a softmax are small where CLIP has made up its mind."""
    return cam.normalize_cam(maps, eps=1e-7)


class FrozenCLIP(nn.Module):
    """CLIP's image tower and the texts of the classes: class maps and attention of images."""

    def __init__(self, cfg: Config, names: tuple[str, ...]):
        super().__init__()
        model = backbones.OpenCLIPModel.from_name(cfg.model).eval()
        self.cfg, self.bank = cfg, text_bank(model, cfg, names)
        self.image = model.image.requires_grad_(False)
        self.blocks = self.image.model.transformer.resblocks

    def train(self, mode: bool = True):
        return super().train(False)  # also as a part of something that learns

    def forward(self, images: Tensor, labels: Tensor, *, layers: tuple[int, ...] = ()):
        """Class maps in [0, 1] of the present classes, attention ``(B, L, N, N)``, features."""
        asked = tuple(range(len(self.blocks))[-self.cfg.layers :])
        with torch.enable_grad(), cam.tap_output(self.blocks[-1].ln_1) as taps:
            features = self.image(images, layers=layers, attention_layers=asked)
            token = F.normalize(self.image.project(features.global_token), dim=-1)
            logits, others = (
                self.cfg.logit_scale * token @ rows.to(token.dtype).mT
                for rows in (self.bank.classes, self.bank.background)
            )
            others = others if others.shape[1] else None
            scores = cam.present_softmax_scores(logits, labels, background=others)
            grid = tuple(features.feature_map.shape[-2:])
            maps = cam.gradient_cam(scores, taps[0], labels, grid=grid)
        with torch.no_grad():
            looked = cam.patch_to_patch_attention(features.attention, grid=grid)
        return normalized(maps), looked, features


class CLIPES(FrozenCLIP):
    """Pseudo-labels of labelled images."""

    def __init__(self, cfg: Config, names: tuple[str, ...]):
        super().__init__(cfg, names)
        self.spread = refine.ClassAwareAffinity(threshold=cfg.box_threshold)
        self.refiner = {
            "none": refine.NoRefiner(),
            "par": refine.PixelAdaptiveRefine(softmax=False),
            "crf": refine.DenseCRF(iterations=10, gaussian=(1, 3), bilateral=(67, 3, 4)),
        }[cfg.refine]

    @torch.no_grad()
    def class_maps(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Maps of the present classes in [0, 1], and these spread along attention."""
        maps, looked, _ = self(images, labels)
        return {"cam": maps, "spread": normalized(self.spread(maps, looked.mean(1), labels))}

    @torch.no_grad()
    def pseudo_label(self, images, labels, box, *, confidence: float | None = None) -> Tensor:
        seeds, power = self.class_maps(images, labels)["spread"], self.cfg.background_power
        maps = refine.add_background(seeds, mode="power", value=power)
        likely = self.refiner(images, maps, labels=labels, box=box)
        sure = self.cfg.confidence if confidence is None else confidence
        return cam.confident_label(likely, confidence=sure, box=box)


def main(cfg: Config) -> dict[str, float]:
    """Write the masks of the training images, score some of them and return the results."""
    accelerator = cli.start_run(cfg)
    device = accelerator.device
    accelerator.print(cli.describe_recipe(cfg, PRESETS[cfg.preset], sources=CODE))
    dataset, *scored = cli.open_splits(cfg)
    system = CLIPES(cfg, dataset.names).to(device).eval()
    seen = {"size": cfg.eval_size, "device": device}
    mask = partial(cli.whole_mask, system.pseudo_label, **seen)
    cli.write_train_masks(mask, dataset, cfg.output / "pseudo_labels")
    if rank() == 0:
        cli.save_config(cfg.output / "config.json", cfg, names=dataset.names)
    results: dict[str, float] = {}
    if scored:
        val, masked = scored
        every = partial(cli.whole_mask, partial(system.pseudo_label, confidence=0.0), **seen)
        protocol = replace(
            cli.run_protocol(cfg, text=system.bank.source, num_images=len(val)), scales=(1.0,),
            flip=False, labels_used=True, threshold=cfg.threshold, threshold_source="preset",
        )  # fmt: skip
        results = cli.evaluate_system(
            cfg.output, class_maps=system.class_maps, pseudo_label=system.pseudo_label, logits=None,
            masks={"every_pixel": every}, refiner=system.refiner, refine="none", val=val,
            train=masked, protocol=protocol, seed=cfg.seed, **seen,
        )  # fmt: skip
    accelerator.end_training()
    return results


if __name__ == "__main__":
    main(cli.parse_config(PRESETS, description=__doc__))
