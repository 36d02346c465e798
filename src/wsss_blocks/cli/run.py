"""What every training example can be told, and how its process starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from wsss_blocks._optional import require
from wsss_blocks.data import (
    CLASS_TABLES,
    UsableImages,
    check_split_size,
    open_dataset,
    usable_images,
)
from wsss_blocks.distributed import rank
from wsss_blocks.metrics import EvaluationProtocol
from wsss_blocks.segmenters import Segmenter

__all__ = ["RunConfig", "open_data", "open_splits", "run_protocol", "run_segmenter", "start_run"]


@dataclass(frozen=True)
class RunConfig:
    """The options that all examples share; each adds those of its method.

    Example:
        >>> @dataclass(frozen=True)
        ... class Config(RunConfig):
        ...     temperature: float = 1.0
        >>> Config(steps=10).seed
        0
    """

    data: Literal[
        "scenes", "scenes-hard", "voc", "coco", "context", "ade20k", "coco-stuff", "folder"
    ] = "scenes"
    preset: str = "scenes"  # named hyper-parameters, by default those named like the data
    root: Path | None = None  # of the data, as :func:`wsss_blocks.data.open_dataset` wants it
    labels: Path | None = None  # file of image labels; None: the data set's own
    split: str = "train"  # id list of VOC's training images; the papers' is train_aug
    strict: bool = False  # images that cannot be used end the run; else they are left out
    keep_empty: bool = False  # train on images without any class, too
    output: Path = Path("runs/last")
    resume: bool = False  # continue from the last checkpoint in OUTPUT
    seed: int = 0
    device: Literal["auto", "cpu"] = "auto"  # auto: GPUs where there are some
    predict: tuple[Path, ...] = ()  # segment these images with the network in OUTPUT, and stop
    # the network
    encoder: str = "small-cnn"  # or small-vit, mobilenet, any ViT (fine-tuned) or CNN of timm
    weights: str | None = None  # of the encoder: "pretrained" for timm's, or a file
    cache: bool = False  # run a frozen encoder once over the images; colours stay as they are
    # images
    size: int = 96  # of the square crops
    square: bool = False  # show the network whole images, squeezed into a square, instead
    scale: tuple[float, float] = (0.85, 1.2)
    flip: bool = False  # mirror half of the images in training, and average both in evaluation
    colour: Literal["photometric", "permute", "none"] = "permute"
    # optimisation
    steps: int = 1000
    batch_size: int = 16  # images of one forward pass in one process
    accumulate: int = 1  # forward passes per step and process
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 50  # steps
    workers: int = 0  # processes that load images
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    compile: bool = False
    save_every: int = 500  # steps between checkpoints
    log_every: int = 20  # steps
    # evaluation
    evaluate: bool = True  # at the end; needs masks
    eval_every: int = 0  # and every so many steps; 0: only at the end
    eval_images: int = 200  # training images whose masks choose the thresholds
    eval_scales: tuple[float, ...] = (1.0,)
    eval_fuse: tuple[str, str] = ("mean", "mean")  # of mirror images, of scales
    eval_size: int | None = None  # squeeze images into this square; None: as they are
    threshold: float = 0.4  # of class maps, where there are no training masks to choose it
    refine: Literal["none", "par", "crf"] = "par"  # scored behind it: maps; crf: decoder too


def open_data(
    cfg: RunConfig, split: str, *, with_masks: bool = False, limit: int | None = None
) -> UsableImages:
    """Open the training or validation images that a configuration names; leave bad ones out.

    A split of VOC or COCO with another number of images than the official one is noted. Every image
    is read once, so that a broken file shows now and not after days of training. What
    is left out, and why, is printed; with ``cfg.strict`` it is an error. Images without any class
    are kept for evaluation, and in training with ``cfg.keep_empty``.

    Args:
        cfg: of the run.
        split: ``"train"`` or ``"val"``; of VOC, training uses the list ``cfg.split``.
        with_masks: for evaluation; a folder without masks gives samples without.
        limit: at most so many images, the first ones.

    Returns:
        The data set; errors are those of :func:`wsss_blocks.data.open_dataset` and
        :func:`wsss_blocks.data.usable_images`.

    Example:
        >>> len(open_data(RunConfig(), "val"))
        200
    """
    augmented = (cfg.data, split, with_masks) == ("voc", "train", False)
    name = cfg.split if augmented else split  # VOC's own "train" has masks, others may have none
    dataset = open_dataset(
        cfg.data,
        name,
        root=cfg.root,
        labels=cfg.labels,
        with_masks=with_masks,
        strict=cfg.strict,
    )
    if cfg.data in CLASS_TABLES and rank() == 0:
        try:
            check_split_size(cfg.data, getattr(dataset, "split", name), len(dataset))
        except ValueError as error:
            print(f"note: {error}", flush=True)
    if limit is not None:
        dataset = UsableImages(dataset, range(min(limit, len(dataset))), {})
    usable = usable_images(dataset, keep_empty=cfg.keep_empty or with_masks, strict=cfg.strict)
    if usable.skipped and rank() == 0:
        print(f"{split}: {usable.describe()}", flush=True)
    return usable


def open_splits(cfg: RunConfig) -> tuple[UsableImages, ...]:
    """Open what a run trains on and, with ``cfg.evaluate``, what it is scored on.

    Args:
        cfg: of the run.

    Returns:
        The training images; then, to be scored, the validation images with their masks, and the
        first ``cfg.eval_images`` training images with theirs, which choose thresholds.

    Example:
        >>> [len(dataset) for dataset in open_splits(RunConfig(eval_images=50))]
        [2000, 200, 50]
    """
    train = open_data(cfg, "train")
    if not cfg.evaluate:
        return (train,)
    masked = open_data(cfg, "train", with_masks=True, limit=cfg.eval_images)
    return train, open_data(cfg, "val", with_masks=True), masked


def run_protocol(
    cfg: RunConfig, *, text: str | None = None, num_images: int = 0
) -> EvaluationProtocol:
    """Say how a run is evaluated on validation images, as far as its options say it.

    Args:
        cfg: of the run.
        text: source of the texts that it was trained with, None without.
        num_images: how many validation images are scored.

    Returns:
        The protocol; it has no threshold, no refiner, and uses no image labels.

    Example:
        >>> run_protocol(RunConfig(eval_size=384), num_images=200).describe()[:25]
        'scenes val, 200 images, s'
    """
    return EvaluationProtocol(
        dataset=cfg.data,
        split="val",
        num_images=num_images,
        scales=cfg.eval_scales,
        flip=cfg.flip,
        flip_reduce=cfg.eval_fuse[0],
        scale_reduce=cfg.eval_fuse[1],
        refiner="none",
        labels_used=False,
        text=text,
        size_policy=f"{cfg.eval_size} square" if cfg.eval_size else "resize",
    )


def run_segmenter(
    cfg: RunConfig,
    network: nn.Module,
    names: Sequence[str],
    *,
    text: str | None = None,
    num_images: int = 0,
) -> Segmenter:
    """Bind a run's network to its class names and to the protocol it is evaluated with.

    Args:
        cfg: of the run.
        network: what was trained; see :class:`~wsss_blocks.segmenters.Segmenter`.
        names: of the classes, without background.
        text: source of the texts that it was trained with, None without.
        num_images: how many validation images are scored, 0 for a network that was not.

    Returns:
        The segmenter; its protocol has no threshold and uses no image labels.

    Example:
        >>> from wsss_blocks.segmenters import SegmentationNetwork
        >>> network = SegmentationNetwork(num_classes=3, hidden_dim=8)
        >>> cfg = RunConfig(eval_size=384)
        >>> run_segmenter(cfg, network, ["cat", "dog"]).protocol.size_policy
        '384 square'
    """
    protocol = run_protocol(cfg, text=text, num_images=num_images)
    return Segmenter(network, names=names, protocol=protocol, size=cfg.eval_size)


def start_run(cfg: RunConfig) -> Any:
    """Seed every generator and start Accelerate, with a TensorBoard log in ``OUTPUT/log``.

    Unused parameters are allowed for: losses that start later leave heads without gradient.

    Args:
        cfg: of the run.

    Returns:
        The ``accelerate.Accelerator``.

    Raises:
        ImportError: accelerate is not installed.
        ValueError: the number of steps or images per batch is not positive.
    """
    for name in ("steps", "batch_size", "accumulate", "save_every", "log_every"):
        if getattr(cfg, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(cfg, name)}.")
    accelerate = require("accelerate", extra="examples", what="an example")
    accelerate.utils.set_seed(cfg.seed)
    unused = accelerate.DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = accelerate.Accelerator(
        cpu=cfg.device == "cpu",
        mixed_precision=cfg.mixed_precision,
        log_with="tensorboard",
        project_dir=cfg.output,
        kwargs_handlers=[unused],
    )
    if not cfg.predict:
        accelerator.init_trackers("log")
    return accelerator
