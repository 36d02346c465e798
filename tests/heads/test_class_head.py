from functools import partial

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
from oracles import heads as oracle
from strategies import generator, seeds, sizes, small
from torch import nn

from wsss_blocks.heads import ClassHead, ClassHeadOutput
from wsss_blocks.pooling import GlobalTopKPool, global_average_pool, global_top_k_pool

both = pytest.mark.parametrize("pool_at", ["features", "cam"])


def problem(seed, size=(3, 4), batch=2, dim=5, classes=3, dtype=torch.float64, **settings):
    g = generator(seed)
    head = ClassHead(dim, classes, dtype=dtype, **settings)
    with torch.no_grad():
        head.weight.copy_(torch.randn(classes, dim, 1, 1, generator=g))
    features = torch.randn(batch, dim, *size, generator=g, dtype=dtype)
    return head, features, torch.rand(batch, *size, generator=g) < 0.7


@covers("ClassHead", "oracle")
@both
@given(seed=seeds, size=sizes(4), batch=small, dim=small, classes=small, masked=st.booleans())
def test_oracle(pool_at, seed, size, batch, dim, classes, masked):
    head, features, valid = problem(seed, size, batch, dim, classes, pool_at=pool_at)
    valid = valid if masked else None
    kept = None if valid is None else valid.tolist()
    weight = head.weight.flatten(1).tolist()
    logits, cam = oracle.class_head(features.tolist(), weight, kept, pool_at)
    out = head(features, valid=valid)
    assert isinstance(out, ClassHeadOutput)
    assert_close(out.logits, torch.tensor(logits, dtype=torch.float64))
    assert_close(out.cam, torch.tensor(cam, dtype=torch.float64))


@covers("ClassHead", "properties")
@both
def test_properties(pool_at):
    head, features, valid = problem(0, pool_at=pool_at)
    logits, cam = head(features, valid=valid)
    mirrored = head(features.flip(3), valid=valid.flip(2))
    assert_close(mirrored.logits, logits)
    assert_close(mirrored.cam, cam.flip(3))
    scaled = head(2 * features, valid=valid)
    assert_close(scaled.logits, 2 * logits)
    assert_close(scaled.cam, 2 * cam)
    assert bool((cam < 0).any()), "the map is raw: no ReLU"
    if pool_at == "cam":
        assert_same(head(features).logits, cam.amax((2, 3)))


@covers("ClassHead", "properties")
def test_average_pooling_commutes_with_the_classifier():
    for pool in (global_average_pool, lambda maps, *, valid: global_average_pool(maps)):
        first, features, _ = problem(1, pool=pool)
        second, _, _ = problem(1, pool=pool, pool_at="cam")
        assert_close(first(features).logits, second(features).logits)


@covers("ClassHead", "properties")
def test_any_pool_is_used():
    pool = partial(global_top_k_pool, fraction=0.5)
    for pool_at, channels in (("features", 5), ("cam", 3)):
        head, features, valid = problem(2, pool=pool, pool_at=pool_at)
        maps = features if pool_at == "features" else head(features).cam
        pooled = pool(maps, valid=valid)
        assert pooled.shape == (2, channels)
        if pool_at == "features":
            pooled = pooled @ head.weight.flatten(1).T
        assert_close(head(features, valid=valid).logits, pooled)


@covers("ClassHead", "gradcheck")
@both
def test_gradcheck(pool_at):
    head, features, valid = problem(3, pool_at=pool_at)

    def run(x, weight):
        return torch.func.functional_call(head, {"weight": weight}, (x,), {"valid": valid})

    assert_gradcheck(run, features.requires_grad_(), head.weight)
    head(features).cam.sum().backward()
    assert_close(features.grad, head.weight.detach().sum(0, keepdim=True).expand_as(features))


@covers("ClassHead", "module")
@both
def test_module(pool_at):
    head, features, valid = problem(4, pool_at=pool_at)
    assert_module(head, head(features, valid=valid), features, valid=valid, state_keys=("weight",))
    assert head.weight.shape == (3, 5, 1, 1)
    assert f"5, 3, pool=global_max_pool, pool_at='{pool_at}'" in repr(head)
    module, _, _ = problem(4, pool=GlobalTopKPool(fraction=0.5))
    assert tuple(module.state_dict()) == ("weight",)
    assert "GlobalTopKPool(fraction=0.5)" in repr(module)
    reference = nn.Conv2d(5, 3, 1, bias=False, dtype=torch.float64)
    torch.manual_seed(0)
    reference.reset_parameters()
    torch.manual_seed(0)
    head.reset_parameters()
    assert_same(head.weight, reference.weight)


@covers("ClassHead", "dtypes")
@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(pool_at, dtype):
    head, features, valid = problem(5, pool_at=pool_at)
    expected = head(features, valid=valid)
    out = head.to(dtype)(features.to(dtype), valid=valid)
    assert out.logits.dtype == out.cam.dtype == dtype
    for actual, wanted in zip(out, expected, strict=True):
        torch.testing.assert_close(
            actual.double(), wanted.double(), rtol=0, atol=0.08 if dtype == torch.bfloat16 else 1e-5
        )


@covers("ClassHead", "dtypes")
@both
def test_autocast(pool_at):
    head, features, valid = problem(6, dtype=torch.float32, pool_at=pool_at)
    expected = head(features, valid=valid)
    with torch.autocast("cpu", torch.bfloat16):
        out = head(features, valid=valid)
    assert out.logits.dtype == out.cam.dtype == torch.bfloat16
    for actual, wanted in zip(out, expected, strict=True):
        torch.testing.assert_close(actual.float(), wanted, rtol=0, atol=0.08)


@covers("ClassHead", "compile")
@both
def test_compile(pool_at):
    head, features, valid = problem(7, dtype=torch.float32, pool_at=pool_at)
    assert_compiles(lambda x, v: head(x, valid=v), features, valid)


@covers("ClassHead", "errors")
def test_errors():
    head, features, valid = problem(8)
    with pytest.raises(ValueError, match=r"features must have shape \(B, D, h, w\) with D=5, got"):
        head(features[:, :4])
    with pytest.raises(TypeError, match="features must be a floating-point tensor"):
        head(features.long())
    with pytest.raises(ValueError, match="features must be on the device of the weights"):
        head(features.to("meta"))
    with pytest.raises(ValueError, match=r"valid must have shape \(B, h, w\) with B=2, h=3, w=4"):
        head(features, valid=valid[:1])
    with pytest.raises(TypeError, match="valid must be a bool tensor"):
        head(features, valid=valid.float())
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        ClassHead(0, 3)
    with pytest.raises(ValueError, match="pool_at must be one of 'features', 'cam', got 'logits'"):
        ClassHead(5, 3, pool_at="logits")
    wrong, _, _ = problem(8, pool=lambda maps, *, valid: maps.amax((2, 3), keepdim=True))
    with pytest.raises(ValueError, match=r"the output of pool must have shape \(B, C\) with B=2"):
        wrong(features)


@covers("ClassHead", "degenerate")
@both
def test_degenerate(pool_at):
    head, features, valid = problem(9, pool_at=pool_at)
    valid[0] = False
    features.requires_grad_()
    logits, _ = head(features, valid=valid)
    assert_same(logits[0], torch.zeros(3, dtype=torch.float64))
    logits.sum().backward()
    assert_same(features.grad[0], torch.zeros_like(features[0]))
    assert bool(head.weight.grad.isfinite().all())
    one = ClassHead(1, 1, pool_at=pool_at)
    logits, cam = one(torch.ones(1, 1, 1, 1))
    assert_same(logits.flatten(), one.weight.detach().flatten())
    assert_same(cam.flatten(), one.weight.detach().flatten())
    assert one(torch.ones(0, 1, 2, 2)).logits.shape == (0, 1)
    flat = torch.ones(1, 5, 4, 4, dtype=torch.float64)
    assert_close(head(flat).logits, head.weight.sum((1, 2, 3))[None])
