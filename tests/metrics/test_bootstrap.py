import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import bootstrap as oracle
from strategies import generator, seeds

from wsss_blocks.metrics import ImageBootstrap
from wsss_blocks.metrics.bootstrap import _POISSON, _weights


def images(seed, count, classes, *, pixels=100):
    g = generator(seed)
    confusion = torch.randint(0, pixels, (count, classes, classes), generator=g)
    confusion *= torch.rand(count, classes, 1, generator=g) < 0.7
    return [f"image {i}" for i in range(count)], confusion


def counted(ids, confusion, **settings):
    bootstrap = ImageBootstrap(confusion.shape[-1], **settings)
    bootstrap.update(ids, confusion)
    return bootstrap


def test_the_table_of_weights_is_poisson():
    numbers = np.asarray(_POISSON, np.float64)
    assert abs(numbers.mean() - 1) < 1e-3
    assert abs(numbers.var() - 1) < 1e-3
    assert len(numbers) == 2**16
    for n in range(5):  # exact to the share of one entry
        expected = math.exp(-1) / math.factorial(n)
        assert abs((numbers == n).mean() - expected) <= 2 / 2**16
    # What the images really get, in 400,000 draws: five standard deviations are 0.008 and 0.014.
    drawn = np.stack([_weights(f"{i}", 0, 1000) for i in range(400)]).astype(np.float64)
    assert abs(drawn.mean() - 1) < 0.008
    assert abs(drawn.var() - 1) < 0.014
    # Neither images nor replicates are drawn together: four deviations of a mean of products.
    products = (drawn[:-1] - 1) * (drawn[1:] - 1)
    assert abs(products.mean()) < 4 / math.sqrt(products.size)
    products = (drawn[:, :-1] - 1) * (drawn[:, 1:] - 1)
    assert abs(products.mean()) < 4 / math.sqrt(products.size)


@settings(max_examples=12)
@given(
    seed=seeds,
    count=st.integers(1, 5),
    classes=st.integers(1, 4),
    absent=st.sampled_from(["both", "target"]),
)
def test_equals_loops(seed, count, classes, absent):
    ids, confusion = images(seed, count, classes)
    ids[0] = "Straße 猫/1"
    bootstrap = counted(ids, confusion, replicates=7, seed=seed, absent=absent)
    expected = oracle.counts(zip(ids, confusion.tolist(), strict=True), 7, seed, classes)
    assert bootstrap.counts.tolist() == expected
    found = bootstrap.compute()
    miou = [oracle.miou(*parts, absent) for parts in expected]
    assert found.replicates.tolist() == pytest.approx(miou, abs=1e-12, nan_ok=True)
    known = [v for v in miou if not math.isnan(v)]
    ends = np.quantile(known, [0.025, 0.975]) if known else [math.nan] * 2
    assert [found.low, found.high] == pytest.approx(list(ends), abs=1e-12, nan_ok=True)
    assert found.level == 0.95


def test_large_counts_are_exact():
    pixels = 2**31 + 1
    ids, confusion = ["a", "b"], torch.tensor([[[pixels, 1], [2, 3]], [[5, 7], [0, pixels]]])
    bootstrap = counted(ids, confusion, replicates=20)
    expected = oracle.counts(zip(ids, confusion.tolist(), strict=True), 20, 0, 2)
    assert bootstrap.counts.tolist() == expected


@given(seed=seeds, parts=st.integers(1, 4))
def test_order_batches_and_processes_do_not_matter(seed, parts):
    ids, confusion = images(seed, 9, 3)
    whole = counted(ids, confusion, replicates=11)
    order = torch.randperm(9, generator=generator(seed)).tolist()
    merged = ImageBootstrap(3, replicates=11)
    for chunk in np.array_split(order, parts):
        chunk = chunk.tolist()
        merged.merge(counted([ids[i] for i in chunk], confusion[chunk], replicates=11))
    assert torch.equal(merged.counts, whole.counts)


def test_runs_on_the_same_images_are_paired():
    ids, confusion = images(1, 60, 3)
    better = confusion + 5 * torch.eye(3, dtype=torch.int64)
    a, b = (counted(ids, c, replicates=500).compute().replicates for c in (confusion, better))
    assert bool((b > a).all())
    shift = (b - a).std()
    assert shift < 0.2 * a.std()  # drawn apart it would be about 1.4 times as wide
    apart = counted(ids, better, replicates=500, seed=1).compute().replicates
    assert (apart - a).std() > 1.1 * a.std()


def test_agrees_with_drawing_images_with_replacement():
    # A 2.5 % quantile of R normal draws is off by sqrt(0.025 * 0.975 / R) / 0.0584 standard
    # deviations: 0.06 at R = 2000, 0.085 for the difference of two. Four times that is allowed;
    # totals that vary, as with Poisson weights, move no ratio.
    ids, confusion = images(2, 300, 4)
    found = counted(ids, confusion, replicates=2000).compute(level=0.95)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(300, np.full(300, 1 / 300), size=2000)
    both = drawn @ confusion.diagonal(dim1=1, dim2=2).numpy()
    union = drawn @ (confusion.sum(1) + confusion.sum(2)).numpy() - both
    miou = (both / union).mean(1)
    low, high = np.quantile(miou, [0.025, 0.975])
    assert abs(found.low - low) < 0.35 * miou.std()
    assert abs(found.high - high) < 0.35 * miou.std()
    assert float(found.replicates.std()) == pytest.approx(miou.std(), rel=0.1)
    assert float(found.replicates.mean()) == pytest.approx(miou.mean(), abs=0.15 * miou.std())


def test_the_level_chooses_the_percentiles():
    bootstrap = counted(*images(3, 40, 3), replicates=400)
    wide, narrow = bootstrap.compute(level=0.99), bootstrap.compute(level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high
    inside = (wide.replicates >= narrow.low) & (wide.replicates <= narrow.high)
    assert float(inside.double().mean()) == pytest.approx(0.5, abs=0.01)


def test_one_image_has_one_score():
    found = counted(["a"], torch.tensor([[[3, 1], [0, 4]]])).compute()
    assert found.low == found.high == pytest.approx((3 / 4 + 4 / 5) / 2)
    never_drawn = float(found.replicates.isnan().double().mean())
    assert never_drawn == pytest.approx(math.exp(-1), abs=0.08)


def test_images_without_scored_pixels_change_nothing():
    ids, confusion = images(4, 5, 3)
    empty = torch.zeros(2, 3, 3, dtype=torch.int64)
    with_empty = counted([*ids, "x", "y"], torch.cat([confusion, empty]), replicates=20)
    assert torch.equal(with_empty.counts, counted(ids, confusion, replicates=20).counts)
    nothing = counted(["x", "y"], empty, replicates=20).compute()
    assert nothing.replicates.isnan().all()
    assert math.isnan(nothing.low)
    assert math.isnan(nothing.high)
    before = with_empty.counts.clone()
    with_empty.update([], torch.zeros(0, 3, 3, dtype=torch.int64))
    assert torch.equal(with_empty.counts, before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_integers(dtype):
    ids, confusion = images(5, 4, 3, pixels=20)
    one = counted(ids, confusion.to(dtype), replicates=9)
    assert torch.equal(one.counts, counted(ids, confusion, replicates=9).counts)


def test_a_copy_keeps_its_counts():
    ids, confusion = images(6, 4, 3)
    bootstrap = counted(ids[:2], confusion[:2], replicates=9)
    saved, reduced = bootstrap.state_dict(), bootstrap.all_reduce()
    before = bootstrap.counts.clone()
    bootstrap.update(ids[2:], confusion[2:])
    assert torch.equal(reduced.counts, before)
    restored = ImageBootstrap(3, replicates=9)
    restored.load_state_dict(saved)
    restored.update(ids[2:], confusion[2:])
    assert torch.equal(restored.counts, bootstrap.counts)


def test_names_that_are_no_text():
    odd = "caf\udce9"  # as Python reads a file name that is not UTF-8
    assert counted([odd], torch.ones(1, 2, 2).long(), replicates=50).counts.sum() > 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ImageBootstrap(2, replicates=1), ValueError, "replicates must be at least 2"),
        (lambda: ImageBootstrap(2, seed=0.5), TypeError, "seed must be an int"),
        (lambda: ImageBootstrap(2, absent="none"), ValueError, "absent must be one of"),
        (lambda: ImageBootstrap(0), ValueError, "num_classes must be >= 1"),
        (lambda: counted(["a"], torch.zeros(1, 2, 2)), TypeError, "confusion must be an integer"),
        (
            lambda: counted(["a"], torch.zeros(2, 2, 2).long()),
            ValueError,
            r"confusion must have shape .*got \(2, 2, 2\)",
        ),
        (
            lambda: ImageBootstrap(3).update(["a"], torch.zeros(1, 2, 2).long()),
            ValueError,
            "confusion must have shape",
        ),
        (
            lambda: ImageBootstrap(2).update("a", torch.zeros(1, 2, 2).long()),
            TypeError,
            "ids must be a sequence, got 'a'",
        ),
        (lambda: ImageBootstrap(2).compute(level=1.0), ValueError, r"level must be in \(0, 1\)"),
        (lambda: ImageBootstrap(2).compute(level="95"), TypeError, "level must be"),
        (
            lambda: ImageBootstrap(2, seed=1).merge(ImageBootstrap(2)),
            ValueError,
            "other must have the settings",
        ),
        (
            lambda: ImageBootstrap(2, replicates=10).merge(ImageBootstrap(2)),
            ValueError,
            "other must have the settings",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
