import pytest
import torch
from contract import TOLERANCE, assert_close, assert_compiles, assert_gradcheck, covers
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.attention import attention_row
from strategies import generator, seeds, sizes, small

from wsss_blocks.backbones import QueryKey
from wsss_blocks.cam import patch_to_patch_attention
from wsss_blocks.refine import attention_affinity_refine


def layers_of(seed=0, batch=2, heads=2, tokens=7, count=2, dtype=torch.float64):
    g = generator(seed)
    return {
        2 * i: QueryKey(
            *torch.randn(2, batch, heads, tokens, 3, generator=g, dtype=dtype).unbind(0), 0.7
        )
        for i in range(count)
    }


@covers("patch_to_patch_attention", "oracle")
@settings(max_examples=12)
@given(seeds, small, small, sizes(2), st.integers(0, 2))
def test_equals_the_loops(seed, batch, heads, grid, others):
    n = grid[0] * grid[1]
    attention = layers_of(seed, batch, heads, others + n)
    found = patch_to_patch_attention(attention, grid=grid)
    assert found.shape == (batch, 2, n, n)
    for place, (q, k, scale) in enumerate(attention.values()):
        for b in range(batch):
            for i in range(n):
                rows = [attention_row(q[b, h, others + i], k[b, h], scale) for h in range(heads)]
                expected = [sum(row[others + j] for row in rows) / heads for j in range(n)]
                assert_close(found[b, place, i], expected)


@covers("patch_to_patch_attention", "properties")
def test_the_matrix_is_what_maps_are_refined_with():
    attention = layers_of(1)
    matrix = patch_to_patch_attention(attention, grid=(2, 3))
    maps = torch.rand(2, 4, 2, 3, dtype=torch.float64)
    expected = attention_affinity_refine(maps, attention)
    found = (matrix.sum(1) @ maps.flatten(2).mT).mT.view_as(maps)
    assert_close(found, expected)
    assert (matrix >= 0).all()
    assert (matrix.sum(-1) < 1).all()
    assert_close(patch_to_patch_attention(attention, grid=(2, 3), layers=(2,)), matrix[:, 1:])


@covers("patch_to_patch_attention", "gradcheck")
def test_gradcheck():
    q, k, scale = layers_of(2, batch=1)[0]
    assert_gradcheck(
        lambda q, k: patch_to_patch_attention({0: QueryKey(q, k, scale)}, grid=(2, 3)),
        q.requires_grad_(),
        k.requires_grad_(),
    )


@covers("patch_to_patch_attention", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    exact = layers_of(3)
    attention = {i: QueryKey(q.to(dtype), k.to(dtype), s) for i, (q, k, s) in exact.items()}
    with torch.autocast("cpu", torch.bfloat16):
        found = patch_to_patch_attention(attention, grid=(2, 3))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = patch_to_patch_attention(exact, grid=(2, 3))
    torch.testing.assert_close(found.double(), expected, **TOLERANCE[dtype])


@covers("patch_to_patch_attention", "compile")
def test_compiles():
    q, k, scale = layers_of(4, dtype=torch.float32)[0]
    assert_compiles(
        lambda q, k: patch_to_patch_attention({0: QueryKey(q, k, scale)}, grid=(2, 3)), q, k
    )


@covers("patch_to_patch_attention", "errors")
def test_errors():
    attention = layers_of()
    with pytest.raises(ValueError, match="cover the 9 cells of the grid, got 7 tokens"):
        patch_to_patch_attention(attention, grid=(3, 3))
    with pytest.raises(ValueError, match="layers must be among those asked for"):
        patch_to_patch_attention(attention, grid=(2, 3), layers=(1,))
    with pytest.raises(ValueError, match="at least one layer"):
        patch_to_patch_attention({}, grid=(2, 3))
    with pytest.raises(ValueError, match="must be finite"):
        patch_to_patch_attention({0: attention[0]._replace(q=attention[0].q / 0)}, grid=(2, 3))
    with pytest.raises(TypeError, match="attention must map layers to QueryKey"):
        patch_to_patch_attention({0: attention[0].q}, grid=(2, 3))


@covers("patch_to_patch_attention", "degenerate")
def test_one_patch_and_equal_keys():
    assert patch_to_patch_attention(layers_of(tokens=1), grid=(1, 1)).eq(1).all()
    q, k, scale = layers_of(5)[0]
    even = patch_to_patch_attention({0: QueryKey(q, torch.zeros_like(k), scale)}, grid=(2, 3))
    assert_close(even, torch.full_like(even, 1 / 7))
