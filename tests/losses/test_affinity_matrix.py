import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_module, covers
from hypothesis import given, settings
from strategies import generator, random_mask, seeds, sizes, small

from wsss_blocks.losses import AffinityMatrixLoss, affinity_matrix_counts, affinity_matrix_loss
from wsss_blocks.refine import affinity_matrix_labels


def problem(seed=0, batch=2, size=(2, 3), dtype=torch.float64):
    g = generator(seed)
    labels = affinity_matrix_labels(random_mask((batch, *size), 3, g))
    return torch.rand(labels.shape, generator=g, dtype=torch.float64).to(dtype), labels


def plain(affinity, labels):
    """The two halves, and how many pairs each has, pair by pair."""
    sums, counts = [0.0, 0.0], [0, 0]
    for a, kind in zip(affinity.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if kind == 255:
            continue
        half = 1 - kind
        sums[half] += 1 - a if kind == 1 else a
        counts[half] += 1
    return sums, counts


@covers("affinity_matrix_loss", "oracle")
@covers("affinity_matrix_counts", "oracle")
@settings(max_examples=15)
@given(seeds, small, sizes(3))
def test_equals_the_loops(seed, batch, size):
    affinity, labels = problem(seed, batch, size)
    sums, counts = plain(affinity, labels)
    expected = sum(s / max(n, 1) for s, n in zip(sums, counts, strict=True)) / 2
    assert_close(affinity_matrix_loss(affinity, labels), expected)
    assert affinity_matrix_counts(labels).tolist() == counts


@covers("affinity_matrix_loss", "properties")
@covers("affinity_matrix_counts", "properties")
def test_known_values_and_shares_of_micro_batches():
    affinity, labels = problem(1, 3)
    right = (labels == 1).double()
    assert affinity_matrix_loss(right, labels) == 0
    assert affinity_matrix_loss(1 - right, labels) == 1
    counts = affinity_matrix_counts(labels)
    parts = (slice(0, 1), slice(1, 3))
    shares = [affinity_matrix_loss(affinity[p], labels[p], counts=counts) for p in parts]
    assert_close(sum(shares), affinity_matrix_loss(affinity, labels))
    assert (sum(affinity_matrix_counts(labels[p]) for p in parts) == counts).all()
    affinity.requires_grad_()
    (gradient,) = torch.autograd.grad(affinity_matrix_loss(affinity, labels), affinity)
    assert (gradient[labels == 255] == 0).all()
    assert (gradient[labels == 1] < 0).all()
    assert (gradient[labels == 0] > 0).all()


@covers("affinity_matrix_loss", "gradcheck")
def test_gradcheck():
    affinity, labels = problem(2)
    inside = (0.1 + 0.8 * affinity).requires_grad_()
    assert_gradcheck(lambda x: affinity_matrix_loss(x, labels), inside)


@covers("affinity_matrix_loss", "module")
def test_module():
    affinity, labels = problem(3)
    expected = affinity_matrix_loss(affinity, labels)
    assert_module(AffinityMatrixLoss(), expected, affinity, labels)


@covers("affinity_matrix_loss", "dtypes")
@covers("affinity_matrix_counts", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    affinity, labels = problem(4)
    loss = affinity_matrix_loss(affinity.to(dtype), labels)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(loss, affinity_matrix_loss(affinity, labels), dtype=dtype)
    kinds = (torch.int64, torch.int32)
    assert all((affinity_matrix_counts(labels.to(k)) == affinity_matrix_counts(labels)).all()
               for k in kinds)  # fmt: skip
    assert affinity_matrix_counts(labels).dtype == torch.int64


@covers("affinity_matrix_loss", "compile")
@covers("affinity_matrix_counts", "compile")
def test_compiles():
    assert_compiles(affinity_matrix_loss, *problem(5, dtype=torch.float32))
    assert_compiles(affinity_matrix_counts, problem(5)[1])


@covers("affinity_matrix_loss", "errors")
@covers("affinity_matrix_counts", "errors")
def test_errors():
    affinity, labels = problem(6)
    for a, b, message in (
        (affinity[:, :5], labels, r"affinity must have shape \(B, N, N\) with N=5"),
        (
            affinity,
            labels[:1],
            r"labels must have shape \(B, N, N\) with B=2, .*got \(1, 6, 6\)",
        ),
        (affinity + 1, labels, r"affinity must be in \[0, 1\]"),
        (affinity, labels.long() + 7, "labels must hold 0, 1 or 255"),
    ):
        with pytest.raises(ValueError, match=message):
            affinity_matrix_loss(a, b)
    with pytest.raises(TypeError, match="labels must be an integer tensor"):
        affinity_matrix_loss(affinity, labels.float())
    with pytest.raises(ValueError, match="counts must have shape"):
        affinity_matrix_loss(affinity, labels, counts=torch.ones(3))
    with pytest.raises(ValueError, match=r"labels must have shape \(B, N, N\)"):
        affinity_matrix_counts(labels[0])


@covers("affinity_matrix_loss", "degenerate")
@covers("affinity_matrix_counts", "degenerate")
def test_no_pair_and_one_kind():
    affinity = torch.rand(1, 4, 4, requires_grad=True)
    unknown = torch.full((1, 4, 4), 255, dtype=torch.uint8)
    loss = affinity_matrix_loss(affinity, unknown)
    loss.backward()
    assert loss == 0
    assert (affinity.grad == 0).all()
    assert affinity_matrix_counts(unknown).tolist() == [0, 0]
    same = affinity_matrix_labels(torch.zeros(1, 2, 2, dtype=torch.int64))
    assert affinity_matrix_loss(torch.zeros(1, 4, 4), same) == 0.5
    assert affinity_matrix_loss(torch.zeros(1, 1, 1), unknown[:, :1, :1]) == 0
