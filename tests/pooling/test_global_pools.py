"""The contract of the four poolings of maps: average, max, top-k and rank."""

import hypothesis.strategies as st
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
from hypothesis import given
from oracles import pooling as oracle
from strategies import generator, seeds, sizes, small

from wsss_blocks.pooling import (
    GlobalAveragePool,
    GlobalMaxPool,
    GlobalTopKPool,
    GlobalWeightedRankPool,
    global_average_pool,
    global_max_pool,
    global_top_k_pool,
    global_weighted_rank_pool,
)

POOLS = {
    "average": (global_average_pool, GlobalAveragePool, {}, oracle.average),
    "max": (global_max_pool, GlobalMaxPool, {}, max),
    "top_k": (
        global_top_k_pool,
        GlobalTopKPool,
        {"fraction": 0.3},
        lambda v: oracle.top_fraction(v, 0.3),
    ),
    "rank": (
        global_weighted_rank_pool,
        GlobalWeightedRankPool,
        {"decay": 0.7},
        lambda v: oracle.weighted_rank(v, 0.7),
    ),
}
each_pool = pytest.mark.parametrize("name", POOLS)


def problem(seed, size=(4, 5), batch=2, classes=3, dtype=torch.float64):
    g = generator(seed)
    maps = torch.randn(batch, classes, *size, generator=g, dtype=dtype)
    return maps, torch.rand(batch, *size, generator=g) < 0.7


@covers("global_average_pool", "oracle")
@covers("global_max_pool", "oracle")
@covers("global_top_k_pool", "oracle")
@covers("global_weighted_rank_pool", "oracle")
@each_pool
@given(seed=seeds, size=sizes(6), batch=small, classes=small, masked=st.booleans())
def test_oracle(name, seed, size, batch, classes, masked):
    function, _, settings, expected = POOLS[name]
    maps, valid = problem(seed, size, batch, classes)
    valid = valid if masked else None
    kept = None if valid is None else valid.tolist()
    assert_close(
        function(maps, valid=valid, **settings),
        torch.tensor(oracle.pool_maps(maps.tolist(), kept, expected), dtype=torch.float64),
    )


@covers("global_top_k_pool", "oracle")
@given(st.integers(1, 60), st.sampled_from([0.001, 0.05, 0.1, 0.125, 0.25, 0.5, 0.7, 1.0]))
def test_top_k_rounds_to_the_nearest_count(count, fraction):
    values = torch.arange(float(count)).square()
    expected = oracle.top_fraction(values.tolist(), fraction)
    alone = global_top_k_pool(values.view(1, 1, 1, -1), fraction=fraction)
    padded = torch.cat([values, torch.full((7,), 1e6)]).view(1, 1, 1, -1)
    valid = (torch.arange(count + 7) < count).view(1, 1, -1)
    assert_close(alone, [[expected]])
    assert_close(global_top_k_pool(padded, fraction=fraction, valid=valid), [[expected]])


@covers("global_average_pool", "properties")
@covers("global_max_pool", "properties")
@covers("global_top_k_pool", "properties")
@covers("global_weighted_rank_pool", "properties")
@each_pool
def test_invariances(name):
    function, _, settings, _ = POOLS[name]
    maps, valid = problem(0)
    pooled = function(maps, valid=valid, **settings)
    order = torch.randperm(20, generator=generator(1))
    shuffled = maps.flatten(2)[..., order].view_as(maps)
    moved = valid.flatten(1)[:, order].view_as(valid)
    assert_close(function(shuffled, valid=moved, **settings), pooled)
    assert_close(function(maps.flip(0, 1), valid=valid.flip(0), **settings), pooled.flip(0, 1))
    assert_close(function(3 * maps + 2, valid=valid, **settings), 3 * pooled + 2)
    # What lies outside valid does not count, whatever it holds.
    for rubbish in (1e30, float("nan"), float("inf")):
        spoilt = maps.masked_fill(~valid[:, None], rubbish).requires_grad_()
        out = function(spoilt, valid=valid, **settings)
        assert_same(out, pooled)
        out.sum().backward()
        assert bool(spoilt.grad.isfinite().all())
        assert bool((spoilt.grad.masked_select(~valid[:, None]) == 0).all())
    assert_close(
        function(maps, valid=torch.ones_like(valid), **settings), function(maps, **settings)
    )


@covers("global_weighted_rank_pool", "properties")
@covers("global_top_k_pool", "properties")
def test_limits_are_max_and_average():
    maps, valid = problem(2)
    highest, mean = global_max_pool(maps, valid=valid), global_average_pool(maps, valid=valid)
    assert_close(global_weighted_rank_pool(maps, decay=0.0, valid=valid), highest)
    assert_close(global_weighted_rank_pool(maps, decay=1.0, valid=valid), mean)
    assert_close(global_top_k_pool(maps, fraction=1e-6, valid=valid), highest)
    assert_close(global_top_k_pool(maps, fraction=1.0, valid=valid), mean)
    between = global_weighted_rank_pool(maps, valid=valid)
    assert bool(((mean <= between) & (between <= highest)).all())


@covers("global_average_pool", "gradcheck")
@covers("global_max_pool", "gradcheck")
@covers("global_top_k_pool", "gradcheck")
@covers("global_weighted_rank_pool", "gradcheck")
@each_pool
def test_gradcheck(name):
    function, _, settings, _ = POOLS[name]
    maps, valid = problem(3)
    valid[1] = False
    maps.requires_grad_()
    assert_gradcheck(lambda x: function(x, **settings), maps)
    assert_gradcheck(lambda x: function(x, valid=valid, **settings), maps)


def test_tied_maxima_share_the_gradient():
    maps = torch.tensor([[[[2.0, 2.0, 1.0, 9.0]]]], requires_grad=True)
    valid = torch.tensor([[[True, True, True, False]]])
    global_max_pool(maps, valid=valid).sum().backward()
    assert maps.grad.flatten().tolist() == [0.5, 0.5, 0, 0]


@covers("global_average_pool", "module")
@covers("global_max_pool", "module")
@covers("global_top_k_pool", "module")
@covers("global_weighted_rank_pool", "module")
@each_pool
def test_module(name):
    function, module, settings, _ = POOLS[name]
    maps, valid = problem(4)
    assert_module(module(**settings), function(maps, valid=valid, **settings), maps, valid=valid)
    assert_same(module()(maps), function(maps))
    for key, value in settings.items():
        assert f"{key}={value}" in repr(module(**settings))


@covers("global_average_pool", "dtypes")
@covers("global_max_pool", "dtypes")
@covers("global_top_k_pool", "dtypes")
@covers("global_weighted_rank_pool", "dtypes")
@each_pool
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(name, dtype):
    function, _, settings, _ = POOLS[name]
    maps, valid = problem(5)
    maps = maps.to(dtype)
    pooled = function(maps, valid=valid, **settings)
    assert pooled.dtype == dtype
    exact = function(maps.double(), valid=valid, **settings)
    assert_close(pooled, exact)
    if dtype in (torch.bfloat16, torch.float16):  # only the result is rounded
        assert_same(pooled, exact.to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(function(maps, valid=valid, **settings), pooled)


@covers("global_average_pool", "dtypes")
@covers("global_top_k_pool", "dtypes")
@covers("global_weighted_rank_pool", "dtypes")
@pytest.mark.parametrize("name", ["average", "top_k", "rank"])
def test_half_sums_do_not_overflow(name):
    function, _, settings, _ = POOLS[name]
    maps = torch.full((1, 1, 64, 64), 6e4, dtype=torch.float16)
    assert_same(function(maps, **settings), torch.full((1, 1), 6e4, dtype=torch.float16))


@covers("global_average_pool", "compile")
@covers("global_max_pool", "compile")
@covers("global_top_k_pool", "compile")
@covers("global_weighted_rank_pool", "compile")
@each_pool
def test_compile(name):
    function, module, settings, _ = POOLS[name]
    maps, valid = problem(6, dtype=torch.float32)
    pool = module(**settings)
    assert_compiles(lambda m, v: pool(m, valid=v), maps, valid)
    compiled = torch.compile(
        lambda m: function(m, **settings), fullgraph=True, dynamic=True, backend="eager"
    )
    for size in ((4, 5), (7, 3), (6, 6)):
        other, _ = problem(7, size, dtype=torch.float32)
        torch.testing.assert_close(compiled(other), function(other, **settings))


@covers("global_average_pool", "errors")
@covers("global_max_pool", "errors")
@covers("global_top_k_pool", "errors")
@covers("global_weighted_rank_pool", "errors")
@each_pool
def test_errors(name):
    function, _, settings, _ = POOLS[name]
    maps, valid = problem(8)
    with pytest.raises(ValueError, match=r"maps must have shape \(B, K, h, w\), got \(3, 4, 5\)"):
        function(maps[0], **settings)
    with pytest.raises(TypeError, match=r"maps must be a floating-point tensor, got torch\.int64"):
        function(maps.long(), **settings)
    with pytest.raises(ValueError, match=r"valid must have shape \(B, h, w\) with B=2, h=4, w=5"):
        function(maps, valid=valid[..., :2], **settings)
    with pytest.raises(TypeError, match=r"valid must be a bool tensor, got torch\.float32"):
        function(maps, valid=valid.float(), **settings)
    with pytest.raises(ValueError, match="valid must be on the device of maps"):
        function(maps, valid=valid.to("meta"), **settings)


@covers("global_top_k_pool", "errors")
@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_fraction_errors(fraction):
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got"):
        global_top_k_pool(torch.ones(1, 1, 2, 2), fraction=fraction)
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got"):
        GlobalTopKPool(fraction=fraction)


@covers("global_weighted_rank_pool", "errors")
@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_decay_errors(decay):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\], got"):
        global_weighted_rank_pool(torch.ones(1, 1, 2, 2), decay=decay)
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\], got"):
        GlobalWeightedRankPool(decay=decay)


@covers("global_average_pool", "degenerate")
@covers("global_max_pool", "degenerate")
@covers("global_top_k_pool", "degenerate")
@covers("global_weighted_rank_pool", "degenerate")
@each_pool
def test_degenerate(name):
    function, _, settings, _ = POOLS[name]
    maps, valid = problem(9)
    valid[0], valid[1] = False, True
    maps.requires_grad_()
    pooled = function(maps, valid=valid, **settings)
    assert_same(pooled[0], torch.zeros(3, dtype=torch.float64))
    pooled.sum().backward()
    assert_same(maps.grad[0], torch.zeros_like(maps[0]))
    assert bool((maps.grad[1].sum((1, 2)) - 1).abs().max() < 1e-12)
    constant = torch.full((2, 1, 5, 3), -2.5)
    assert_close(function(constant, **settings), [[-2.5], [-2.5]])
    assert function(constant[:, :, :1, :1], **settings).tolist() == [[-2.5], [-2.5]]
    assert function(constant[:0], **settings).shape == (0, 1)
    one = torch.zeros(2, 5, 3, dtype=torch.bool)
    one[:, 2, 1] = True
    assert_close(function(constant, valid=one, **settings), [[-2.5], [-2.5]])
