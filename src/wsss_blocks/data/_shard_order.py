"""Which shards a stream of image-text pairs reads, and in which order their samples come."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from wsss_blocks._validate import check_number, check_sequence
from wsss_blocks.data._pairs import RawPair, read_pairs
from wsss_blocks.data.shards import ShardList

__all__ = ["check_weights", "deal_shards", "draw_shards", "mixed_pairs", "repeat_shards"]


def deal_shards(
    sources: Sequence[ShardList], hands: int, random: np.random.Generator
) -> list[ShardList]:
    """Deal the shards so that all hands hold about as many samples, largest shards first."""
    shards = [shard for source in sources for shard in zip(*source, strict=True)]
    order = (shards[i] for i in random.permutation(len(shards)))
    dealt: list[list[tuple[Path, int]]] = [[] for _ in range(hands)]
    held = [0] * hands
    for path, count in sorted(order, key=lambda shard: -shard[1]):
        poorest = held.index(min(held))
        dealt[poorest].append((path, count))
        held[poorest] += count
    return [ShardList(*map(tuple, zip(*hand, strict=True))) for hand in dealt]


def repeat_shards(paths: Sequence[Path], random: np.random.Generator) -> Iterator[list[Path]]:
    """Give all shards in random order, again and again."""
    while True:
        yield [paths[i] for i in random.permutation(len(paths))]


def draw_shards(
    sources: Sequence[ShardList], weights: Sequence[float], random: np.random.Generator
) -> Iterator[Path]:
    """Draw shards with replacement so that the samples of sources have these weights."""
    # A shard is read whole: a source's share of samples is its draws times its mean count.
    shares = [w * len(s.paths) / s.samples for w, s in zip(weights, sources, strict=True)]
    chances = np.array(shares) / sum(shares)
    while True:
        paths = sources[int(random.choice(len(chances), p=chances))].paths
        yield paths[int(random.integers(len(paths)))]


def mixed_pairs(
    paths: Iterator[Path],
    random: np.random.Generator,
    *,
    buffer: int,
    skipped: Callable[[str], None],
) -> Iterator[RawPair]:
    """Read shards one after the other and shuffle their samples through a buffer."""
    held: list[RawPair] = []
    for path in paths:
        for pair in read_pairs(path, skipped):
            if len(held) < buffer:
                held.append(pair)
                continue
            place = int(random.integers(buffer))
            yield held[place]
            held[place] = pair
    yield from (held[i] for i in random.permutation(len(held)))


def check_weights(weights: Sequence[float] | None, sources: Sequence[ShardList]) -> list[float]:
    """Return the weights of sources, by default their sizes."""
    if weights is None:
        return [float(source.samples) for source in sources]
    check_sequence("weights", weights)
    for weight in weights:
        check_number("weights", weight)
    usable = all(0 <= weight < float("inf") for weight in weights) and sum(weights) > 0
    if len(weights) != len(sources) or not usable:
        raise ValueError(
            f"weights must be {len(sources)} numbers >= 0, one per source and not all 0, "
            f"got {weights}."
        )
    return [float(weight) for weight in weights]
