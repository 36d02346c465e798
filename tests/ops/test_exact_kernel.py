"""Every pair of pixels, in tiles; positions on a grid, axis by axis."""

import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck
from hypothesis import given
from hypothesis import strategies as st
from oracles import crf as oracle
from strategies import generator, seeds, sizes
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wsss_blocks.ops import exact_kernel as module
from wsss_blocks.ops.exact_kernel import exact_kernel, grid_kernel


def random(seed, *shape, scale=1.0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64) * scale


@given(seeds, st.integers(1, 3), st.integers(1, 20), st.integers(1, 5), st.booleans())
def test_equals_the_loop_over_pairs(seed, batch, count, dims, shared):
    features = random(seed, 1 if shared else batch, count, dims, scale=1.5)
    values = random(seed + 1, batch, 2, count)
    out = exact_kernel(features)(values)
    for b in range(batch):
        k = torch.tensor(oracle.gauss_matrix(features[0 if shared else b].tolist())).double()
        assert_close(out[b], values[b] @ k, dtype=torch.float32)


@pytest.mark.parametrize("pairs", [1, 40, 77, 1000])
def test_tiles_are_put_together(pairs, monkeypatch):
    features, values = random(1, 2, 19, 5), random(2, 2, 3, 19)
    expected = exact_kernel(features)(values)
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", pairs)
    assert_close(exact_kernel(features)(values), expected)


def test_gradients_of_both_orders():
    kernel = exact_kernel(random(1, 2, 7, 5))
    values = random(2, 2, 3, 7).requires_grad_()
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


def test_no_matrix_of_pairs_is_made_in_either_direction(monkeypatch):
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", 10 * 600)
    values = random(2, 1, 3, 600).requires_grad_()
    with Largest() as largest:
        exact_kernel(random(1, 1, 600, 5))(values).sum().backward()
    assert largest.elements == 10 * 600


def test_far_apart_in_single_precision():
    """Colours of 0..255 at a deviation of 3: differences, not products, keep the near pairs."""
    features = torch.rand(1, 300, 5, generator=generator(3)) * 0.5 + 85
    values = torch.rand(1, 1, 300, generator=generator(4))
    expected = exact_kernel((features - 85).double())(values.double())
    assert_close(exact_kernel(features)(values), expected)
    far = torch.tensor([0.0, 1e5, 1e30]).view(1, 3, 1)
    assert_close(exact_kernel(far)(torch.ones(1, 1, 3)), torch.ones(1, 1, 3))


@given(seeds, sizes(7), st.sampled_from([0.5, 1.0, 3.0]))
def test_grid_equals_all_pairs(seed, size, deviation):
    height, width = size
    values = random(seed, 2, 3, height * width)
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).view(1, -1, 2)
    expected = exact_kernel(places.double() / deviation)(values)
    out = grid_kernel(height, width, deviation, like=values)(values)
    assert_close(out, expected)


def test_grid_gradients():
    values = random(2, 1, 2, 12).requires_grad_()
    assert_gradcheck(grid_kernel(3, 4, 1.5, like=values), values)


def test_compiles():
    def both(features, values):
        return exact_kernel(features)(values) + grid_kernel(3, 3, 2.0, like=values)(values)

    assert_compiles(both, random(1, 2, 9, 5), random(2, 2, 3, 9))
