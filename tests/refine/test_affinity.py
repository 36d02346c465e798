import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_same, covers
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.affinity import (
    edge_affinity_oracle,
    feature_affinity_oracle,
    half_disc_oracle,
    matrix_oracle,
    path_oracle,
)
from strategies import generator, seeds, sizes, small

from wsss_blocks.refine import NeighbourAffinity, edge_affinity, feature_affinity
from wsss_blocks.refine._stencil import half_disc, path


def edges(seed=0, batch=2, size=(5, 6)):
    return torch.rand(batch, 1, *size, generator=generator(seed), dtype=torch.float64)


def features(seed=0, batch=2, dim=3, size=(5, 6)):
    return torch.randn(batch, dim, *size, generator=generator(seed), dtype=torch.float64)


BLOCKS = {"edge": (edge_affinity, edges), "feature": (feature_affinity, features)}
blocks = pytest.mark.parametrize("name", BLOCKS)


@pytest.mark.parametrize("radius", [2, 3, 5, 10])
def test_pairs_and_paths(radius):
    assert sorted(half_disc(radius)) == sorted(half_disc_oracle(radius))
    for offset in half_disc(radius):
        assert sorted(path(*offset)) == sorted(path_oracle(*offset))
        assert {(0, 0), offset} <= set(path(*offset))


def test_number_of_pairs_of_the_papers():
    assert [len(half_disc(radius)) for radius in (5, 10)] == [34, 152]
    assert [max(len(path(*o)) for o in half_disc(radius)) for radius in (5, 10)] == [11, 22]
    rows = {y: [x for v, x in path(2, 4) if v == y] for y in range(3)}
    assert rows == {0: [0, 1, 2], 1: [0, 1, 2, 3, 4], 2: [2, 3, 4]}


@covers("edge_affinity", "oracle")
@settings(max_examples=12)
@given(seeds, small, sizes(6), st.integers(2, 5))
def test_edge_affinity_is_the_loop(seed, batch, size, radius):
    edge = edges(seed, batch, size)
    affinity = edge_affinity(edge, radius=radius)
    assert list(affinity.offsets) == half_disc_oracle(radius)
    assert_close(affinity.values, edge_affinity_oracle(edge, radius))


@covers("feature_affinity", "oracle")
@settings(max_examples=12)
@given(seeds, small, small, sizes(6), st.integers(2, 5))
def test_feature_affinity_is_the_loop(seed, batch, dim, size, radius):
    x = features(seed, batch, dim, size)
    affinity = feature_affinity(x, radius=radius)
    assert list(affinity.offsets) == half_disc_oracle(radius)
    assert_close(affinity.values, feature_affinity_oracle(x, radius))


@settings(max_examples=12)
@given(seeds, small, sizes(5), st.integers(2, 4))
def test_matrix_of_an_affinity(seed, batch, size, radius):
    offsets = half_disc(radius)
    values = torch.rand(batch, len(offsets), *size, generator=generator(seed)).double()
    dense = NeighbourAffinity(values, offsets).to_dense()
    assert_same(dense, matrix_oracle(values, offsets))
    assert_same(dense, dense.mT)


def test_matrix_is_differentiable():
    values = torch.rand(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert_gradcheck(lambda v: NeighbourAffinity(v, half_disc(2)).to_dense(), values)


@covers("edge_affinity", "properties")
@covers("feature_affinity", "properties")
@blocks
def test_affinity_does_not_depend_on_the_direction(name):
    """The matrix of a flipped or transposed map is that of the map, its cells renamed."""
    block, draw = BLOCKS[name]
    x = draw(3, size=(4, 6))
    cells = torch.arange(24).view(4, 6)
    dense = block(x, radius=4).to_dense()
    assert (dense >= 0).all()
    assert (dense <= 1).all()
    for turn in (lambda t: t.flip(-1), lambda t: t.flip(-2), lambda t: t.mT):
        order = turn(cells).flatten()
        assert_close(block(turn(x), radius=4).to_dense(), dense[:, order][:, :, order])
    assert_close(block(x[1:], radius=4).values, block(x, radius=4).values[1:])
    inner = block(x, radius=4)
    outer = block(x, radius=5)
    for r, offset in enumerate(inner.offsets):
        assert_same(outer.values[:, outer.offsets.index(offset)], inner.values[:, r])


@covers("edge_affinity", "properties")
def test_an_edge_cuts_what_it_lies_between():
    edge = torch.zeros(1, 1, 7, 9)
    edge[..., 4] = 0.75
    affinity = edge_affinity(edge)
    columns = torch.arange(9)
    for r, (dy, dx) in enumerate(affinity.offsets):
        other = columns + dx
        crosses = (torch.minimum(columns, other) <= 4) & (torch.maximum(columns, other) >= 4)
        expected = torch.where(crosses, 0.25, 1.0) * ((other >= 0) & (other < 9))
        assert_close(affinity.values[0, r, : 7 - dy], expected.expand(7 - dy, 9))
        assert (affinity.values[0, r, 7 - dy :] == 0).all()


@covers("feature_affinity", "properties")
def test_feature_affinity_of_known_distances():
    x = torch.tensor([[[[0.0, 3.0]], [[0.0, -1.0]]]])
    affinity = feature_affinity(x)
    assert affinity.values[0, 0, 0].tolist() == pytest.approx([torch.e**-2, 0])
    assert_same(feature_affinity(x + 5).values, affinity.values)
    assert_close(feature_affinity(3 * x).values, affinity.values**3)


@covers("edge_affinity", "gradcheck")
@covers("feature_affinity", "gradcheck")
@blocks
def test_gradients(name):
    block, draw = BLOCKS[name]
    x = draw(4, 1, size=(3, 4)).requires_grad_()
    assert_gradcheck(lambda t: block(t, radius=3).values, x)


@covers("edge_affinity", "dtypes")
@covers("feature_affinity", "dtypes")
@blocks
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(name, dtype):
    block, draw = BLOCKS[name]
    x = draw(5).to(dtype)
    values = block(x, radius=3).values
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(values, block(x.double(), radius=3).values)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(block(x, radius=3).values, values)


@covers("edge_affinity", "compile")
@covers("feature_affinity", "compile")
@blocks
def test_compiles(name):
    block, draw = BLOCKS[name]

    def both(x):
        affinity = block(x, radius=2)
        return affinity.values, affinity.to_dense()

    assert_compiles(both, draw(6))


@covers("edge_affinity", "degenerate")
@covers("feature_affinity", "degenerate")
@blocks
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 2)])
def test_grids_smaller_than_the_radius(name, size):
    block, draw = BLOCKS[name]
    x = torch.zeros_like(draw(size=size)).requires_grad_()
    affinity = block(x, radius=5)
    assert affinity.values.shape == (2, 34, *size)
    assert_same(affinity.to_dense(), torch.ones(2, size[0] * size[1], size[0] * size[1]).double())
    affinity.values.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert block(x[:0]).values.shape == (0, 34, *size)


@covers("edge_affinity", "degenerate")
def test_edges_everywhere_leave_the_cells_alone():
    dense = edge_affinity(torch.ones(1, 1, 3, 4)).to_dense()
    assert_same(dense, torch.eye(12).expand(1, -1, -1))


@covers("edge_affinity", "errors")
@covers("feature_affinity", "errors")
@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: edge_affinity(torch.rand(1, 2, 3, 3)), ValueError, r"edge .* \(B, 1, h, w\)"),
        (lambda: edge_affinity(torch.ones(1, 1, 3, 3).int()), TypeError, "edge must be a floating"),
        (lambda: edge_affinity(torch.full((1, 1, 2, 2), 1.5)), ValueError, r"edge must be in \[0,"),
        (lambda: edge_affinity(-torch.ones(1, 1, 2, 2)), ValueError, "got values from -1 to -1"),
        (lambda: edge_affinity(torch.full((1, 1, 2, 2), torch.nan)), ValueError, "must be finite"),
        (lambda: edge_affinity(edges(), radius=1), ValueError, "radius must be at least 2, got 1"),
        (lambda: edge_affinity(edges(), radius=2.5), TypeError, "radius must be an int, got 2.5"),
        (lambda: feature_affinity(torch.rand(3, 3, 3)), ValueError, r"features .* \(B, D, h, w\)"),
        (lambda: feature_affinity(features().int()), TypeError, "features must be a floating"),
        (lambda: feature_affinity(features() / 0), ValueError, "features must be finite"),
        (lambda: feature_affinity(features(), radius=0), ValueError, "radius must be at least 2"),
        (lambda: feature_affinity(features(), radius="5"), TypeError, "radius must be an int"),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
