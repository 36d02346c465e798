"""Stream image-text pairs from tar shards: exact numbers, exact resumption, nothing that hangs."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import Literal

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from wsss_blocks import distributed
from wsss_blocks._validate import check_choice, check_int
from wsss_blocks.data._pairs import REASONS, RawPair, decode_pair
from wsss_blocks.data._shard_order import (
    check_weights,
    deal_shards,
    draw_shards,
    mixed_pairs,
    repeat_shards,
)
from wsss_blocks.data.sample import Sample, Transform
from wsss_blocks.data.shards import ShardList

__all__ = ["ImageTextShards"]

SHARDS, DRAW = 0, 1
Pairs = Iterator[tuple[int, RawPair]]


class ImageTextShards(IterableDataset[list[Sample]]):
    r"""Give the batches of the steps ``start, ..., steps - 1`` as lists of samples.

    Samples have ``image``, ``id`` (shard and key) and ``caption``, with HTML entities resolved and
    white space tidied. Use it through :func:`shard_loader`. Process r of R with W workers has W
    streams; step t of an epoch is the next batch of stream :math:`t \bmod W`, a pure function of
    ``(seed, epoch, rank, stream, t)``. Each process has the same number of batches per epoch,
    ``epoch_steps``, all of them full, so that distributed training cannot hang.

    - ``"resampled"`` (training): each stream draws shards with replacement and reads them through a
      shuffle buffer. An epoch is as many samples as there are; not each one comes up. In place of a
      broken sample a batch gets one that the stream gives a little later, and gives again then.
    - ``"exact"``: a sample comes up at most once per epoch. Shards are dealt to the streams by
      size; a stream ends with the last full batch that all others have, too, which leaves
      ``left_out`` samples out. Broken samples are passed over; a stream that they make too short
      is filled up from its beginning.

    To resume, pass the number of finished steps as ``start``, with the same seed, batch size,
    workers and processes. The samples of the running epoch up to there are read again but not
    decoded (in exact mode decoded, too): at most as long as the disk takes to read one epoch.

    Args:
        sources: shards from :func:`find_shards`, of one or several data sets.
        transform: random augmentation; it must bring images to one size for :func:`collate`.
        batch_size: samples per step and process.
        steps: number of steps of the whole run; None: one epoch.
        start: first step.
        seed: a non-negative number.
        workers: processes that load; 0 loads in this one. Each reads another stream.
        mode: ``"resampled"`` or ``"exact"``.
        weights: share of the samples that comes from each source, in resampled mode; None: their
            sizes, so that all samples are equally likely.
        buffer: undecoded samples that a stream holds to shuffle them.
        short_side: decode JPEGs that are at least twice as large at 1/2, 1/4 or 1/8 of their size,
            with both sides still at least this long; None: as they are.
        rank: number of this process; None: that of the process group.
        world_size: number of processes; None: that of the process group.

    Raises:
        ValueError: fewer shards than streams of all processes, a batch that is larger than a
            stream, weights that do not fit, or a number out of range. While reading: another number
            of workers than announced, or hardly any sample that can be used.
        ImportError: webdataset or pillow is not installed.

    Example:
        >>> import tempfile, webdataset
        >>> from wsss_blocks.data import find_shards
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with webdataset.TarWriter(f"{folder}/0.tar") as tar:
        ...         for key in "abcde":
        ...             black = np.zeros((8, 8, 3), np.uint8)
        ...             _ = tar.write({"__key__": key, "jpg": black, "txt": f"caption {key}"})
        ...     pairs = ImageTextShards(find_shards(folder), batch_size=2, mode="exact")
        ...     sorted(sample["id"] for batch in pairs for sample in batch), pairs.left_out
        (['0/a', '0/c', '0/d', '0/e'], 1)
    """

    def __init__(
        self,
        sources: ShardList | Sequence[ShardList],
        transform: Transform | None = None,
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
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.sources = _checked_sources(sources)
        self.rank = distributed.rank() if rank is None else rank
        self.world_size = distributed.world_size() if world_size is None else world_size
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("start", start, 0),
            ("seed", seed, 0),
            ("workers", workers, 0),
            ("buffer", buffer, 1),
            ("short_side", 1 if short_side is None else short_side, 1),
            ("world_size", self.world_size, 1),
            ("rank", self.rank, 0),
        ):
            check_int(name, value, least=least)
        check_choice("mode", mode, ("resampled", "exact"))
        if self.rank >= self.world_size:
            raise ValueError(f"rank must be in [0, {self.world_size}), got {self.rank}.")
        self.transform, self.batch_size, self.seed, self.mode = transform, batch_size, seed, mode
        self.short_side, self.streams = short_side, max(workers, 1)
        if mode == "exact" and weights is not None:
            raise ValueError(f"weights must be None in exact mode, got {weights}.")
        self._weights = check_weights(weights, self.sources)
        self._check_shards()
        hands = self.world_size * self.streams
        self._dealt = deal_shards(self.sources, hands, self._random(SHARDS))
        self.epoch_steps = self._epoch_steps()
        self.buffer = min(buffer, self.samples)
        self.start, self.steps = start, self.epoch_steps if steps is None else steps
        check_int("steps", self.steps, least=1)
        if start > self.steps:
            raise ValueError(f"start must be in [0, {self.steps}], got {start}.")
        # Each worker writes a row of its own, so that no count is lost.
        self._skipped = torch.zeros(self.streams, len(REASONS), dtype=torch.int64)
        self._skipped.share_memory_()  # type: ignore[no-untyped-call]
        self._worker = 0

    def __len__(self) -> int:
        return self.steps - self.start

    @property
    def samples(self) -> int:
        """Number of samples in all shards, broken ones included."""
        return sum(source.samples for source in self.sources)

    @property
    def left_out(self) -> int:
        """Number of samples that no process gets in an epoch of exact mode; 0 if resampled."""
        if self.mode == "resampled":
            return 0
        return self.samples - self.epoch_steps * self.batch_size * self.world_size

    @property
    def skipped(self) -> dict[str, int]:
        """Reason -> number of draws that this process and its workers skipped until now."""
        return dict(zip(REASONS, self._skipped.sum(0).tolist(), strict=True))

    def describe(self) -> str:
        """Say in a line what an epoch is, for the start of a run."""
        shards = sum(len(source.paths) for source in self.sources)
        return (
            f"{self.samples} samples in {shards} shards; an epoch ({self.mode}) is "
            f"{self.epoch_steps} batches of {self.batch_size} in each of {self.world_size} "
            f"processes and leaves {self.left_out} samples out"
        )

    def set_epoch(self, epoch: int) -> None:
        """Give the steps of this epoch, counted from 0, from now on."""
        check_int("epoch", epoch, least=0)
        self.start, self.steps = epoch * self.epoch_steps, (epoch + 1) * self.epoch_steps

    def __iter__(self) -> Iterator[list[Sample]]:
        info = get_worker_info()
        self._worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if workers != self.streams:
            raise ValueError(f"workers must be {self.streams} as announced, got {workers}.")
        epoch = -1
        batches: Iterator[list[Sample]] = iter(())
        for step in range(self.start + self._worker, self.steps, workers):
            if step // self.epoch_steps != epoch:
                epoch, done = divmod(step, self.epoch_steps)
                batches = self._batches(epoch, done % workers, skip=done // workers)
            yield next(batches)

    def _batches(self, epoch: int, stream: int, *, skip: int) -> Iterator[list[Sample]]:
        me = (epoch, self.rank * self.streams + stream)
        random = self._random(SHARDS, *me)
        mix = partial(mixed_pairs, random=random, buffer=self.buffer, skipped=self._count)
        if self.mode == "exact":
            passes = map(mix, map(iter, repeat_shards(self._dealt[me[1]].paths, random)))
            batches = self._once(enumerate(chain.from_iterable(passes)), me)
            return islice(batches, skip, None)
        pairs = enumerate(mix(draw_shards(self.sources, self._weights, random)))
        return self._replaced(islice(pairs, skip * self.batch_size, None), me)

    def _replaced(self, pairs: Pairs, me: tuple[int, int]) -> Iterator[list[Sample]]:
        """Move on by ``batch_size`` pairs per batch, whatever is broken: resuming needs no look."""
        made: list[Sample | None] = []
        while True:
            while sum(sample is not None for sample in made) < self.batch_size:
                made.append(self._decoded(next(pairs), me))
                if len(made) > 100 + 20 * self.batch_size:
                    raise ValueError(_unusable(len(made), self.skipped))
            yield [sample for sample in made if sample is not None][: self.batch_size]
            made = made[self.batch_size :]

    def _once(self, pairs: Pairs, me: tuple[int, int]) -> Iterator[list[Sample]]:
        batch: list[Sample] = []
        tried = 0
        for pair in pairs:
            sample = self._decoded(pair, me)
            tried += 1
            if sample is not None:
                batch.append(sample)
            elif tried > 2 * self.samples:
                raise ValueError(_unusable(tried, self.skipped))
            if len(batch) == self.batch_size:
                yield batch
                batch, tried = [], 0

    def _decoded(self, numbered: tuple[int, RawPair], me: tuple[int, int]) -> Sample | None:
        number, pair = numbered
        sample = decode_pair(pair, short_side=self.short_side)
        if isinstance(sample, str):
            self._count(sample)
            return None
        if self.transform is None:
            return sample
        seed = int(self._random(DRAW, *me, number).integers(2**63))
        return self.transform(sample, torch.Generator().manual_seed(seed))

    def _count(self, reason: str) -> None:
        self._skipped[self._worker, REASONS.index(reason)] += 1

    def _random(self, *purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, *purpose))))

    def _epoch_steps(self) -> int:
        if self.mode == "exact":
            most = min(hand.samples for hand in self._dealt)
            steps = self.streams * (most // self.batch_size)
        else:
            most = self.samples // self.world_size
            steps = most // self.batch_size
        if steps < 1:
            raise ValueError(f"batch_size must be at most {most}, got {self.batch_size}.")
        return steps

    def _check_shards(self) -> None:
        wanted, found = self.world_size * self.streams, sum(len(s.paths) for s in self.sources)
        if found < wanted:
            raise ValueError(
                f"sources must hold at least {wanted} shards, one for each of {self.streams} "
                f"workers in {self.world_size} processes, got {found}: use fewer workers or cut "
                "the data into more shards."
            )


def _checked_sources(sources: ShardList | Sequence[ShardList]) -> tuple[ShardList, ...]:
    given = (sources,) if isinstance(sources, ShardList) else tuple(sources)
    if not given or not all(isinstance(source, ShardList) and source.samples for source in given):
        raise ValueError(f"sources must be lists of shards from find_shards, got {sources!r}.")
    return given


def _unusable(tried: int, skipped: dict[str, int]) -> str:
    return f"shards must hold usable samples, got hardly any in {tried}: skipped {skipped}."
