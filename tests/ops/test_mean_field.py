"""The mean-field driver with kernels given as matrices, against the loops of the algorithm."""

import torch
from contract import assert_close, assert_gradcheck, assert_same
from hypothesis import given
from hypothesis import strategies as st
from oracles import crf as oracle
from strategies import generator, seeds

from wsss_blocks.ops.mean_field import mean_field


def as_kernel(matrix):
    return lambda values: values @ matrix


def problem(seed, batch, groups, classes, pixels):
    g = generator(seed)
    unary = torch.rand(batch, groups, classes, pixels, generator=g, dtype=torch.float64) * 4
    matrices = torch.rand(2, pixels, pixels, generator=g, dtype=torch.float64)
    matrices = (matrices + matrices.mT) / 2 + torch.eye(pixels)
    valid = torch.rand(batch, pixels, generator=g) < 0.7
    return unary, matrices, valid


@given(
    seeds, st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), st.integers(1, 9), st.booleans()
)
def test_equals_the_loops(seed, batch, groups, classes, pixels, masked):
    unary, matrices, valid = problem(seed, batch, groups, classes, pixels)
    valid = valid if masked else None
    weighted = [(matrices[0], 3.0), (matrices[1], 1.5)]
    out = mean_field(unary, [(as_kernel(m), w) for m, w in weighted], 3, valid=valid)
    weighted = [(m.tolist(), w) for m, w in weighted]
    for b in range(batch):
        inside = None if valid is None else valid[b].tolist()
        for g in range(groups):
            expected = oracle.mean_field(unary[b, g].tolist(), weighted, 3, inside)
            assert_close(out[b, g], torch.tensor(expected, dtype=torch.float64))


def test_without_iterations_or_kernels_it_is_the_softmax():
    unary, matrices, _ = problem(1, 2, 2, 3, 5)
    assert_same(mean_field(unary, [(as_kernel(matrices[0]), 2.0)], 0), (-unary).softmax(2))
    assert_close(mean_field(unary, [], 4), (-unary).softmax(2))


def test_a_class_that_is_ruled_out_stays_out_and_leaves_finite_gradients():
    unary, matrices, _ = problem(2, 1, 1, 3, 5)
    kernels = [(as_kernel(matrices[0]), 2.0)]
    probs = unary.exp().requires_grad_()
    absent = torch.tensor([False, True, False]).view(1, 1, 3, 1)
    out = mean_field(probs.log().masked_fill(absent, torch.inf), kernels, 3)
    assert (out[:, :, 1] == 0).all()
    assert_close(out[:, :, ::2], mean_field(unary[:, :, ::2], kernels, 3))
    out[:, :, 0].sum().backward()
    assert torch.isfinite(probs.grad).all()
    assert (probs.grad[:, :, 1] == 0).all()


def test_nothing_takes_part():
    unary, matrices, _ = problem(3, 1, 1, 2, 4)
    nobody = torch.zeros(1, 4, dtype=torch.bool)
    out = mean_field(unary, [(as_kernel(matrices[0]), 2.0)], 3, valid=nobody)
    assert_close(out, (-unary).softmax(2))


def test_gradcheck():
    unary, matrices, valid = problem(4, 2, 2, 2, 4)
    kernels = [(as_kernel(matrices[0]), 2.0), (as_kernel(matrices[1]), 1.0)]
    assert_gradcheck(lambda u: mean_field(u, kernels, 2, valid=valid), unary.requires_grad_())


def test_autocast_changes_nothing():
    unary, matrices, _ = problem(5, 1, 1, 3, 6)
    kernels = [(as_kernel(matrices[0].float()), 2.0)]
    expected = mean_field(unary.float(), kernels, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(mean_field(unary.float(), kernels, 3), expected)
