import pytest
import torch
from contract import (
    assert_close,
    assert_compiles,
    assert_gradcheck,
    assert_module,
    assert_same,
    covers,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.affinity import affinity_loss_oracle
from strategies import generator, random_mask, seeds, sizes, small

from wsss_blocks.losses import AffinityLoss, affinity_counts, affinity_loss
from wsss_blocks.refine import AffinityLabels, NeighbourAffinity, affinity_labels, feature_affinity


def problem(seed=0, batch=2, size=(4, 5), radius=3, dtype=torch.float64):
    g = generator(seed)
    labels = affinity_labels(random_mask((batch, *size), 3, g), radius=radius)
    values = torch.rand(labels.background.shape, generator=g, dtype=torch.float64)
    return NeighbourAffinity(values.to(dtype), labels.offsets), labels


@covers("affinity_loss", "oracle")
@settings(max_examples=15)
@given(seeds, small, sizes(5), st.integers(2, 4))
def test_equals_the_formula(seed, batch, size, radius):
    affinity, labels = problem(seed, batch, size, radius)
    assert_close(affinity_loss(affinity, labels), affinity_loss_oracle(affinity.values, labels[:3]))
    assert_close(affinity_loss(affinity, labels, counts=torch.zeros(3)), _sums(affinity, labels))


def _sums(affinity, labels):
    """Counts of zero divide by one: the plain sums."""
    total = 0.0
    for a, chosen, weight in (
        (affinity.values, labels.background, 0.25),
        (affinity.values, labels.foreground, 0.25),
        (1 - affinity.values, labels.different, 0.5),
    ):
        total -= weight * float((a[chosen] + 1e-5).log().sum())
    return total


@covers("affinity_loss", "properties")
@settings(max_examples=8)
@given(seeds)
def test_shares_of_micro_batches_add_up(seed):
    affinity, labels = problem(seed, 3)
    values = affinity.values.requires_grad_()
    whole = affinity_loss(affinity, labels)
    counts = affinity_counts(labels)
    shares = []
    for part in (slice(0, 1), slice(1, 3)):
        one = AffinityLabels(*(kind[part] for kind in labels[:3]), labels.offsets)
        shares.append(affinity_loss(affinity._replace(values=values[part]), one, counts=counts))
    assert_close(sum(shares), whole)
    gradients = [torch.autograd.grad(x, values, retain_graph=True)[0] for x in (sum(shares), whole)]
    assert_close(*gradients)
    unknown = ~(labels.background | labels.foreground | labels.different)
    assert (gradients[1][unknown] == 0).all()


@covers("affinity_loss", "properties")
def test_known_values():
    _, labels = problem()
    right = (labels.background | labels.foreground).double()
    assert affinity_loss(NeighbourAffinity(right, labels.offsets), labels).abs() < 2e-5
    half = NeighbourAffinity(torch.full_like(right, 0.5), labels.offsets)
    assert affinity_loss(half, labels).item() == pytest.approx(0.6931, abs=1e-4)
    wrong = NeighbourAffinity(1 - right, labels.offsets)
    assert affinity_loss(wrong, labels).item() == pytest.approx(11.513, abs=1e-3)


@covers("affinity_loss", "properties")
def test_features_learn_their_labels():
    mask = torch.zeros(1, 4, 6, dtype=torch.int64)
    mask[..., 3:] = 1
    labels = affinity_labels(mask)
    x = torch.rand(1, 4, 4, 6, generator=generator(0)).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = affinity_loss(feature_affinity(x), labels)
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@covers("affinity_loss", "gradcheck")
def test_gradient():
    affinity, labels = problem(1)
    values = (0.1 + 0.8 * affinity.values).requires_grad_()
    assert_gradcheck(lambda v: affinity_loss(affinity._replace(values=v), labels), values)


@covers("affinity_loss", "module", "compile")
@covers("affinity_counts", "compile")
def test_module_and_compile():
    affinity, labels = problem(2)
    assert_module(AffinityLoss(), affinity_loss(affinity, labels), affinity, labels)
    counts = torch.tensor([3, 4, 5])
    expected = affinity_loss(affinity, labels, counts=counts)
    assert_same(AffinityLoss()(affinity, labels, counts=counts), expected)
    offsets = labels.offsets

    def loss(values, background, foreground, different):
        kinds = AffinityLabels(background, foreground, different, offsets)
        return affinity_loss(NeighbourAffinity(values, offsets), kinds), affinity_counts(kinds)

    assert_compiles(loss, affinity.values, *labels[:3])


@covers("affinity_loss", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    affinity, labels = problem(3, dtype=dtype)
    values = affinity.values.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = affinity_loss(affinity, labels)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = affinity_loss(affinity._replace(values=values.detach().double()), labels)
    assert_close(loss, exact, dtype=torch.float32)
    assert torch.autograd.grad(loss, values)[0].isfinite().all()


@covers("affinity_loss", "degenerate")
@covers("affinity_counts", "degenerate")
@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
@pytest.mark.parametrize("fill", ["ignored", "background", "foreground", "distinct"])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_kinds_without_pairs_and_certain_values_stay_finite(size, fill, level):
    mask = torch.full((2, *size), {"ignored": 255, "background": 0}.get(fill, 4))
    if fill == "distinct":
        mask = torch.arange(mask.numel()).view_as(mask)
    labels = affinity_labels(mask)
    pairs = (size != (1, 1)) * (fill != "ignored")
    assert [int(n > 0) for n in affinity_counts(labels)] == [
        pairs * (fill == kind) for kind in ("background", "foreground", "distinct")
    ]
    values = torch.full(labels.background.shape, level, requires_grad=True)
    loss = affinity_loss(NeighbourAffinity(values, labels.offsets), labels)
    wrong = level == 1 if fill == "distinct" else level == 0
    weight = 0.5 if fill == "distinct" else 0.25
    assert_close(loss, weight * pairs * wrong * 11.5129, dtype=torch.bfloat16)
    assert torch.autograd.grad(loss, values)[0].isfinite().all()


@covers("affinity_counts", "oracle", "dtypes")
@settings(max_examples=10)
@given(seeds, sizes(5))
def test_counts(seed, size):
    _, labels = problem(seed, 2, size)
    counts = affinity_counts(labels)
    assert counts.dtype == torch.int64
    expected = [sum(bool(x) for x in kind.flatten()) for kind in labels[:3]]
    assert counts.tolist() == expected


@covers("affinity_counts", "properties")
def test_counts_of_images_add_up():
    _, labels = problem(4, 3)
    parts = [
        affinity_counts(AffinityLabels(*(kind[b : b + 1] for kind in labels[:3]), labels.offsets))
        for b in range(3)
    ]
    assert_same(sum(parts), affinity_counts(labels))


@covers("affinity_loss", "errors")
@covers("affinity_counts", "errors")
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"values": torch.rand(2, 12, 5)}, ValueError, r"affinity.values .* \(B, R, h, w\)"),
        ({"values": torch.rand(2, 12, 5, 4)}, ValueError, "labels must have the offsets and the"),
        (
            {"values": torch.ones(2, 12, 4, 5).int()},
            TypeError,
            "affinity.values must be a floating",
        ),
        ({"values": torch.ones(2, 12, 4, 5) * 2}, ValueError, r"affinity.values must be in \[0, 1"),
        ({"values": torch.rand(2, 12, 4, 5) / 0}, ValueError, "affinity.values must be finite"),
        ({"values": torch.rand(2, 12, 4, 5, device="meta")}, ValueError, "must be on the device"),
        ({"different": torch.ones(2, 12, 4, 5)}, TypeError, "labels.different must be a bool"),
        ({"foreground": torch.ones(2, 3, 4, 5).bool()}, ValueError, r"labels.foreground .* R=12"),
        ({"background": torch.ones(2, 12, 4).bool()}, ValueError, "labels.background must have sh"),
        (
            {"different": torch.ones(1, 12, 4, 5).bool()},
            ValueError,
            "the shape of labels.background",
        ),
        ({"counts": torch.ones(2)}, ValueError, r"counts must have shape \(3,\)"),
        ({"counts": -torch.ones(3)}, ValueError, "counts must be >= 0"),
    ],
)
def test_errors(change, error, match):
    affinity, labels = problem(dtype=torch.float32)
    if "values" in change:
        affinity = affinity._replace(**change)
    elif "counts" not in change:
        labels = labels._replace(**change)
        with pytest.raises(error, match=match):
            affinity_counts(labels)
    with pytest.raises(error, match=match):
        affinity_loss(affinity, labels, counts=change.get("counts"))


@covers("affinity_loss", "errors")
def test_labels_of_another_radius_are_refused():
    affinity, _ = problem(radius=3)
    _, other = problem(radius=4)
    with pytest.raises(ValueError, match="labels must have the offsets and the shape of affinity"):
        affinity_loss(affinity, other)
    moved = other._replace(offsets=other.offsets[::-1])
    same_shape = NeighbourAffinity(torch.rand(moved.background.shape), other.offsets)
    with pytest.raises(ValueError, match="labels must have the offsets"):
        affinity_loss(same_shape, moved)
