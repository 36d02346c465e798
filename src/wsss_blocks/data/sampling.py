"""Batches that depend on the seed and the step alone, so that a run resumes exactly anywhere."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from wsss_blocks._validate import check_int
from wsss_blocks.data.sample import Sample, SampleSource, Transform

__all__ = ["Augmented", "StepSampler"]

ORDER, DRAW = 0, 1


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Yield the batches of the steps ``start, ..., steps - 1`` as ``(index, draw_seed)`` pairs.

    The permutations of all epochs are laid end to end; step ``t`` takes the next
    ``batch_size * world_size`` of them and each rank its own slice. A batch may straddle two
    epochs; none is cut short. Together with :class:`Augmented`, which seeds its random numbers with
    ``draw_seed``, a batch is a pure function of ``(seed, step, rank)``: no state of a random number
    generator needs saving, and the number of workers does not matter.

    Args:
        length: number of samples in the data set.
        batch_size: samples per step and rank.
        steps: number of steps of the whole run.
        start: first step to yield, after a resume.
        seed: a non-negative number.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        ValueError: a count is not positive, ``start`` is not in ``[0, steps]``, ``rank`` is not in
            ``[0, world_size)`` or ``seed < 0``.

    Example:
        >>> batches = list(StepSampler(5, batch_size=2, steps=5))
        >>> sorted(index for batch in batches for index, _ in batch)
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        >>> list(StepSampler(5, batch_size=2, steps=5, start=3)) == batches[3:]
        True
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        steps: int,
        start: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for name, value in (
            ("length", length),
            ("batch_size", batch_size),
            ("steps", steps),
            ("world_size", world_size),
        ):
            check_int(name, value, least=1)
        for name, value in (("start", start), ("seed", seed), ("rank", rank)):
            check_int(name, value)
        if not 0 <= start <= steps:
            raise ValueError(f"start must be in [0, {steps}], got {start}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}.")
        if seed < 0:
            raise ValueError(f"seed must be >= 0, got {seed}.")
        self.length, self.batch_size, self.steps, self.start = length, batch_size, steps, start
        self.seed, self.rank, self.world_size = seed, rank, world_size

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, np.int64)
        for step in range(self.start, self.steps):
            first = (step * self.world_size + self.rank) * self.batch_size
            batch = []
            for position in range(first, first + self.batch_size):
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = self._stream(ORDER, epoch).permutation(self.length)
                draw_seed = int(self._stream(DRAW, position).integers(2**63))
                batch.append((int(order[position % self.length]), draw_seed))
            yield batch

    def _stream(self, purpose: int, number: int) -> np.random.Generator:
        sequence = np.random.SeedSequence((self.seed, purpose, number))
        return np.random.Generator(np.random.PCG64(sequence))


class Augmented(Dataset[Sample]):
    """Apply a transform to the samples of a data set, seeded by the sampler.

    Args:
        dataset: whatever has a length and gives a sample for an index.
        transform: a callable of ``(sample, generator)``.

    Raises:
        TypeError: it is indexed with anything but an ``(index, draw_seed)`` pair.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from wsss_blocks.data import RandomCrop, Scenes, collate
        >>> data = Augmented(Scenes(size=4), RandomCrop(64))
        >>> batches = StepSampler(len(data), batch_size=2, steps=3)
        >>> loader = DataLoader(data, batch_sampler=batches, collate_fn=collate)
        >>> [tuple(batch["image"].shape) for batch in loader]
        [(2, 3, 64, 64), (2, 3, 64, 64), (2, 3, 64, 64)]
    """

    def __init__(self, dataset: SampleSource, transform: Transform) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        if not isinstance(key, tuple) or len(key) != 2:
            raise TypeError(f"Augmented must be indexed with (index, draw_seed), got {key!r}.")
        index, draw_seed = key
        return self.transform(self.dataset[index], torch.Generator().manual_seed(draw_seed))
