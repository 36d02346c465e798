"""The loader of a training run on tar shards of image-text pairs."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, IterableDataset

from wsss_blocks.data.image_text_shards import ImageTextShards
from wsss_blocks.data.sample import Transform, collate
from wsss_blocks.data.shards import ShardList

__all__ = ["shard_loader"]


def shard_loader(
    sources: ShardList | Sequence[ShardList],
    transform: Transform,
    *,
    batch_size: int,
    steps: int | None = None,
    start: int = 0,
    seed: int = 0,
    workers: int = 0,
    mode: Literal["resampled", "exact"] = "resampled",
    weights: Sequence[float] | None = None,
    buffer: int = 1000,
    short_side: int | None = None,
) -> DataLoader[dict[str, Any]]:
    """Load batches of :class:`ImageTextShards`, collated, for this process of the group.

    Args:
        sources: shards from :func:`find_shards`, of one or several data sets.
        transform: random augmentation that ends with one size, as :class:`RandomResizedCrop`.
        batch_size: samples per step and process.
        steps: number of steps of the whole run; None: one epoch.
        start: first step to load.
        seed: a non-negative number.
        workers: processes that load; 0 loads in this one.
        mode: ``"resampled"`` or ``"exact"``.
        weights: share of the samples that comes from each source.
        buffer: undecoded samples that a stream holds to shuffle them.
        short_side: decode large JPEGs at a part of their size.

    Returns:
        An iterable of ``steps - start`` batches; its ``dataset`` is the :class:`ImageTextShards`,
        with ``skipped`` and ``describe()``.

    Raises:
        ValueError: as :class:`ImageTextShards`.

    Example:
        >>> import tempfile, webdataset
        >>> import numpy as np
        >>> from wsss_blocks.data import RandomResizedCrop, find_shards
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with webdataset.TarWriter(f"{folder}/0.tar") as tar:
        ...         for key in "abcde":
        ...             black = np.zeros((8, 8, 3), np.uint8)
        ...             _ = tar.write({"__key__": key, "jpg": black, "txt": f"caption {key}"})
        ...     loader = shard_loader(find_shards(folder), RandomResizedCrop(4), batch_size=2)
        ...     [(tuple(batch["image"].shape), len(batch["caption"])) for batch in loader]
        [((2, 3, 4, 4), 2), ((2, 3, 4, 4), 2)]
    """
    dataset = ImageTextShards(
        sources,
        transform,
        batch_size=batch_size,
        steps=steps,
        start=start,
        seed=seed,
        workers=workers,
        mode=mode,
        weights=weights,
        buffer=buffer,
        short_side=short_side,
    )
    batches: IterableDataset[Any] = dataset  # of lists, which collate_fn turns into dictionaries
    return DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        collate_fn=collate,
        # As in step_loader: the global generator is the model's.
        generator=torch.Generator().manual_seed(seed),
    )
