"""Train SimSeg (LoDA, CVPR 2023): images and captions in, masks of any class name out.

    python examples/train_simseg.py                                # generated scenes, CPU, minutes
    python examples/train_simseg.py --data pairs --root photos --captions captions.json
    python examples/train_simseg.py --data shards --shards cc3m cc12m         # the paper's recipe
    accelerate launch examples/train_simseg.py --data shards --shards cc3m cc12m   # several GPUs
    wsss segment photo.jpg --classes "dog,grass" --model runs/simseg/model.safetensors

The strongest responses of patches and of words are aligned, image by caption; nothing else is
learnt. docs/systems/simseg.md says what the paper says, and which masking it used.
"""

import re
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from wsss_blocks import backbones, cli, data, losses, metrics, refine, segmenters
from wsss_blocks.distributed import rank
from wsss_blocks.training import cached_gradient_backward, param_groups


@dataclass(frozen=True)
class Config(cli.RunConfig):
    """What SimSeg can be told beside the options of every example (:class:`cli.RunConfig`)."""

    data: Literal["scenes", "pairs", "shards"] = "scenes"
    output: Path = Path("runs/simseg")
    captions: Path | None = None  # of pairs: what ImageTextPairs reads
    held_out: int = 200  # of pairs: the last so many are not learnt from but retrieved
    shards: tuple[str, ...] = ()  # folders or patterns of tar files, one per data set
    eval_data: Literal["scenes", "voc", "context", "coco", "coco-object", "folder"] | None = None
    eval_root: Path | None = None
    # the model
    text_encoder: str = "small-text"  # or bert-base, hf:NAME, open_clip:ARCH
    vocabulary: Path | None = None  # word pieces of bert-base
    max_length: int = 16  # of captions
    dim: int = 64
    pool: Literal["max_response", "average", "class_token"] = "max_response"
    image_norm: bool = True  # a LayerNorm in front of the projection, where the encoder has none
    image_k: int = 14
    text_k: int = 2
    eval_text_k: int = 2
    mask_padding: tuple[bool, bool] = (True, True)  # in training, in evaluation
    # optimisation
    steps: int = 1200
    batch_size: int = 24
    lr: float = 1.5e-3
    min_lr: float = 0.0  # share of lr where the cosine ends
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    resized_crop: bool = False  # crops by area and aspect, then AutoAugment; else shifts
    word_rates: tuple[float, float, float] = (0.0, 0.0, 0.0)  # words masked, replaced, deleted
    same_meaning: bool = True  # captions of one label set are not each other's negatives
    # zero-shot masks; eval_size, too: None leaves it to the published protocol of eval_data, if any
    templates: tuple[str, ...] | None = None  # (): CLIP's 80; without a protocol three short ones
    score_background: bool | None = None  # else no: it is a word that scenes never say
    top: int | None = None  # else 10
    similarity: Literal["cosine", "dot"] = "cosine"  # dot: of patches of any length
    crf: bool = False


CC = Config(
    data="shards", preset="cc", encoder="vit_small_patch16_224", text_encoder="bert-base",
    max_length=25, dim=512, image_norm=False, image_k=5, text_k=5, eval_text_k=1,
    mask_padding=(False, True), size=224, scale=(0.6, 1.0), colour="none", resized_crop=True,
    word_rates=(0.10, 0.02, 0.08), same_meaning=False, steps=68_600, warmup=1715, batch_size=512,
    accumulate=8, lr=3e-4, min_lr=0.1, weight_decay=0.2, betas=(0.9, 0.98), workers=16,
    mixed_precision="bf16", save_every=1000, eval_size=288, templates=(), score_background=True,
    crf=True,
)  # fmt: skip
PAIRS = Config(
    data="pairs", preset="pairs", encoder="mobilenetv1_100", weights="pretrained", cache=True,
    size=256, square=True, scale=(1.0, 1.0), flip=True, colour="none", steps=600, batch_size=64,
    dim=128, image_k=5, max_length=25, word_rates=(0.10, 0.02, 0.08), same_meaning=False,
    eval_size=256,
)  # fmt: skip
PRESETS = {"scenes": Config(), "cc": CC, "pairs": PAIRS}
PAPER = dict.fromkeys((
    "lr", "min_lr", "betas", "weight_decay", "warmup", "dim", "image_k", "text_k", "eval_text_k",
    "scale", "word_rates", "size", "eval_size", "steps", "encoder", "text_encoder", "max_length",
), "SimSeg, paper and supplement")  # fmt: skip
SOURCES = {"cc": PAPER | {
    "mask_padding": "author, in an issue of the released code", "top": "published protocol",
    "score_background": "SimSeg, released code", "crf": "SimSeg, released code",
    "": "ours; batch_size x accumulate x processes is to be 4096"}}  # fmt: skip


class SimSeg(nn.Module):
    """The model in the form of a training step: pairs in, features and scale out."""

    def __init__(self, cfg: Config, words: tuple[str, ...]):
        super().__init__()
        self.model = segmenters.create_loda(
            cfg.encoder, cfg.text_encoder, weights=cfg.weights, words=words,
            vocabulary=cfg.vocabulary, max_length=cfg.max_length, dim=cfg.dim, pool=cfg.pool,
            image_norm=cfg.image_norm, image_k=cfg.image_k, text_k=cfg.text_k,
            eval_text_k=cfg.eval_text_k, mask_padding=cfg.mask_padding,
        )  # fmt: skip

    def frozen_maps(self, images: Tensor) -> Tensor:
        """What a frozen encoder makes of images, to be cached."""
        return self.model.image.encoder(images).feature_map

    def forward(self, text_ids: Tensor, text_mask: Tensor, **pictures: Tensor) -> dict[str, Tensor]:
        if (cached := pictures.get("features")) is None:
            return self.model(pictures["image"], text_ids, text_mask)
        no_tokens = cached.new_zeros(len(cached), 0, cached.shape[1])
        return self.model(backbones.Features(cached, no_tokens, {}, {}, {}), text_ids, text_mask)


def pairs_of(cfg: Config, group: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict]:
    """What a model needs of all pairs of a step, and how their loss is computed."""
    keys = ("text_ids", "text_mask", "features" if cfg.cache else "image")
    options: dict[str, Any] = {"gather_distributed": True}
    if cfg.same_meaning:
        labels = torch.cat([batch["labels"] for batch in group]).long()
        bits = torch.arange(labels.shape[1], device=labels.device)
        options["positives"] = (labels << bits).sum(1)  # one number per set of labels
    return {key: torch.cat([batch[key] for batch in group]) for key in keys}, options


class Captioned:
    """Turn the caption that was drawn into token ids, some of its words changed."""

    def __init__(self, cfg: Config, text: nn.Module):
        names = ("mask_rate", "replace_rate", "delete_rate")
        rates = dict(zip(names, cfg.word_rates, strict=True))
        self.tokenize = text.tokenize
        self.augment = None
        if any(cfg.word_rates):
            self.augment = data.WordAugmentation(text.encoder.vocabulary, **rates)

    def __call__(self, sample: data.Sample, generator: torch.Generator) -> data.Sample:
        ids, mask = self.tokenize([sample["caption"]])
        if self.augment is not None:
            ids, mask = self.augment(ids, mask, generator=generator)
        kept = {k: v for k, v in sample.items() if k not in ("caption", "captions")}
        return {**kept, "text_ids": ids[0], "text_mask": mask[0]}


def augmentation(cfg: Config, text: nn.Module) -> data.Transform:
    image = data.training_transform(
        cfg.size, scale=cfg.scale, flip=cfg.flip, colour=cfg.colour, square=cfg.square
    )
    if cfg.resized_crop:
        crop = data.RandomResizedCrop(cfg.size, scale=cfg.scale)
        image = data.Compose(crop, data.AutoAugment())
    return data.Compose(data.RandomCaption(), Captioned(cfg, text), image)


def open_pairs(cfg: Config) -> tuple[Any, Any, tuple[str, ...]]:
    """What is learnt from, the pairs that are kept for retrieval, and the words of captions."""
    if cfg.same_meaning and cfg.data != "scenes":
        raise SystemExit("--same-meaning needs image labels: only scenes have them here.")
    if cfg.data == "shards":
        if not cfg.shards:
            raise SystemExit("--data shards needs --shards, folders or patterns of tar files.")
        if cfg.cache:
            raise SystemExit("--data shards needs --no-cache: each image is seen once.")
        return [data.find_shards(pattern) for pattern in cfg.shards], None, ()
    if cfg.data == "scenes":
        pairs, kept = cli.open_data(cfg, "train"), cli.open_data(cfg, "val")
        said = [caption for i in range(len(pairs)) for caption in pairs[i]["captions"]]
    else:
        if cfg.root is None or cfg.captions is None:
            raise SystemExit("--data pairs needs --root, a folder of images, and --captions.")
        found = data.ImageTextPairs(cfg.root, cfg.captions, strict=cfg.strict)
        usable = data.usable_images(found, keep_empty=True, strict=cfg.strict)
        if usable.skipped and rank() == 0:
            print(f"pairs: {usable.describe()}", flush=True)
        count, known = len(usable), len(usable) - cfg.held_out
        if known < 1:
            raise SystemExit(f"--held-out must be less than {count}, the number of images.")
        kept = data.UsableImages(usable, range(known, count), {}) if cfg.held_out else None
        pairs = data.UsableImages(usable, range(known), {})
        said = [text for index in usable.indices[:known] for text in found.captions[index]]
    words = re.findall(r"[^\W\d_]+", " ".join(said).lower())
    return pairs, kept, tuple(sorted(set(words))) if cfg.text_encoder == "small-text" else ()


def train(cfg: Config, accelerator: Accelerator, pairs: Any, words, *scored) -> SimSeg:
    model = SimSeg(cfg, words).to(accelerator.device)
    groups = param_groups(model, lr=cfg.lr, weight_decay=cfg.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=cfg.betas)
    warmup = min(cfg.warmup, cfg.steps - 1)
    rising = LinearLR(optimizer, 1e-3, total_iters=warmup)
    falling = CosineAnnealingLR(optimizer, cfg.steps - warmup, eta_min=cfg.lr * cfg.min_lr)
    schedule = SequentialLR(optimizer, [rising, falling], [warmup])
    step_model = torch.compile(model) if cfg.compile else model
    step_model, optimizer = accelerator.prepare(step_model, optimizer)
    stateful = {"model": model, "optimizer": optimizer, "schedule": schedule}
    checkpoints = cli.Checkpoints(cfg, accelerator, stateful, names=words)
    start = checkpoints.resume()
    transform, loader = augmentation(cfg, model.model.text), None
    if cfg.data == "shards":
        loader = data.shard_loader(
            pairs, transform, batch_size=cfg.batch_size, steps=cfg.steps * cfg.accumulate,
            start=start * cfg.accumulate, seed=cfg.seed, workers=cfg.workers, short_side=cfg.size,
        )  # fmt: skip
        accelerator.print(loader.dataset.describe())
    steps = cli.TrainingSteps(
        cfg, pairs, accelerator, start=start, transform=transform, loader=loader,
        cache={"features": model.frozen_maps} if cfg.cache else {},
    )  # fmt: skip
    for step, group in steps:
        step_model.train()
        optimizer.zero_grad()
        batch, options = pairs_of(cfg, group)
        contrast = partial(losses.image_text_contrastive_loss, **options)
        if cfg.accumulate == 1:
            with accelerator.autocast():
                found = step_model(**batch)
            loss = contrast(*found.values())
            accelerator.backward(loss)
        else:  # the loss of all of them, in the memory of one batch
            loss = cached_gradient_backward(
                [step_model], [batch], contrast, chunk_size=cfg.batch_size,
                backward=accelerator.backward,
            )  # fmt: skip
        optimizer.step()
        schedule.step()
        steps.log([{"contrast": loss}], beside={"temperature": 1 / model.model.logit_scale})
        checkpoints.save(step)
        if scored and cfg.eval_every and step % cfg.eval_every == 0 and step < cfg.steps:
            accelerator.log(evaluate(cfg, model, accelerator.device, *scored), step=step)
    if cfg.data == "shards":
        accelerator.print(f"skipped, in this process: {loader.dataset.skipped}")
    return model


def segmenter_of(cfg: Config, model: nn.Module, names) -> segmenters.ZeroShotSegmenter:
    """Segment as the published protocol of the data does, but for what the options say."""
    short, spoken = ("{}", "a {}", "a photo of a {}"), {}
    rule = {"closing": 7 if cfg.crf else 1, "upsampling": "bilinear", "size": None}
    rule |= {"templates": short, "score_background": False, "top": 10}
    if published := segmenters.PROTOCOL_OF_DATA.get(cfg.eval_data):
        found = segmenters.zero_shot_protocol(published)
        rule = {key: getattr(found, key) for key in ("closing", "size", "top", "sigma", "most")}
        rule |= {"templates": (), "score_background": True}
        spoken = found.spoken
    given = {key: getattr(cfg, key) for key in ("templates", "score_background", "top")}
    given["size"] = cfg.eval_size
    rule |= {key: value for key, value in given.items() if value is not None}
    bank = segmenters.zero_shot_bank(
        model, names, templates=rule.pop("templates") or None, spoken=spoken,
        background="background" if rule["score_background"] else None,
    )  # fmt: skip
    refiner = refine.DenseCRF.preset("simseg") if cfg.crf else None
    return segmenters.ZeroShotSegmenter(
        model, bank, similarity=cfg.similarity, refiner=refiner, **rule
    )


def evaluate(cfg: Config, model: SimSeg, device, val, masked, kept, **extra) -> dict[str, float]:
    """Score masks and retrieval; write OUTPUT/metrics.json and OUTPUT/figures."""
    model.eval()
    if val is None:
        return retrieve(cfg, model, device, kept, **extra)
    segmenter = segmenter_of(cfg, model.model, val.names)
    return cli.evaluate_zero_shot(
        cfg.output, segmenter.to(device), val, train=masked, pairs=kept,
        every_caption=cfg.data != "scenes", device=device, seed=cfg.seed, extra=extra,
        protocol=cli.run_protocol(replace(cfg, data=cfg.eval_data or cfg.data)),
    )  # fmt: skip


def retrieve(cfg: Config, model: SimSeg, device, kept, **extra) -> dict[str, float]:
    """Score retrieval alone, where there are no masks."""
    results = cli.score_retrieval(model.model, kept, size=cfg.eval_size, device=device)
    about = {"dataset": "captions", "split": "held out", "scales": (1.0,), "flip": False}
    protocol = replace(cli.run_protocol(cfg, num_images=len(kept)), **about)
    if rank() == 0:
        path = cfg.output / "metrics.json"
        metrics.write_metrics(path, results, protocol, seed=cfg.seed, extra=extra)
    return results


def main(cfg: Config) -> dict[str, float]:
    """Train, save the model, evaluate and return the results."""
    accelerator = cli.start_run(cfg)
    device = accelerator.device
    if found := SOURCES.get(cfg.preset):
        accelerator.print(cli.describe_recipe(cfg, PRESETS[cfg.preset], sources=found))
    pairs, kept, words = open_pairs(cfg)
    scored = ()
    if cfg.evaluate and (cfg.eval_data or cfg.data == "scenes"):
        of_masks = replace(cfg, data=cfg.eval_data or "scenes", root=cfg.eval_root)
        train_masks = None
        if cfg.eval_images and not cfg.crf:  # which does without a threshold
            train_masks = cli.open_data(of_masks, "train", with_masks=True, limit=cfg.eval_images)
        scored = (cli.open_data(of_masks, "val", with_masks=True), train_masks, kept)
    elif cfg.evaluate and kept is not None:
        scored = (None, None, kept)
    wall, cpu = time.perf_counter(), time.process_time()
    model = train(cfg, accelerator, pairs, words, *scored)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if accelerator.is_main_process:
        segmenters.save_loda(cfg.output / "model.safetensors", model.model, size=cfg.eval_size)
        cli.save_config(cfg.output / "config.json", cfg, names=words)
    spent = {"train_seconds": wall, "train_cpu_seconds": cpu}
    results = evaluate(cfg, model, device, *scored, **spent) if scored else {}
    accelerator.end_training()
    return results


if __name__ == "__main__":
    main(cli.parse_config(PRESETS, description=__doc__))
