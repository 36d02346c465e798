import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import linear_probe as oracle
from strategies import generator, seeds
from torch import nn

from wsss_blocks.training import linear_probe
from wsss_blocks.training.linear_probe import _rate


def blobs(seed, samples, classes=4, *, dim=6, spread=0.3):
    g = generator(seed)
    labels = torch.arange(samples) % classes
    centres = torch.eye(dim)[:classes]
    return centres[labels] + spread * torch.randn(samples, dim, generator=g), labels


def probe(train, val, **options):
    options = {"num_classes": 4, "epochs": 30, "warmup": 3, "base_lr": 20.0, "ks": (1, 2)} | options
    return linear_probe(*train, *val, **options)


@given(st.integers(1, 40), st.integers(0, 39))
def test_rates_equal_the_loop(total, warmup):
    warmup = min(warmup, total - 1)
    for step in range(total):
        expected = oracle.rate(step, total, warmup)
        assert _rate(step, total=total, warmup=warmup) == pytest.approx(expected, abs=1e-12)


def test_the_papers_rates():
    rates = [0.1 * 32768 / 256 * _rate(t, total=90 * 39, warmup=10 * 39) for t in range(90 * 39)]
    assert rates[0] == 0
    assert max(rates) == rates[390] == 12.8
    assert rates[195] == pytest.approx(6.4)
    assert rates[390 + 40 * 39] == pytest.approx(6.4)
    assert 0 < rates[-1] < 1e-4


@given(seeds, st.integers(1, 3), st.integers(3, 9), st.sampled_from([2, 3, 100]))
@settings(max_examples=6)
def test_training_equals_the_loop(seed, epochs, samples, batch_size):
    g = generator(seed)
    features = torch.randn(samples, 3, generator=g).double()
    labels = torch.randint(3, (samples,), generator=g)
    warmup = epochs - 1
    found = linear_probe(
        features, labels, features, labels,
        num_classes=3, epochs=epochs, warmup=warmup, base_lr=30.0, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    random = generator(seed)
    weight = nn.init.trunc_normal_(torch.empty(3, 3).double(), std=0.01, generator=random)
    size, batches = min(batch_size, samples), []
    for _ in range(epochs):
        order = torch.randperm(samples, generator=random)
        for first in range(0, samples - size + 1, size):
            rows = order[first : first + size]
            batches.append((features[rows].tolist(), labels[rows].tolist()))
    expected = oracle.train(
        weight.tolist(), [0.0] * 3, batches,
        lr=30 * size / 256, epochs_of_batches=samples // size, warmup=warmup, momentum=0.9,
    )  # fmt: skip
    layer = found.head[-1]
    torch.testing.assert_close(layer.weight.detach(), torch.tensor(expected[0]).double())
    torch.testing.assert_close(layer.bias.detach(), torch.tensor(expected[1]).double())


@pytest.mark.parametrize("batch_norm", [False, True])
def test_separable_classes_are_told_apart(batch_norm):
    train, val = blobs(0, 400, spread=0.15), blobs(1, 200, spread=0.15)
    found = probe(train, val, batch_norm=batch_norm, batch_size=64)
    assert found.accuracy[0] > 0.98
    assert found.train_accuracy[0] > 0.98
    assert found.accuracy[1] >= found.accuracy[0]
    assert len(found.head) == 1 + batch_norm
    assert not found.head.training
    assert (found.head(val[0]).argmax(1) == val[1]).double().mean() == found.accuracy[0]


def test_random_labels_stay_at_chance():
    features, labels = blobs(0, 800)
    g = generator(5)
    labels, val = (torch.randint(4, (800,), generator=g) for _ in range(2))
    found = probe((features, labels), (blobs(1, 800)[0], val), batch_size=64)
    assert found.accuracy[0] == pytest.approx(0.25, abs=0.05)
    assert found.accuracy[1] == pytest.approx(0.5, abs=0.06)


def test_batch_norm_makes_scales_irrelevant():
    train, val = blobs(0, 400), blobs(1, 200)
    scale, shift = torch.tensor([0.3, 1e3, 1.0, 50.0, 0.5, 7.0]), 3 * torch.arange(6.0)
    moved = [(x * scale + shift, y) for x, y in (train, val)]
    expected = probe(train, val, batch_norm=True, batch_size=64)
    found = probe(*moved, batch_norm=True, batch_size=64)
    assert found.accuracy[0] == pytest.approx(expected.accuracy[0], abs=0.03)
    assert expected.accuracy[0] > 0.9 > probe(*moved, batch_size=64).accuracy[0]
    assert not list(expected.head[0].parameters())


def test_the_seed_decides_alone():
    train, val = blobs(0, 90), blobs(1, 60)
    state = torch.get_rng_state()
    one = probe(train, val, batch_size=16)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    two = probe(train, val, batch_size=16)
    other = probe(train, val, batch_size=16, seed=1)
    assert torch.equal(one.head[-1].weight, two.head[-1].weight)
    assert one.accuracy == two.accuracy
    assert not torch.equal(one.head[-1].weight, other.head[-1].weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_gradients(dtype):
    train, val = blobs(0, 400), blobs(1, 40)
    with torch.no_grad():
        rows = (train[0].to(dtype), train[1].int())
        found = probe(rows, (val[0].to(dtype), val[1]), batch_size=64)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert found.head[-1].weight.dtype == wanted
    assert found.accuracy[0] > 0.9
    features = train[0].clone().requires_grad_()
    probe((features, train[1]), val, epochs=4)
    assert features.grad is None


def test_degenerate_features():
    zeros, labels = torch.zeros(8, 3), torch.arange(8) % 2
    for batch_norm in (False, True):
        found = linear_probe(
            zeros, labels, zeros, labels, num_classes=2, ks=(1, 2), batch_norm=batch_norm
        )
        assert found.accuracy[1] == 1
        assert all(torch.isfinite(p).all() for p in found.head.parameters())
    one = linear_probe(zeros[:1], labels[:1], zeros[:1], labels[:1], num_classes=1, ks=(1,))
    assert one.accuracy == (1.0,)


META = (("val_features", (4, 2), torch.float32), ("val_labels", (4,), torch.int64))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"features": torch.rand(4)}, ValueError, r"features must have shape \(N, D\)"),
        ({"features": torch.ones(4, 2).long()}, TypeError, "features must be a floating-point"),
        ({"features": torch.full((4, 2), torch.nan)}, ValueError, "features must be finite"),
        ({"labels": torch.zeros(3).long()}, ValueError, "labels must have shape .*N=4"),
        ({"labels": torch.zeros(4)}, TypeError, "labels must be an integer tensor"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, ValueError, r"labels must be in \[0, 3\), got 3"),
        ({"labels": torch.tensor([0, -1, 2, 0])}, ValueError, "labels must be >= 0, got a minimum"),
        ({"val_features": torch.rand(4, 3)}, ValueError, r"val_features must have shape .*D=2"),
        ({"val_labels": torch.full((4,), 3)}, ValueError, r"val_labels must be in \[0, 3\), got 3"),
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"warmup": 90}, ValueError, "warmup must be less than epochs=90, got 90"),
        ({"warmup": -1}, ValueError, "warmup must be at least 0"),
        ({"base_lr": 0.0}, ValueError, "base_lr must be positive"),
        ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), got 1.0"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"ks": (0,)}, ValueError, "ks must be at least 1, got 0"),
        (
            {key: torch.ones(shape, dtype=dtype, device="meta") for key, shape, dtype in META},
            ValueError, "val_features must be on the device of features",
        ),
    ],
)  # fmt: skip
def test_refuses(changed, error, message):
    rows = {"features": torch.rand(4, 2), "labels": torch.zeros(4).long()}
    given = rows | {f"val_{k}": v for k, v in rows.items()} | {"num_classes": 3} | changed
    with pytest.raises(error, match=message):
        linear_probe(**given)


def test_batch_norm_needs_two_samples_per_batch():
    x, y = torch.rand(4, 2), torch.zeros(4).long()
    with pytest.raises(ValueError, match="batch_size must be at least 2 for batch_norm"):
        linear_probe(x, y, x, y, num_classes=2, batch_norm=True, batch_size=1)
