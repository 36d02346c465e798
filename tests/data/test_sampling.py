import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from wsss_blocks.data import (
    Augmented,
    Compose,
    RandomCrop,
    RandomHorizontalFlip,
    RandomScale,
    Scenes,
    StepSampler,
    collate,
    new_sample,
)


@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 12), st.data())
def test_resume_gives_the_same_batches(length, batch_size, steps, data):
    start = data.draw(st.integers(0, steps))
    whole = list(StepSampler(length, batch_size=batch_size, steps=steps, seed=7))
    resumed = StepSampler(length, batch_size=batch_size, steps=steps, seed=7, start=start)
    assert list(resumed) == whole[start:]
    assert len(resumed) == steps - start
    assert list(resumed) == list(resumed)


@given(st.integers(1, 20), st.integers(1, 4), st.integers(1, 4), st.integers(1, 8))
def test_ranks_share_out_what_one_process_would_take(length, batch_size, world_size, steps):
    one = list(StepSampler(length, batch_size=batch_size * world_size, steps=steps))
    ranks = [
        list(StepSampler(length, batch_size=batch_size, steps=steps, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    shared = [[pair for part in parts for pair in part] for parts in zip(*ranks, strict=True)]
    assert shared == one


def test_each_epoch_is_another_permutation_and_seeds_differ():
    drawn = [i for batch in StepSampler(50, batch_size=10, steps=15) for i, _ in batch]
    epochs = [drawn[k : k + 50] for k in (0, 50, 100)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != list(range(50))
    seeds = [s for batch in StepSampler(50, batch_size=10, steps=15) for _, s in batch]
    assert len(set(seeds)) == 150
    assert all(0 <= s < 2**63 for s in seeds)
    other = [pair for batch in StepSampler(50, batch_size=10, steps=15, seed=1) for pair in batch]
    assert [i for i, _ in other] != drawn
    assert not set(seeds) & {s for _, s in other}


def test_the_stream_does_not_drift():
    first = next(iter(StepSampler(1000, batch_size=3, steps=1, seed=0)))
    assert first == [
        (459, 8206391887579712274),
        (206, 7827415078345261749),
        (222, 8132279761646769457),
    ]


def test_loader_with_workers_and_resume_is_bit_equal():
    data = Augmented(
        Scenes(size=6), Compose(RandomScale(0.7, 1.4), RandomHorizontalFlip(), RandomCrop(48))
    )

    def batches(workers, start=0):
        sampler = StepSampler(6, batch_size=2, steps=4, start=start)
        return list(
            DataLoader(data, batch_sampler=sampler, collate_fn=collate, num_workers=workers)
        )

    plain, parallel, resumed = batches(0), batches(2), batches(0, start=2)
    for a, b in zip(plain, parallel, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert a["id"] == b["id"]
    for a, b in zip(plain[2:], resumed, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["box"], b["box"])


def test_same_index_in_another_epoch_is_augmented_differently():
    data = Augmented(Scenes(size=1), RandomCrop(48))
    (a,), (b,) = StepSampler(1, batch_size=1, steps=2)
    assert a[0] == b[0] == 0
    assert not torch.equal(data[a]["image"], data[b]["image"])
    assert torch.equal(data[a]["image"], data[a]["image"])
    assert len(data) == 1


def test_sampling_errors():
    for arguments, message in (
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"world_size": 0}, "world_size must be at least 1"),
        ({"start": 6}, r"start must be in \[0, 5\], got 6"),
        ({"rank": 1}, r"rank must be in \[0, 1\), got 1"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
    ):
        given_ = {"length": 4, "batch_size": 2, "steps": 5, **arguments}
        with pytest.raises(ValueError, match=message):
            StepSampler(given_.pop("length"), **given_)
    with pytest.raises(TypeError, match=r"must be indexed with \(index, draw_seed\), got 3"):
        Augmented(Scenes(size=4), RandomCrop(4))[3]


def test_collate_stacks_nested_values_and_lists_the_rest():
    samples = []
    for name in "abc":
        sample = new_sample(torch.rand(3, 4, 6), id=name, labels=torch.tensor([1.0, 0.0]))
        sample["caption"] = name * 2
        sample["maps"] = {"cam": torch.rand(2, 2, 3)}
        sample["views"] = {"second": new_sample(torch.rand(3, 2, 2), id=name)}
        samples.append(sample)
    batch = collate(samples)
    assert batch["id"] == ["a", "b", "c"]
    assert batch["caption"] == ["aa", "bb", "cc"]
    assert batch["image"].shape == (3, 3, 4, 6)
    assert batch["labels"].shape == (3, 2)
    assert batch["box"].tolist() == [[0, 0, 4, 6]] * 3
    assert batch["geometry"].matrix.shape == (3, 2, 3)
    assert batch["geometry"].source_size.tolist() == [[4, 6]] * 3
    assert batch["maps"]["cam"].shape == (3, 2, 2, 3)
    assert batch["views"]["second"]["image"].shape == (3, 3, 2, 2)
    assert torch.equal(batch["image"][1], samples[1]["image"])


def test_collate_errors():
    one, other = (new_sample(torch.zeros(3, 4, w), id=f"w{w}") for w in (5, 6))
    with pytest.raises(
        ValueError, match=r"'image' of one shape, got \(3, 4, 5\) for 'w5' and \(3, 4, 6\) for 'w6'"
    ):
        collate([one, other])
    with pytest.raises(ValueError, match="samples must not be empty"):
        collate([])
    labelled = new_sample(torch.zeros(3, 4, 5), id="l", labels=torch.zeros(2))
    with pytest.raises(ValueError, match="same keys, but 'w5' and 'l' differ in labels"):
        collate([one, labelled])
    one["maps"], labelled = {"a": torch.zeros(1)}, new_sample(torch.zeros(3, 4, 5), id="m")
    labelled["maps"] = {"a": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"'maps.a' of one shape"):
        collate([one, labelled])
