"""What every training example can be told, and how its process starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wsss_blocks._optional import require
from wsss_blocks.data import WeakDataset, open_dataset

__all__ = ["RunConfig", "open_data", "start_run"]


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

    data: Literal["scenes", "voc", "folder"] = "scenes"
    preset: str = "scenes"  # named hyper-parameters, by default those named like the data
    root: Path | None = None  # voc: the VOCdevkit; folder: images/, labels.json and, if any, masks/
    split: str = "train"  # id list of VOC's training images; the papers' is train_aug
    output: Path = Path("runs/last")
    resume: bool = False  # continue from the last checkpoint in OUTPUT
    seed: int = 0
    device: Literal["auto", "cpu"] = "auto"  # auto: GPUs where there are some
    predict: tuple[Path, ...] = ()  # segment these images with the network in OUTPUT, and stop
    # optimisation
    steps: int = 1000
    batch_size: int = 16  # of each process
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 50  # steps
    workers: int = 0  # processes that load images
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    compile: bool = False
    save_every: int = 500  # steps between checkpoints
    # evaluation
    evaluate: bool = True  # at the end; needs masks
    eval_every: int = 0  # and every so many steps; 0: only at the end
    eval_images: int = 200  # training images whose masks choose the thresholds
    threshold: float = 0.4  # where there are no training masks


def open_data(cfg: RunConfig, split: str, *, with_masks: bool = False) -> WeakDataset:
    """Open the training or validation images that a configuration names.

    Args:
        cfg: of the run.
        split: ``"train"`` (of VOC the list ``cfg.split``) or ``"val"``.
        with_masks: for evaluation.

    Returns:
        The data set; errors are those of :func:`wsss_blocks.data.open_dataset`.

    Example:
        >>> len(open_data(RunConfig(), "val"))
        200
    """
    name = cfg.split if (cfg.data, split) == ("voc", "train") else split
    return open_dataset(cfg.data, name, root=cfg.root, with_masks=with_masks)


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
    for name in ("steps", "batch_size", "save_every"):
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
