"""The lattice against a dictionary of points, and against the Gaussian that it stands for."""

import pytest
import torch
from contract import assert_close, assert_gradcheck, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import crf as oracle
from strategies import generator, seeds

from wsss_blocks.ops.exact_kernel import exact_kernel
from wsss_blocks.ops.permutohedral import PermutohedralLattice, lattice_kernel


def points(seed, count, dims, spread=2.0):
    return torch.randn(count, dims, generator=generator(seed), dtype=torch.float64) * spread


def matrix(lattice, count, **kwargs):
    return lattice(torch.eye(count, dtype=torch.float64), **kwargs).t()


@settings(max_examples=40)
@given(seeds, st.integers(1, 14), st.integers(1, 5), st.sampled_from([0.1, 1.0, 4.0, 30.0]))
def test_equals_the_dictionary_of_points(seed, count, dims, spread):
    features = points(seed, count, dims, spread)
    expected = torch.tensor(oracle.lattice_matrix(features.tolist()), dtype=torch.float64)
    assert_close(matrix(PermutohedralLattice(features), count), expected)


@pytest.mark.parametrize("step", [1.0, 0.5, 1 / 3])
def test_equals_the_dictionary_of_points_on_a_grid_of_positions(step):
    """Equal remainders are common here: which corner they choose matters to the blur."""
    features = torch.cartesian_prod(*[torch.arange(5, dtype=torch.float64) * step] * 2)
    expected = torch.tensor(oracle.lattice_matrix(features.tolist()), dtype=torch.float64)
    assert_close(matrix(PermutohedralLattice(features), 25), expected)


@given(seeds, st.integers(1, 5))
def test_the_transposed_product_is_the_adjoint(seed, dims):
    features = points(seed, 40, dims)
    lattice = PermutohedralLattice(features)
    forward = matrix(lattice, 40)
    backward = matrix(lattice.filter, 40, transposed=True)
    assert_close(backward, forward.t())
    if dims == 1:  # the order of the blurs matters where a corner is missing, from two axes on
        assert_close(forward, forward.t())


def test_gradients_of_both_orders():
    lattice = PermutohedralLattice(points(1, 9, 3))
    values = torch.rand(2, 9, generator=generator(2), dtype=torch.float64, requires_grad=True)
    assert_gradcheck(lattice, values)
    assert torch.autograd.gradgradcheck(lambda v: lattice(v).square(), (values,))


def test_stands_for_the_gaussian():
    """Up to a factor, which the normalisation removes, and where corners are not missing."""
    features = torch.rand(3000, 2, generator=generator(3)) * 8
    values = torch.rand(1, 3, 3000, generator=generator(4))
    exact = exact_kernel(features[None])(values)
    ratio = PermutohedralLattice(features)(values[0]) / exact[0]
    assert (ratio / ratio.mean() - 1).abs().mean() < 0.03
    assert 0.8 < ratio.mean() < 1


def test_single_precision_equals_double_precision():
    features = points(5, 4000, 5, 3.0).float()
    values = torch.rand(3, 4000, generator=generator(6))
    single = PermutohedralLattice(features)(values)
    double = PermutohedralLattice(features.double())(values.double())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_equal_points_share_everything(dims):
    lattice = PermutohedralLattice(torch.full((7, dims), 1.7, dtype=torch.float64))
    values = torch.arange(14, dtype=torch.float64).view(2, 7)
    out = lattice(values)
    assert_close(out, out[:, :1].expand(2, 7))
    assert_close(out[:, 0] / out[0, 0], values.sum(1) / values[0].sum())


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_the_origin_and_one_point(dims):
    lattice = PermutohedralLattice(torch.zeros(1, dims, dtype=torch.float64))
    expected = oracle.lattice_matrix([[0.0] * dims])
    assert_close(lattice(torch.ones(1, 1, dtype=torch.float64)), expected)


@pytest.mark.parametrize("scale", [1e9, 1e30, float("inf")])
def test_too_many_deviations(scale):
    features = torch.rand(50, 5, generator=generator(7)) * scale
    with pytest.raises(ValueError, match="features must span fewer standard deviations"):
        PermutohedralLattice(features)


def test_a_kernel_of_several_images_and_one_that_images_share():
    features = torch.stack([points(8, 12, 5), points(9, 12, 5)])
    values = torch.rand(2, 3, 12, generator=generator(1), dtype=torch.float64)
    own = lattice_kernel(features)(values)
    shared = lattice_kernel(features[:1])(values)
    for b in range(2):
        assert_same(own[b], PermutohedralLattice(features[b])(values[b]))
        assert_close(shared[b], PermutohedralLattice(features[0])(values[b]))


def test_inputs_are_left_alone():
    features, values = points(2, 12, 5), torch.rand(3, 12, dtype=torch.float64)
    before = features.clone(), values.clone()
    PermutohedralLattice(features)(values)
    assert_same((features, values), before)


@pytest.mark.cuda
def test_cuda_equals_cpu():
    features, values = points(5, 500, 5), torch.rand(3, 500, dtype=torch.float64)
    on_gpu = PermutohedralLattice(features.cuda())(values.cuda())
    assert_close(on_gpu.cpu(), PermutohedralLattice(features)(values))
