"""Masks that another method made of the training images: what a second one starts from."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._numerics import first_argmax
from wsss_blocks.data import WeakDataset, WithPseudoMasks, write_mask
from wsss_blocks.distributed import gather_objects, rank, world_size
from wsss_blocks.segmenters import Segmenter

__all__ = ["with_masks", "write_train_masks"]


def with_masks(
    dataset: WeakDataset,
    masks: str | Path,
    *,
    output: Path,
    device: torch.device | str = "cpu",
) -> WithPseudoMasks:
    """Add masks to training images, from a folder or by the segmenter of another run.

    Args:
        dataset: labelled images.
        masks: a folder for :class:`~wsss_blocks.data.WithPseudoMasks`, or the
            ``segmenter.safetensors`` of a run, whose masks (:func:`write_train_masks`) go to
            ``output/initial_masks``.
        output: folder of this run.
        device: where a segmenter runs.

    Returns:
        The data set; errors are those of what it calls.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.data import Scenes
        >>> scenes = Scenes(size=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_mask(f"{folder}/{scenes.ids[0]}.png", torch.ones(96, 96, dtype=torch.uint8))
        ...     len(with_masks(scenes, folder, output=Path(folder)))
        1
    """
    folder = Path(masks)
    if folder.suffix == ".safetensors":
        segmenter = Segmenter.load(folder, device=device)
        folder = write_train_masks(segmenter, dataset, output / "initial_masks", device=device)
        gather_objects(rank())  # all are written
    return WithPseudoMasks(dataset, folder)


def write_train_masks(
    source: Segmenter | Callable[[Mapping[str, Any]], Tensor],
    dataset: WeakDataset,
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
) -> Path:
    """Make the masks of labelled images, one file ``ID.png`` each.

    Files that are there already stay: an interrupted run goes on. In a process group each process
    writes its share; wait for the others before reading.

    Args:
        source: a trained segmenter, asked among the classes of each image's labels; or what makes
            ids ``(H, W)`` of a sample.
        dataset: its samples have ``labels``; masks are not read.
        folder: made if need be.
        device: where the segmenter is.

    Returns:
        The folder, for :class:`~wsss_blocks.data.WithPseudoMasks`.

    Raises:
        ValueError: the segmenter knows other classes than the data set.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.cli import RunConfig, run_segmenter
        >>> from wsss_blocks.data import Scenes
        >>> from wsss_blocks.segmenters import SegmentationNetwork
        >>> scenes, network = Scenes(size=2), SegmentationNetwork(num_classes=11, hidden_dim=8)
        >>> segmenter = run_segmenter(RunConfig(), network, scenes.names)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(p.name for p in write_train_masks(segmenter, scenes, folder).iterdir())
        ['train_00000.png', 'train_00001.png']
    """
    folder = Path(folder)
    if isinstance(source, Segmenter):
        if tuple(source.names) != tuple(dataset.names):
            raise ValueError(
                f"source must know the classes of the data set {tuple(dataset.names[:3])}..., "
                f"got {tuple(source.names[:3])}..."
            )
        source = partial(_among, source.eval(), device=device)
    for index in range(rank(), len(dataset), world_size()):
        path = folder / f"{dataset.ids[index]}.png"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mask(path, source(dataset[index]))
    return folder


@torch.no_grad()
def _among(
    segmenter: Segmenter, sample: Mapping[str, Any], *, device: torch.device | str
) -> Tensor:
    logits: Tensor = segmenter(sample["image"][None].to(device))
    allowed = F.pad(sample["labels"] > 0, (1, 0), value=True).to(device)
    return first_argmax(logits.masked_fill(~allowed[:, None, None], -torch.inf), 1)[0]
