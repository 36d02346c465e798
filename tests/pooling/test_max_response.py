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
from strategies import generator, seeds, small

from wsss_blocks.pooling import MaxResponsePool, max_response_pool


def problem(seed, batch=2, count=7, dim=4, dtype=torch.float64):
    g = generator(seed)
    tokens = torch.randn(batch, count, dim, generator=g, dtype=dtype)
    return tokens, torch.rand(batch, count, generator=g) < 0.6


@covers("max_response_pool", "oracle")
@given(seeds, small, st.integers(1, 9), small, st.integers(1, 11), st.booleans())
def test_oracle(seed, batch, count, dim, k, masked):
    tokens, mask = problem(seed, batch, count, dim)
    mask = mask if masked else None
    expected = oracle.max_response_pool(tokens.tolist(), k, None if mask is None else mask.tolist())
    assert_close(
        max_response_pool(tokens, k=k, mask=mask), torch.tensor(expected, dtype=torch.float64)
    )


@covers("max_response_pool", "properties")
def test_properties():
    tokens, mask = problem(0)
    mask[:, 0] = True
    before = tokens.clone()
    pooled = max_response_pool(tokens, k=3, mask=mask)
    assert_same(tokens, before)
    order = torch.randperm(7, generator=generator(1))
    assert_close(max_response_pool(tokens[:, order], k=3, mask=mask[:, order]), pooled)
    assert_close(max_response_pool(2 * tokens + 1, k=3, mask=mask), 2 * pooled + 1)
    assert_same(max_response_pool(tokens, k=1), tokens.amax(1))
    assert_close(max_response_pool(tokens, k=7), tokens.mean(1))
    assert_close(max_response_pool(tokens, k=100), tokens.mean(1))
    spoilt = tokens.masked_fill(~mask[..., None], float("nan"))
    assert_same(max_response_pool(spoilt, k=3, mask=mask), pooled)


@covers("max_response_pool", "properties")
def test_k_follows_each_sample():
    """A short caption in the batch does not change the pooling of the others."""
    tokens, mask = problem(2)
    mask[0], mask[1] = True, False
    mask[1, 0] = True
    together = max_response_pool(tokens, k=5, mask=mask)
    alone = max_response_pool(tokens[:1], k=5, mask=mask[:1])
    assert_same(together[:1], alone)
    assert_same(together[1], tokens[1, 0])


@covers("max_response_pool", "properties")
def test_mean_stands_for_all_pairs():
    """Eq. 4: the mean over pairs of responses is the product of the pooled vectors."""
    image, _ = problem(3, batch=1)
    text, _ = problem(4, batch=1, count=5)
    u, v = (x[0].sort(dim=0, descending=True).values[:3] for x in (image, text))
    pairs = sum(a @ b for a in u for b in v) / 9
    pooled = max_response_pool(image, k=3)[0] @ max_response_pool(text, k=3)[0]
    assert_close(pooled, pairs)


@covers("max_response_pool", "gradcheck")
def test_gradcheck():
    tokens, mask = problem(5)
    mask[1] = False
    tokens.requires_grad_()
    assert_gradcheck(lambda x: max_response_pool(x, k=3), tokens)
    assert_gradcheck(lambda x: max_response_pool(x, k=3, mask=mask), tokens)
    (grad,) = torch.autograd.grad(max_response_pool(tokens, k=5).sum(), tokens)
    assert_same((grad > 0).sum(1), torch.full((2, 4), 5))
    assert_close(grad[grad > 0], torch.full((40,), 0.2, dtype=torch.float64))


@covers("max_response_pool", "module")
def test_module():
    tokens, mask = problem(6)
    module = MaxResponsePool(k=3)
    assert_module(module, max_response_pool(tokens, k=3, mask=mask), tokens, mask=mask)
    assert "k=3" in repr(module)


@covers("max_response_pool", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    tokens, mask = problem(7)
    expected = max_response_pool(tokens, k=4, mask=mask)
    pooled = max_response_pool(tokens.to(dtype), k=4, mask=mask)
    assert pooled.dtype == dtype
    assert_close(pooled, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(max_response_pool(tokens.to(dtype), k=4, mask=mask), pooled)


@covers("max_response_pool", "dtypes")
def test_half_sums_do_not_overflow():
    tokens = torch.full((1, 64, 2), 6e4, dtype=torch.float16)
    assert_same(max_response_pool(tokens, k=50), tokens[:, 0])


@covers("max_response_pool", "compile")
def test_compile():
    tokens, mask = problem(8, dtype=torch.float32)
    module = MaxResponsePool(k=5)
    assert_compiles(lambda t, m: module(t, mask=m), tokens, mask)
    assert_compiles(lambda t: max_response_pool(t, k=100), tokens)


@covers("max_response_pool", "errors")
def test_errors():
    tokens, mask = problem(9)
    with pytest.raises(ValueError, match=r"tokens must have shape \(B, N, D\), got \(7, 4\)"):
        max_response_pool(tokens[0], k=2)
    with pytest.raises(TypeError, match="tokens must be a floating-point tensor"):
        max_response_pool(tokens.long(), k=2)
    with pytest.raises(ValueError, match=r"mask must have shape \(B, N\) with B=2, N=7, got"):
        max_response_pool(tokens, k=2, mask=mask[:, :3])
    with pytest.raises(TypeError, match=r"mask must be a bool tensor, got torch\.int64"):
        max_response_pool(tokens, k=2, mask=mask.long())
    with pytest.raises(ValueError, match="mask must be on the device of tokens"):
        max_response_pool(tokens, k=2, mask=mask.to("meta"))
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        max_response_pool(tokens, k=0)
    with pytest.raises(ValueError, match="k must be at least 1, got -1"):
        MaxResponsePool(k=-1)
    for k in (2.0, True):
        with pytest.raises(TypeError, match="k must be an int, got"):
            MaxResponsePool(k=k)


@covers("max_response_pool", "degenerate")
def test_degenerate():
    tokens, mask = problem(10)
    mask[0] = False
    tokens.requires_grad_()
    pooled = max_response_pool(tokens, k=3, mask=mask)
    assert_same(pooled[0], torch.zeros(4, dtype=torch.float64))
    pooled.sum().backward()
    assert_same(tokens.grad[0], torch.zeros(7, 4, dtype=torch.float64))
    assert bool(tokens.grad.isfinite().all())
    assert max_response_pool(torch.full((1, 1, 1), 3.0), k=5).tolist() == [[3.0]]
    assert max_response_pool(torch.zeros(0, 3, 2), k=2).shape == (0, 2)
    assert_same(max_response_pool(torch.full((2, 6, 1), -4.0), k=2), torch.full((2, 1), -4.0))
