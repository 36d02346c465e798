import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_same, covers
from hypothesis import given
from oracles import cti as oracle
from strategies import generator, seeds, small

from wsss_blocks.heads import class_token_logits

both = pytest.mark.parametrize("background", [False, True])


def problem(seed=0, batch=2, number=4, dim=5):
    return torch.randn(batch, number, dim, generator=generator(seed), dtype=torch.float64)


@covers("class_token_logits", "oracle")
@both
@given(seeds, small, small, small)
def test_oracle(background, seed, batch, classes, dim):
    tokens = problem(seed, batch, classes + background, dim)
    expected = torch.tensor(oracle.token_logits(tokens.tolist(), background), dtype=torch.float64)
    assert_close(class_token_logits(tokens, background=background), expected)


@covers("class_token_logits", "properties")
@both
def test_properties(background):
    tokens = problem(1)
    logits = class_token_logits(tokens, background=background)
    assert logits.shape == (2, 4 - background)
    assert_close(class_token_logits(tokens.flip(2), background=background), logits)
    assert_close(class_token_logits(3 * tokens - 1, background=background), 3 * logits - 1)
    order = torch.tensor([0, 3, 1, 2])  # of tokens: the first one keeps its place
    expected = class_token_logits(tokens)[:, order][:, int(background) :]
    assert_close(class_token_logits(tokens[:, order], background=background), expected)


@covers("class_token_logits", "gradcheck")
@both
def test_gradient(background):
    tokens = problem(2).requires_grad_()
    assert_gradcheck(lambda x: class_token_logits(x, background=background), tokens)
    class_token_logits(tokens, background=background).sum().backward()
    expected = torch.full_like(tokens, 0.2)
    expected[:, : int(background)] = 0
    assert_close(tokens.grad, expected)


@covers("class_token_logits", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    tokens = problem(3).to(dtype)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = class_token_logits(tokens)
        assert logits.dtype == dtype
        assert_close(logits, class_token_logits(tokens.double()))
    # the sum over channels does not overflow in half precision
    large = torch.full((1, 1, 100), 30000.0, dtype=torch.float16)
    assert class_token_logits(large).isfinite().all()


@covers("class_token_logits", "compile")
@both
def test_compile(background):
    assert_compiles(lambda x: class_token_logits(x, background=background), problem())


@covers("class_token_logits", "errors")
def test_errors():
    tokens = problem()
    with pytest.raises(ValueError, match=r"tokens must have shape \(B, n, D\), got \(2, 4\)"):
        class_token_logits(tokens[..., 0])
    with pytest.raises(TypeError, match=r"tokens must be a floating-point tensor, got torch.int64"):
        class_token_logits(tokens.long())
    with pytest.raises(ValueError, match="tokens must be finite"):
        class_token_logits(tokens / 0)
    with pytest.raises(ValueError, match="tokens must have n >= 2 with a background token, got n="):
        class_token_logits(tokens[:, :1], background=True)


@covers("class_token_logits", "degenerate")
def test_degenerate():
    assert_same(class_token_logits(torch.full((1, 1, 1), 3.0)), torch.tensor([[3.0]]))
    assert class_token_logits(torch.ones(0, 3, 2), background=True).shape == (0, 2)
    assert_same(class_token_logits(torch.zeros(2, 3, 4)), torch.zeros(2, 3))
