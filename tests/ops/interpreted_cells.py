"""The cell kernel in Triton's interpreter: test_triton.py runs this in a process of its own.

The interpreter takes the place of the compiler when a kernel is defined, so TRITON_INTERPRET=1 has
to be set before the kernel is imported.
"""

import os

import pytest
import torch

assert os.environ.get("TRITON_INTERPRET") == "1", "run by test_triton.py"

from contract import assert_close
from oracles.crf import gauss_matrix
from oracles.dense_energy import cell_messages as oracle
from strategies import generator

from wsss_blocks.ops import triton_cells
from wsss_blocks.ops.cell_kernel import cell_kernel, cell_messages
from wsss_blocks.ops.mean_field import mean_field


@pytest.fixture(autouse=True)
def _poison():
    """Fill what is allocated with NaN, or the largest integer: each value has to be written."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Count the calls of the kernel, so that no test passes by way of the torch form."""
    made, run = [], triton_cells.cell_messages
    monkeypatch.setattr(triton_cells, "cell_messages", lambda *x: made.append(1) or run(*x))
    yield made
    assert made


def random(seed, *shape, scale=1.0):
    return torch.randn(*shape, generator=generator(seed)) * scale


def kernel(features, **options):
    return cell_kernel(features, backend="triton", **options)


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 130])
def test_with_a_cell_for_each_pixel_it_is_the_loop_over_pairs(count):
    features, values = random(1, 2, count, 5), random(2, 2, 3, count)
    out = kernel(features, cell=1e-6)(values)
    for b in range(2):
        expected = values[b].double() @ torch.tensor(
            gauss_matrix(features[b].tolist()), dtype=torch.float64
        )
        assert_close(out[b], expected)


@pytest.mark.parametrize("cell", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("dims", [1, 2, 3, 5, 6])
def test_equals_the_loop_over_cells(cell, dims):
    features = random(3, 3, 90, dims, scale=2.0)
    features[1] = 0.2  # one cell
    values = random(4, 3, 2, 90)
    out = kernel(features, cell=cell)(values)
    for b in range(3):
        rows = oracle(features[b].tolist(), values[b].tolist(), cell)
        assert_close(out[b], torch.tensor(rows))


@pytest.mark.parametrize("channels", [1, 3, 15, 16, 17, 40])
def test_numbers_of_maps(channels):
    features, values = random(5, 2, 70, 5), random(6, 2, channels, 70)
    assert_close(kernel(features)(values), cell_kernel(features, backend="torch")(values))
    shared = kernel(features[:1])(values)
    for b in range(2):
        assert_close(shared[b], kernel(features[:1])(values[b : b + 1])[0])


def test_gradients_are_those_of_the_transposed_product():
    features = torch.cat([random(7, 1, 75, 2, scale=3.0), torch.zeros(1, 75, 2)])
    values, grad = random(8, 2, 3, 75).requires_grad_(), random(9, 2, 3, 75)
    run = kernel(features)
    (back,) = torch.autograd.grad(run(values), values, grad)
    given = zip(features, torch.eye(75).expand(2, 75, 75), strict=True)
    matrix = torch.stack(
        [torch.tensor(oracle(f.tolist(), i.tolist(), 1.0)) for f, i in given]
    )  # row j: what the unit value of pixel j sends
    assert_close(back, torch.einsum("bvi,bji->bvj", grad, matrix))


def test_points_that_do_not_exist_take_no_part():
    to, source, values = random(1, 2, 3, 150), random(2, 2, 3, 140), random(3, 2, 2, 140)
    num_to, num_source = torch.tensor([150, 2]).int(), torch.tensor([1, 133]).int()
    to[1, :, 2:], source[0, :, 1:], values[0, :, 1:] = torch.nan, torch.nan, torch.nan
    out = cell_messages(to, source, values, num_to, num_source, "triton")
    for b, (n, m) in enumerate([(150, 1), (2, 133)]):
        far = torch.cdist(to[b, :, :n].T.double(), source[b, :, :m].T.double())
        assert_close(out[b, :, :n], values[b, :, :m].double() @ far.square().mul(-0.5).exp().T)
    assert (out[1, :, 2:] == 0).all()


def test_huge_and_equal_features():
    far = torch.tensor([0.0, 1e5, 1e30, 1e30]).view(1, 4, 1)
    assert_close(kernel(far)(torch.ones(1, 1, 4)), torch.tensor([[[1.0, 1.0, 2.0, 2.0]]]))
    assert_close(
        kernel(torch.zeros(1, 200, 5))(torch.ones(1, 1, 200)), torch.full((1, 1, 200), 200.0)
    )


def test_layouts_and_no_image():
    features, values = random(1, 5, 60, 2).permute(2, 1, 0), random(2, 60, 3, 2).permute(2, 1, 0)
    expected = cell_kernel(features.contiguous(), backend="torch")(values.contiguous())
    assert_close(kernel(features)(values), expected)
    assert kernel(features[:0])(values[:0]).shape == (0, 3, 60)


def test_mean_field():
    features = random(1, 2, 100, 5, scale=0.7)
    unary = random(2, 2, 2, 3, 100).abs()
    found = mean_field(unary, [(kernel(features), 3.0)], 5)
    assert_close(found, mean_field(unary, [(cell_kernel(features, backend="torch"), 3.0)], 5))
