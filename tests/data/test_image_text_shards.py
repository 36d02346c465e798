import pickle
import sys
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from shard_writing import encoded, noise, pair, write_shards, write_tar

from wsss_blocks.data import (
    Compose,
    ImageTextShards,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ShardList,
    collate,
    find_shards,
    read_image,
    shard_loader,
)
from wsss_blocks.data._pairs import REASONS
from wsss_blocks.data._shard_order import check_weights, draw_shards

SIZES = [7, 12, 9, 10, 3, 11, 8, 5]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return find_shards(write_shards(tmp_path_factory.mktemp("pairs"), SIZES))


def with_broken(folder, *, sound=20):
    """One sample of each kind of fault between sound ones."""
    cut = noise()
    faults = {
        "no image": pair("900000000", jpg=None),
        "no caption": pair("900000001", txt=None),
        "empty caption": pair("900000002", text=b" \n\t&nbsp; "),
        "broken image": pair("900000003", image=cut[: len(cut) // 2])
        | pair("900000004", image=b"<html>gone</html>")
        | pair("900000005", image=b""),
    }
    for shard in range(2):
        members = {}
        for i in range(sound):
            members |= pair(f"{shard}{i:08d}")
            if i == 5:
                for members_of_fault in faults.values():
                    members |= members_of_fault
        write_tar(folder / f"{shard}.tar", members)
    return find_shards(folder)


def ids(batches):
    return [[sample["id"] for sample in batch] for batch in batches]


def flat(batches):
    return [name for batch in ids(batches) for name in batch]


def streams(shards, **options):
    return [ImageTextShards(shards, rank=r, world_size=2, **options) for r in range(2)]


def same(a, b):
    assert a.keys() == b.keys()
    for key in a.keys() - {"geometry"}:
        assert torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key]
    assert torch.equal(a["geometry"].matrix, b["geometry"].matrix)


# --- samples ----------------------------------------------------------------------------------


def test_a_sample(tmp_path):
    text = "  Tom &amp; Jerry\n &#39;run&#39;\taway é ".encode()
    data = noise()
    write_tar(tmp_path / "7.tar", pair("000000012", image=data, text=text))
    (tmp_path / "a.jpg").write_bytes(data)
    ((sample,),) = ImageTextShards(find_shards(tmp_path), batch_size=1)
    assert sample["id"] == "7/000000012"
    assert sample["caption"] == "Tom & Jerry 'run' away é"
    assert sample.keys() == {"id", "image", "box", "geometry", "caption"}
    assert torch.equal(sample["image"], read_image(tmp_path / "a.jpg"))
    assert sample["box"].tolist() == [0, 0, 48, 64]


@pytest.mark.parametrize(
    ("mode", "format"), [("CMYK", "JPEG"), ("P", "PNG"), ("L", "JPEG"), ("RGBA", "WEBP")]
)
def test_images_of_any_kind_become_rgb(tmp_path, mode, format):
    members = {f"1.{format.lower()}": encoded(100, mode=mode, format=format), "1.txt": b"grey"}
    write_tar(tmp_path / "a.tar", {k.replace("jpeg", "jpg"): v for k, v in members.items()})
    pairs = ImageTextShards(find_shards(tmp_path), batch_size=1)
    ((sample,),) = pairs
    assert sample["image"].shape == (3, 4, 6)
    assert (sample["image"] * 255 - 100).abs().max() < 4
    assert sum(pairs.skipped.values()) == 0


def test_large_jpegs_are_decoded_smaller(tmp_path):
    write_tar(tmp_path / "a.tar", pair("1", image=encoded(9, size=(640, 330))))
    shards = find_shards(tmp_path)
    for side, size in ((None, (330, 640)), (160, (165, 320)), (166, (330, 640)), (20, (42, 80))):
        ((sample,),) = ImageTextShards(shards, batch_size=1, short_side=side)
        assert sample["image"].shape[1:] == size


@pytest.mark.parametrize("mode", ["exact", "resampled"])
def test_broken_samples_are_skipped_and_counted(tmp_path, mode):
    shards = with_broken(tmp_path)
    assert shards.counts == (25, 25)
    options = {"mode": mode, "batch_size": 5}
    pairs = ImageTextShards(shards, **options)
    found = flat(pairs)
    assert not [name for name in found if "/9" in name]
    assert pairs.epoch_steps == 10
    assert len(found) == 50
    if mode == "exact":  # all 40 sound ones, then ten from the start once more
        assert len(set(found[:40])) == 40
        assert len(set(found)) == 40
        whole = ImageTextShards(shards, **(options | {"batch_size": 4}), steps=10)
        list(whole)
        expected = dict(zip(REASONS, (2, 2, 2, 6, 0), strict=True))
        assert whole.skipped == expected
    else:
        assert all(pairs.skipped[reason] > 0 for reason in REASONS[:4])
    assert pickle.loads(pickle.dumps(pairs)).skipped == pairs.skipped


def test_counts_of_workers_are_gathered(tmp_path):
    shards = with_broken(tmp_path)
    loader = shard_loader(shards, RandomResizedCrop(4), batch_size=4, workers=2, mode="exact")
    assert len(loader) == 12  # 25 // 4 of each worker
    assert len(list(loader)) == 12
    # Each worker has 20 sound samples and 24 places, so it reads a part of its shard again.
    counts = loader.dataset.skipped
    assert counts["no image"] >= 2
    assert counts["broken image"] >= 6
    assert counts["broken archive"] == 0


@pytest.mark.parametrize("within", ["data", "header"])
def test_an_archive_that_ends_too_soon_is_passed_over(tmp_path, within):
    shards = find_shards(write_shards(tmp_path, [10, 10]))
    path = shards.paths[0]
    with tarfile.open(path) as tar:
        member = tar.getmember("000000004.jpg")
    at = member.offset_data if within == "data" else member.offset
    path.write_bytes(path.read_bytes()[: at + 100])
    pairs = ImageTextShards(shards, batch_size=2, mode="exact")
    found = flat(pairs)
    assert len(found) == 20
    sound = {f"00000/{i:09d}" for i in range(4)} | {f"00001/{i:09d}" for i in range(10, 20)}
    assert set(found) == set(found[:14]) == sound
    # Python's tarfile takes a header that is cut for the end of the archive.
    assert (pairs.skipped["broken archive"] > 0) == (within == "data")


@pytest.mark.parametrize("mode", ["exact", "resampled"])
def test_nothing_usable_ends_with_an_error(tmp_path, mode):
    write_tar(
        tmp_path / "a.tar", {k: v for i in range(9) for k, v in pair(f"{i}", text=b"").items()}
    )
    pairs = ImageTextShards(find_shards(tmp_path), batch_size=2, mode=mode)
    with pytest.raises(ValueError, match=r"usable samples, got hardly any in .*'empty caption': 1"):
        list(pairs)


# --- which samples ----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_exact_ranks_share_an_epoch(shards, workers):
    options = {"batch_size": 3, "mode": "exact", "workers": workers}
    ranks = streams(shards, **options)
    found = [
        flat(torch.utils.data.DataLoader(r, batch_size=None, num_workers=workers)) for r in ranks
    ]
    assert len(found[0]) == len(found[1]) == 3 * ranks[0].epoch_steps == 3 * len(ranks[0])
    every = found[0] + found[1]
    assert len(set(every)) == len(every)
    assert len(every) + ranks[0].left_out == sum(SIZES)
    assert ranks[0].left_out == ranks[1].left_out < 3 * max(workers, 1) * 2 + 10
    assert f"leaves {ranks[0].left_out} samples out" in ranks[0].describe()
    assert f"{sum(SIZES)} samples in 8 shards" in ranks[0].describe()


def test_exact_epochs_hold_the_same_samples_in_other_orders(shards):
    pairs = ImageTextShards(shards, batch_size=5, mode="exact")
    assert pairs.epoch_steps == 13
    assert pairs.left_out == 0
    first = flat(pairs)
    assert len(set(first)) == 65
    pairs.set_epoch(1)
    second = flat(pairs)
    assert second != first
    assert sorted(second) == sorted(first)
    both = ImageTextShards(shards, batch_size=5, mode="exact", steps=26)
    assert flat(both) == first + second


def test_resampled_epochs(shards):
    pairs = ImageTextShards(shards, batch_size=4, steps=40)
    assert pairs.epoch_steps == 65 // 4
    assert pairs.left_out == 0
    found = ids(pairs)
    assert len(found) == len(pairs) == 40
    for epoch in range(2):
        pairs.set_epoch(epoch)
        assert ids(pairs) == found[16 * epoch : 16 * (epoch + 1)]
    assert found[:16] != found[16:32]
    one, other = (ids(r) for r in streams(shards, batch_size=4))
    assert len(one) == len(other) == 65 // 8
    assert one != other


def test_resampling_reaches_all_samples_alike(shards):
    pairs = ImageTextShards(shards, batch_size=8, steps=500, buffer=16)
    counts = Counter(flat(pairs))
    assert len(counts) == 65
    mean = 4000 / 65
    assert 0.5 * mean < min(counts.values()) <= max(counts.values()) < 1.6 * mean


@pytest.mark.parametrize("weights", [None, (1, 1), (3, 1), (0, 1)])
def test_weights_are_shares_of_samples(weights):
    large = ShardList(tuple(Path(f"large/{i}") for i in range(8)), tuple(SIZES))
    small = ShardList(tuple(Path(f"small/{i}") for i in range(10)), (2,) * 10)
    sources, count = (large, small), dict(zip(*large, strict=True)) | dict(zip(*small, strict=True))
    weights = check_weights(weights, sources)
    drawn = list(islice(draw_shards(sources, weights, np.random.default_rng(0)), 4000))
    share = sum(count[path] for path in drawn if path in small.paths) / sum(map(count.get, drawn))
    assert share == pytest.approx(weights[1] / sum(weights), abs=0.02)
    assert set(drawn) == {*small.paths, *(large.paths if weights[0] else ())}


def test_sources_mix(shards, tmp_path):
    other = find_shards(write_shards(tmp_path, [2] * 10, first=1000))
    found = flat(ImageTextShards((shards, other), batch_size=10))
    assert len(found) == 80
    assert 0 < sum("/000001" in name for name in found) < 80
    alone = flat(ImageTextShards((shards, other), batch_size=10, weights=(0, 1)))
    assert all("/000001" in name for name in alone)
    assert len(alone) == 80


def test_the_buffer_shuffles(shards):
    one = ImageTextShards(find_shards(shards.paths[1]), batch_size=12, buffer=1)
    assert flat(one) == [f"00001/{i:09d}" for i in range(7, 19)]
    mixed = ImageTextShards(find_shards(shards.paths[1]), batch_size=12, mode="exact")
    assert sorted(flat(mixed)) == flat(one) != flat(mixed)


# --- what decides -----------------------------------------------------------------------------

AUGMENT = Compose(RandomResizedCrop(4, scale=(0.3, 1.0)), RandomHorizontalFlip())


@pytest.mark.parametrize("mode", ["exact", "resampled"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_gives_the_same_batches(tmp_path, mode, workers):
    shards = with_broken(tmp_path)
    options = {"batch_size": 4, "steps": 29, "workers": workers, "mode": mode, "buffer": 10}
    whole = list(shard_loader(shards, AUGMENT, seed=3, **options))
    assert len(whole) == 29
    torch.manual_seed(0)
    for start in (0, 1, 7, 12, 13, 28, 29):
        rest = shard_loader(shards, AUGMENT, seed=3, start=start, **options)
        found = list(rest)
        assert len(found) == len(rest) == 29 - start
        for a, b in zip(found, whole[start:], strict=True):
            same(a, b)
    other = next(iter(shard_loader(shards, AUGMENT, seed=4, **options)))
    assert other["id"] != whole[0]["id"] or not torch.equal(other["image"], whole[0]["image"])


def test_augmentations_differ_between_draws_of_a_sample(tmp_path):
    write_tar(tmp_path / "a.tar", pair("1", image=noise()))
    pairs = ImageTextShards(find_shards(tmp_path), AUGMENT, batch_size=1, steps=12)
    images = [sample["image"].numpy().tobytes() for (sample,) in pairs]
    assert len(set(images)) == len(images) == 12


def test_loading_leaves_the_global_generator_alone(shards):
    state = torch.get_rng_state()
    for workers in (0, 2):
        loader = shard_loader(shards, AUGMENT, batch_size=2, steps=3, workers=workers)
        assert [batch["image"].shape for batch in loader] == [(2, 3, 4, 4)] * 3
    assert torch.equal(torch.get_rng_state(), state)


def test_the_loader_is_the_data_set_collated(shards):
    pairs = ImageTextShards(shards, AUGMENT, batch_size=3)
    loader = shard_loader(shards, AUGMENT, batch_size=3)
    for expected, batch in zip(pairs, loader, strict=True):
        same(collate(expected), batch)


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exact", "resampled"])
def test_too_few_shards_say_how_many_are_needed(shards, mode):
    options = {"batch_size": 1, "mode": mode, "rank": 0}
    ImageTextShards(shards, workers=4, world_size=2, **options)
    with pytest.raises(
        ValueError, match="at least 12 shards, one for each of 4 workers in 3 processes, got 8"
    ):
        ImageTextShards(shards, workers=4, world_size=3, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 66}, ValueError, "batch_size must be at most 65, got 66"),
        ({"mode": "exact", "workers": 8}, ValueError, "batch_size must be at most 3, got 4"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"start": 17}, ValueError, r"start must be in \[0, 16\], got 17"),
        ({"start": -1}, ValueError, "start must be at least 0"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"buffer": 0}, ValueError, "buffer must be at least 1"),
        ({"short_side": 0}, ValueError, "short_side must be at least 1"),
        ({"workers": 1.5}, TypeError, "workers must be an int, got 1.5"),
        ({"mode": "once"}, ValueError, "mode must be one of 'resampled', 'exact', got 'once'"),
        ({"rank": 2, "world_size": 2}, ValueError, r"rank must be in \[0, 2\), got 2"),
        ({"weights": [1, 2]}, ValueError, r"weights must be 1 numbers >= 0.* got \[1, 2\]"),
        ({"weights": [0]}, ValueError, "weights must be 1 numbers >= 0, one per source and not"),
        ({"weights": [-1]}, ValueError, "weights must be 1 numbers >= 0"),
        ({"weights": ["a"]}, TypeError, "weights must be a number, got 'a'"),
        ({"weights": [1], "mode": "exact"}, ValueError, "weights must be None in exact mode"),
    ],
)
def test_wrong_settings(shards, options, error, message):
    with pytest.raises(error, match=message):
        ImageTextShards(shards, **{"batch_size": 4, **options})


def test_wrong_sources_and_workers(shards):
    for sources in ([], [shards, "x"], "folder"):
        with pytest.raises(ValueError, match="sources must be lists of shards from find_shards"):
            ImageTextShards(sources, batch_size=1)
    with pytest.raises(ValueError, match="epoch must be at least 0"):
        ImageTextShards(shards, batch_size=1).set_epoch(-1)
    with pytest.raises(ValueError, match="workers must be 2 as announced, got 1"):
        next(iter(ImageTextShards(shards, batch_size=1, workers=2)))


def test_a_missing_webdataset_is_named(shards, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset.tariterators", None)
    with pytest.raises(ImportError, match=r"ImageTextShards needs .*wsss-blocks\[webdata\]"):
        list(ImageTextShards(shards, batch_size=1))


def test_errors_of_transforms_come_through(shards):
    def fail(sample, generator):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(ImageTextShards(shards, fail, batch_size=1))
