"""Means of cells against loops over cells, and against the Gaussian that they stand for."""

import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_same
from hypothesis import given
from hypothesis import strategies as st
from oracles.crf import gauss_matrix
from oracles.dense_energy import cell_messages as oracle
from strategies import generator, seeds
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wsss_blocks.ops import cell_kernel as module
from wsss_blocks.ops.cell_kernel import cell_kernel, cell_messages
from wsss_blocks.ops.exact_kernel import exact_kernel


def random(seed, *shape, scale=1.0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64) * scale


@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 14),
    st.integers(1, 5),
    st.sampled_from([0.3, 1.0, 5.0, 1e6]),
    st.booleans(),
)
def test_equals_the_loop_over_cells(seed, batch, count, dims, cell, shared):
    features = random(seed, 1 if shared else batch, count, dims, scale=1.5)
    values = random(seed + 1, batch, 2, count)
    out = cell_kernel(features, cell=cell)(values)
    for b in range(batch):
        rows = oracle(features[0 if shared else b].tolist(), values[b].tolist(), cell)
        assert_close(out[b], torch.tensor(rows, dtype=torch.float64))


@given(seeds, st.integers(1, 14), st.integers(1, 5))
def test_with_a_cell_for_each_pixel_it_is_the_loop_over_pairs(seed, count, dims):
    features, values = random(seed, 2, count, dims, scale=1.5), random(seed + 1, 2, 3, count)
    out = cell_kernel(features, cell=1e-9)(values)
    for b in range(2):
        pairs = torch.tensor(gauss_matrix(features[b].tolist()), dtype=torch.float64)
        assert_close(out[b], values[b] @ pairs)


@given(seeds, st.integers(1, 12))
def test_means_are_over_the_valid_pixels(seed, count):
    features, values = random(seed, 2, count, 2, scale=1.5), random(seed + 1, 2, 3, count)
    valid = torch.rand(2, count, generator=generator(seed)) < 0.6
    values = values * valid[:, None]
    out = cell_kernel(features, valid=valid)(values)
    for b in range(2):
        rows = oracle(features[b].tolist(), values[b].tolist(), 1.0, valid[b].tolist())
        assert_close(out[b], torch.tensor(rows, dtype=torch.float64))


def test_smaller_cells_are_closer_to_all_pairs():
    """On a smooth picture, with the normalisation of the mean field."""
    y, x = torch.meshgrid(torch.linspace(0, 3, 24), torch.linspace(0, 4, 32), indexing="ij")
    features = torch.stack([x, y, 3 * x.sin(), y * y, x * y / 2], 2).view(1, -1, 5)
    values = torch.stack([torch.ones_like(x), x.cos() * y, (x > 2).float()]).view(1, 3, -1)
    exact = exact_kernel(features)(values)
    errors = []
    for cell in (2.0, 1.0, 0.5, 0.25):
        out = cell_kernel(features, cell=cell)(values)
        ratio = out[:, 1:] / out[:, :1] - exact[:, 1:] / exact[:, :1]
        errors.append(float(ratio.abs().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.02
    assert errors[3] < errors[1] / 4


@pytest.mark.parametrize("pairs", [1, 40, 77, 1000])
def test_tiles_are_put_together(pairs, monkeypatch):
    features, values = random(1, 2, 19, 5), random(2, 2, 3, 19)
    expected = cell_kernel(features)(values)
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", pairs)
    assert_close(cell_kernel(features)(values), expected)


def test_gradients_of_both_orders():
    features = torch.cat([random(1, 1, 9, 2), torch.zeros(1, 9, 2).double()])  # 1 cell, and many
    kernel = cell_kernel(features)
    values = random(2, 2, 3, 9).requires_grad_()
    assert_gradcheck(kernel, values)
    assert torch.autograd.gradgradcheck(lambda v: kernel(v).square(), (values,))


class Largest(TorchDispatchMode):
    """Remember the number of elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def test_no_matrix_of_pixels_and_cells_is_made_in_either_direction(monkeypatch):
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", 10 * 600)
    values = random(2, 1, 3, 600).requires_grad_()
    kernel = cell_kernel(random(1, 1, 600, 5, scale=5.0), cell=0.1)
    with Largest() as largest:
        kernel(values).sum().backward()
    assert largest.elements <= 10 * 600


def test_far_apart_in_single_precision():
    """Large cells at the far end of the colours keep their means; huge numbers stay finite."""
    features = torch.rand(1, 3000, 5, generator=generator(3)) * 0.5 + 85
    values = torch.rand(1, 1, 3000, generator=generator(4))
    expected = cell_kernel(features.double())(values.double())
    assert_close(cell_kernel(features)(values), expected)
    far = torch.tensor([0.0, 1e5, 1e30]).view(1, 3, 1)
    assert_close(cell_kernel(far)(torch.ones(1, 1, 3)), torch.ones(1, 1, 3))


def test_points_that_do_not_exist_take_no_part():
    to, source, values = random(1, 2, 3, 5), random(2, 2, 3, 4), random(3, 2, 2, 4)
    num_to, num_source = torch.tensor([5, 2]).int(), torch.tensor([1, 4]).int()
    values[0, :, 1:] = torch.nan
    out = cell_messages(to, source, values, num_to, num_source, "torch")
    for b, (n, m) in enumerate([(5, 1), (2, 4)]):
        far = torch.cdist(to[b, :, :n].T, source[b, :, :m].T)
        assert_close(out[b, :, :n], values[b, :, :m] @ far.square().mul(-0.5).exp().T)
    assert (out[1, :, 2:] == 0).all()


def test_the_custom_operator_is_well_formed():
    to, source, values = random(1, 2, 3, 5), random(2, 2, 3, 4), random(3, 2, 2, 4)
    counts = torch.tensor([5, 3]).int(), torch.tensor([4, 1]).int()
    call = (to, source, values.requires_grad_(), *counts, "torch")
    torch.library.opcheck(cell_messages, call)
    nothing = cell_messages(to[:0], source[:0], values[:0], counts[0][:0], counts[1][:0], "torch")
    assert nothing.shape == (0, 2, 5)


def test_compiles():
    def call(features, values):
        return cell_kernel(features)(values)

    assert_compiles(call, random(1, 2, 9, 5), random(2, 2, 3, 9))


def test_nothing_waits_for_a_gpu():
    """Looking at a value of a fake tensor raises, as waiting for one would."""
    with FakeTensorMode():
        features = torch.empty(2, 50, 5, device="cuda")
        out = cell_kernel(features, backend="triton")(torch.empty(2, 3, 50, device="cuda"))
    assert out.shape == (2, 3, 50)
    assert out.device.type == "cuda"


def test_inputs_are_left_alone():
    features, values = random(1, 2, 9, 5), random(2, 2, 3, 9)
    before = features.clone(), values.clone()
    cell_kernel(features)(values)
    assert_same((features, values), before)


def test_a_backend_that_is_not_there():
    with pytest.raises(
        ValueError, match=r"backend must be one of 'auto', 'torch', 'tr.* got 'cuda'"
    ):
        cell_kernel(torch.zeros(1, 2, 2), backend="cuda")
