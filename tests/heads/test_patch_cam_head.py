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
from oracles import cti as oracle
from strategies import generator, seeds, sizes, small
from torch import nn

from wsss_blocks.heads import ClassHeadOutput, PatchCAMHead
from wsss_blocks.pooling import GlobalWeightedRankPool, global_max_pool

both = pytest.mark.parametrize("background", [False, True])


def problem(seed, size=(3, 4), batch=2, dim=5, classes=3, dtype=torch.float64, **settings):
    g = generator(seed)
    head = PatchCAMHead(dim, classes, dtype=dtype, **settings)
    with torch.no_grad():
        for parameter in (head.weight, head.bias):
            parameter.copy_(torch.randn(parameter.shape, generator=g))
    features = torch.randn(batch, dim, *size, generator=g, dtype=dtype)
    return head, features, torch.rand(batch, *size, generator=g) < 0.7


@covers("PatchCAMHead", "oracle")
@both
@given(
    seed=seeds,
    size=sizes(4),
    batch=small,
    dim=small,
    classes=small,
    kernel=st.sampled_from([1, 3, 5]),
    masked=st.booleans(),
)
def test_oracle(background, seed, size, batch, dim, classes, kernel, masked):
    head, features, valid = problem(
        seed, size, batch, dim, classes, background=background, kernel_size=kernel
    )
    valid = valid if masked else None
    logits, cam = oracle.patch_head(
        features.tolist(),
        head.weight.tolist(),
        head.bias.tolist(),
        background,
        None if valid is None else valid.tolist(),
    )
    out = head(features, valid=valid)
    assert isinstance(out, ClassHeadOutput)
    assert_close(out.logits, torch.tensor(logits, dtype=torch.float64))
    assert_close(out.cam, torch.tensor(cam, dtype=torch.float64))


@covers("PatchCAMHead", "properties")
@both
def test_properties(background):
    head, features, valid = problem(0, background=background)
    logits, cam = head(features, valid=valid)
    assert logits.shape == (2, 3)
    assert cam.shape == (2, 3 + background, 3, 4)
    assert bool((cam < 0).any()), "the map is raw: no ReLU"
    order = torch.tensor([1, 0])
    assert_close(head(features[order], valid=valid[order]).cam, cam[order])
    # a pooling sees the classes alone
    seen = []

    def pool(maps, *, valid):
        seen.append(maps)
        return global_max_pool(maps, valid=valid)

    head.pool = pool
    assert_close(head(features).logits, cam[:, int(background) :].amax((2, 3)))
    assert_same(seen[0], cam[:, int(background) :])


@covers("PatchCAMHead", "properties")
def test_the_logits_do_not_train_the_background_channel():
    head, features, _ = problem(1, background=True)
    head(features).logits.square().sum().backward()
    assert bool((head.weight.grad[0] == 0).all())
    assert bool((head.bias.grad[0] == 0).all())
    assert bool((head.weight.grad[1:] != 0).all())


@covers("PatchCAMHead", "gradcheck")
@both
def test_gradcheck(background):
    head, features, valid = problem(3, background=background)

    def run(x, weight, bias):
        parameters = {"weight": weight, "bias": bias}
        return torch.func.functional_call(head, parameters, (x,), {"valid": valid})

    assert_gradcheck(run, features.requires_grad_(), head.weight, head.bias)


@covers("PatchCAMHead", "module")
@both
def test_module(background):
    head, features, valid = problem(4, background=background)
    keys = ("weight", "bias")
    assert_module(head, head(features, valid=valid), features, valid=valid, state_keys=keys)
    assert f"5, 3, background={background}, kernel_size=3, pool=global_average_pool" in repr(head)
    ranked, _, _ = problem(4, background=background, pool=GlobalWeightedRankPool(decay=0.5))
    assert tuple(ranked.state_dict()) == keys
    assert "GlobalWeightedRankPool(decay=0.5)" in repr(ranked)
    reference = nn.Conv2d(5, 3 + background, 3, padding=1, dtype=torch.float64)
    for one in (reference, head):
        torch.manual_seed(0)
        one.reset_parameters()
    assert_same(head.weight, reference.weight)
    assert_same(head.bias, reference.bias)
    assert_close(head(features).cam, reference(features))


@covers("PatchCAMHead", "dtypes")
@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(background, dtype):
    head, features, valid = problem(5, background=background)
    expected = head(features, valid=valid)
    out = head.to(dtype)(features.to(dtype), valid=valid)
    assert out.logits.dtype == out.cam.dtype == dtype
    atol = 0.15 if dtype == torch.bfloat16 else 1e-5  # sums of 45 products
    for actual, wanted in zip(out, expected, strict=True):
        torch.testing.assert_close(actual.double(), wanted.double(), rtol=0, atol=atol)


@covers("PatchCAMHead", "dtypes")
@both
def test_autocast(background):
    head, features, valid = problem(6, dtype=torch.float32, background=background)
    expected = head(features, valid=valid)
    with torch.autocast("cpu", torch.bfloat16):
        out = head(features, valid=valid)
    assert out.logits.dtype == out.cam.dtype == torch.bfloat16
    for actual, wanted in zip(out, expected, strict=True):
        torch.testing.assert_close(actual.float(), wanted, rtol=0, atol=0.15)


@covers("PatchCAMHead", "compile")
@both
def test_compile(background):
    head, features, valid = problem(7, dtype=torch.float32, background=background)
    assert_compiles(lambda x, v: head(x, valid=v), features, valid)


@covers("PatchCAMHead", "errors")
def test_errors():
    head, features, valid = problem(8)
    with pytest.raises(ValueError, match=r"features must have shape \(B, D, h, w\) with D=5, got"):
        head(features[:, :4])
    with pytest.raises(TypeError, match="features must be a floating-point tensor"):
        head(features.long())
    with pytest.raises(TypeError, match="features must have the dtype of the weights"):
        head(features.float())
    with pytest.raises(ValueError, match="features must be on the device of the weights"):
        head(features.to("meta"))
    with pytest.raises(ValueError, match="features must be finite"):
        head(features.where(features < 1, float("nan")))
    with pytest.raises(ValueError, match=r"valid must have shape \(B, h, w\) with B=2, h=3, w=4"):
        head(features, valid=valid[:1])
    with pytest.raises(TypeError, match="valid must be a bool tensor"):
        head(features, valid=valid.float())
    for name, sizes_ in (("dim", (0, 3)), ("num_classes", (5, 0))):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            PatchCAMHead(*sizes_)
    with pytest.raises(ValueError, match="kernel_size must be at least 1, got 0"):
        PatchCAMHead(5, 3, kernel_size=0)
    with pytest.raises(ValueError, match="kernel_size must be odd, got 2"):
        PatchCAMHead(5, 3, kernel_size=2)
    wrong, _, _ = problem(8, pool=lambda maps, *, valid: maps.amax((2, 3), keepdim=True))
    with pytest.raises(ValueError, match=r"the output of pool must have shape \(B, C\) with B=2"):
        wrong(features)


@covers("PatchCAMHead", "degenerate")
@both
def test_degenerate(background):
    head, features, valid = problem(9, background=background)
    valid[0] = False
    features.requires_grad_()
    logits, _ = head(features, valid=valid)
    assert_same(logits[0], torch.zeros(3, dtype=torch.float64))
    logits.sum().backward()
    assert_same(features.grad[0], torch.zeros_like(features[0]))
    assert bool(head.weight.grad.isfinite().all())
    one = PatchCAMHead(1, 1, background=background)
    logits, cam = one(torch.ones(1, 1, 1, 1))
    expected = one.weight.detach()[:, 0, 1, 1] + one.bias.detach()
    assert_close(cam.flatten(), expected)
    assert_close(logits.flatten(), expected[-1:])
    assert one(torch.ones(0, 1, 2, 2)).logits.shape == (0, 1)
