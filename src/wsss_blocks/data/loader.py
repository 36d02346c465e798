"""The loader of a training run: augmented batches that depend on the seed and the step alone."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wsss_blocks._validate import check_int
from wsss_blocks.data.maps import WithMaps
from wsss_blocks.data.sample import SampleSource, Transform, collate
from wsss_blocks.data.sampling import Augmented, StepSampler
from wsss_blocks.distributed import rank, world_size

__all__ = ["step_loader"]


def step_loader(
    dataset: SampleSource,
    transform: Transform,
    *,
    batch_size: int,
    steps: int,
    start: int = 0,
    seed: int = 0,
    workers: int = 0,
    maps: Mapping[str, Sequence[Tensor]] | None = None,
    map_sizes: Mapping[str, tuple[int, int]] = MappingProxyType({}),
) -> DataLoader[dict[str, Any]]:
    """Load the batches of the steps ``start, ..., steps - 1`` for this process of the group.

    :class:`StepSampler` orders and seeds, :class:`Augmented` transforms, :func:`collate` stacks:
    the batches after a resume at ``start`` are those of an uninterrupted run, with any number of
    workers.

    Args:
        dataset: samples.
        transform: random augmentation.
        batch_size: samples per step and process.
        steps: number of steps of the whole run.
        start: first step to load.
        seed: a non-negative number.
        workers: processes that load; 0 loads in this one.
        maps: cached maps of each image, which follow its augmentation: see :class:`WithMaps`.
        map_sizes: its ``sizes``: the grids of maps that differ in size.

    Returns:
        An iterable of ``steps - start`` batches.

    Raises:
        ValueError: as :class:`StepSampler`.

    Example:
        >>> from wsss_blocks.data import Scenes, training_transform
        >>> loader = step_loader(Scenes(), training_transform(96), batch_size=2, steps=3, start=1)
        >>> [tuple(batch["image"].shape) for batch in loader]
        [(2, 3, 96, 96), (2, 3, 96, 96)]
    """
    check_int("workers", workers, least=0)
    sampler = StepSampler(
        len(dataset),
        batch_size=batch_size,
        steps=steps,
        start=start,
        seed=seed,
        rank=rank(),
        world_size=world_size(),
    )
    augmented = Augmented(dataset, transform)
    samples: Dataset[Any] = augmented
    if maps is not None:
        samples = WithMaps(augmented, maps, sizes=map_sizes)
    return DataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        # Otherwise each iterator draws from the global generator, and what a model draws after a
        # resume (dropout) is not what the uninterrupted run drew.
        generator=torch.Generator().manual_seed(seed),
    )
