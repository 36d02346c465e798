import math

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
from hypothesis import strategies as st
from oracles import losses as oracle
from strategies import generator, seeds, small

from wsss_blocks.losses import CropTokenContrastLoss, crop_token_contrast_loss


def problem(seed=0, batch=3, crops=4, views=2, dim=5):
    g = generator(seed)
    tokens = torch.randn(batch, crops, dim, generator=g, dtype=torch.float64)
    targets = torch.randn(batch, views, dim, generator=g, dtype=torch.float64)
    positive = torch.rand(batch, crops, generator=g) < 0.5
    positive[0] = torch.arange(crops) % 2 == 0
    return tokens, targets, positive


@covers("crop_token_contrast_loss", "oracle")
@given(seeds, small, st.integers(1, 4), small, small, st.sampled_from([0.1, 0.5, 1.0]))
def test_oracle(seed, batch, crops, views, dim, temperature):
    args = problem(seed, batch, crops, views, dim)
    expected = oracle.crop_token_contrast(*args, temperature)
    assert_close(crop_token_contrast_loss(*args, temperature=temperature), expected)


@covers("crop_token_contrast_loss", "properties")
def test_properties():
    tokens, targets, positive = problem(1)
    loss = crop_token_contrast_loss(tokens, targets, positive)
    order = torch.tensor([2, 0, 3, 1])
    assert_close(crop_token_contrast_loss(tokens[:, order], targets, positive[:, order]), loss)
    assert_close(crop_token_contrast_loss(3 * tokens, 0.5 * targets.flip(1), positive), loss)
    each = [crop_token_contrast_loss(t[None], v[None], p[None])
            for t, v, p in zip(tokens, targets, positive, strict=True)]  # fmt: skip
    assert_close(torch.stack(each).mean(), loss)
    # another negative costs; a positive on the target and negatives away cost least
    more = (
        torch.cat([tokens, targets[:, :1]], 1),
        targets,
        torch.cat([positive, positive[:, :1] & False], 1),
    )
    assert crop_token_contrast_loss(*more) > loss
    view, kinds = torch.eye(2)[None, :1], torch.tensor([[True, False, False]])
    best = torch.stack([view[0, 0], -view[0, 0], -view[0, 0]])[None]
    for temperature in (0.5, 1.0):
        expected = math.log(1 + 2 * math.exp(-2 / temperature))
        found = crop_token_contrast_loss(best, view, kinds, temperature=temperature)
        assert_close(found, expected)


@covers("crop_token_contrast_loss", "gradcheck")
def test_gradient():
    tokens, targets, positive = problem(2)
    tokens.requires_grad_()
    assert_gradcheck(lambda x: crop_token_contrast_loss(x, targets, positive), tokens)
    targets.requires_grad_()
    loss = crop_token_contrast_loss(tokens, targets, positive)
    grads = torch.autograd.grad(loss, (tokens, targets), allow_unused=True)
    assert grads[1] is None  # the teacher is given
    stepped = (tokens - 0.1 * grads[0]).detach()
    assert crop_token_contrast_loss(stepped, targets, positive) < loss


@covers("crop_token_contrast_loss", "module", "compile")
def test_module_and_compile():
    args = problem(3)
    module = CropTokenContrastLoss(temperature=0.2)
    assert "temperature=0.2" in repr(module)
    assert_module(module, crop_token_contrast_loss(*args, temperature=0.2), *args)
    assert_compiles(crop_token_contrast_loss, *args)


@covers("crop_token_contrast_loss", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    tokens, targets, positive = problem(4)
    tokens, targets = tokens.to(dtype).requires_grad_(), targets.to(dtype)
    expected = crop_token_contrast_loss(tokens.double(), targets.double(), positive)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = crop_token_contrast_loss(tokens, targets, positive)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(loss, expected, dtype=torch.float32)
        assert torch.autograd.grad(loss, tokens)[0].isfinite().all()


@covers("crop_token_contrast_loss", "degenerate")
def test_degenerate():
    tokens, targets, positive = problem(5)
    tokens.requires_grad_()
    for kinds in (positive & False, positive | True):  # only negatives, only positives
        loss = crop_token_contrast_loss(tokens, targets, kinds)
        assert loss == 0
        assert_same(torch.autograd.grad(loss, tokens)[0], torch.zeros_like(tokens))
    assert crop_token_contrast_loss(tokens[:0], targets[:0], positive[:0]) == 0
    zero = torch.zeros(1, 3, 4, requires_grad=True)
    loss = crop_token_contrast_loss(zero, zero, torch.tensor([[True, False, False]]))
    assert_close(loss, math.log(3))
    assert torch.autograd.grad(loss, zero)[0].isfinite().all()
    assert crop_token_contrast_loss(tokens, targets, positive, temperature=1e-3).isfinite()


@covers("crop_token_contrast_loss", "errors")
def test_errors():
    tokens, targets, positive = problem()
    with pytest.raises(ValueError, match=r"tokens must have shape \(B, N, D\), got \(3, 4\)"):
        crop_token_contrast_loss(tokens[..., 0], targets, positive)
    with pytest.raises(ValueError, match=r"targets must have shape .* D=5, got \(3, 2, 4\)"):
        crop_token_contrast_loss(tokens, targets[..., 1:], positive)
    with pytest.raises(ValueError, match=r"positive must have shape .* N=4, got \(3, 3\)"):
        crop_token_contrast_loss(tokens, targets, positive[:, 1:])
    with pytest.raises(TypeError, match="positive must be a bool tensor, got"):
        crop_token_contrast_loss(tokens, targets, positive.float())
    with pytest.raises(TypeError, match="targets must be a floating-point tensor"):
        crop_token_contrast_loss(tokens, targets.long(), positive)
    for name in ("targets", "positive"):
        args = {"targets": targets, "positive": positive}
        with pytest.raises(ValueError, match=f"{name} must be on the device of tokens"):
            crop_token_contrast_loss(tokens, **args | {name: args[name].to("meta")})
    with pytest.raises(ValueError, match="temperature must be positive and finite, got 0"):
        CropTokenContrastLoss(temperature=0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        crop_token_contrast_loss(tokens, targets, positive, temperature=-1)
