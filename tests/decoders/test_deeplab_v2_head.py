import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_module, covers
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import decoders as oracle
from strategies import generator, seeds, sizes, small

from wsss_blocks.decoders import DeepLabV2Head

KEYS = ("branches.0.weight", "branches.0.bias", "branches.1.weight", "branches.1.bias")


def head(seed, dim=3, classes=2, rates=(1, 2), dtype=torch.float64):
    torch.manual_seed(seed)
    module = DeepLabV2Head(dim, classes, rates=rates, dtype=dtype)
    for parameter in module.parameters():  # as training would have left them
        torch.nn.init.normal_(parameter)
    return module


def random_maps(seed, batch=2, dim=3, size=(4, 5)):
    return torch.randn(batch, dim, *size, generator=generator(seed), dtype=torch.float64)


@covers("DeepLabV2Head", "oracle")
@settings(max_examples=10)
@given(seeds, small, small, small, st.sampled_from([(1,), (1, 2), (2, 3), (3, 1, 2)]), sizes(4))
def test_oracle(seed, batch, dim, classes, rates, size):
    module, features = head(seed, dim, classes, rates), random_maps(seed, batch, dim, size)
    assert_close(module(features), oracle.deeplab_v2(features, module.state_dict(), rates))


@covers("DeepLabV2Head", "properties")
def test_shapes_follow_the_paper():
    with torch.device("meta"):
        module = DeepLabV2Head(2048, 21)
    assert [branch.dilation for branch in module.branches] == [(r, r) for r in (6, 12, 18, 24)]
    assert {tuple(branch.weight.shape) for branch in module.branches} == {(21, 2048, 3, 3)}
    assert module(torch.randn(1, 2048, 41, 41, device="meta")).shape == (1, 21, 41, 41)


@covers("DeepLabV2Head", "properties")
def test_linear_in_the_features_but_for_the_biases():
    module, a, b = head(0), random_maps(0), random_maps(1)
    constant = module(torch.zeros_like(a))
    assert_close(module(a + 2 * b) - constant, module(a) + 2 * module(b) - 3 * constant)
    biases = sum(branch.bias for branch in module.branches)
    assert_close(constant, biases[None, :, None, None].expand_as(constant))
    assert_close(module(a[1:]), module(a)[1:])


@covers("DeepLabV2Head", "properties")
def test_each_rate_sees_its_own_ring():
    module = head(1, rates=(2, 5))
    features = torch.zeros(1, 3, 1, 21, dtype=torch.float64)
    features[..., 10] = 1
    seen = (module(features) - module(0 * features)).abs().sum((0, 1, 2)).nonzero().flatten()
    assert seen.tolist() == [5, 8, 10, 12, 15]


@covers("DeepLabV2Head", "properties")
def test_a_fresh_head_is_nearly_undecided():
    torch.manual_seed(2)
    module = DeepLabV2Head(64, 21)
    assert module.branches[3].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not any(branch.bias.any() for branch in module.branches)
    before = module.branches[0].weight.clone()
    module.reset_parameters()
    assert not torch.equal(module.branches[0].weight, before)


@covers("DeepLabV2Head", "gradcheck")
def test_gradcheck():
    assert_gradcheck(head(3), random_maps(3).requires_grad_())


@covers("DeepLabV2Head", "module")
def test_module():
    module, features = head(5), random_maps(5)
    assert_module(module, module(features), features, state_keys=KEYS)


@covers("DeepLabV2Head", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    exact, features = head(6), random_maps(6)
    expected = exact(features)
    module = head(6, dtype=dtype)
    module.load_state_dict(exact.state_dict())
    logits = module(features.to(dtype))
    assert logits.dtype == dtype
    scale = expected.abs().max()
    assert_close(logits / scale.to(dtype), expected / scale)


@covers("DeepLabV2Head", "dtypes")
def test_autocast():
    module, features = head(7), random_maps(8)
    expected = module(features)
    with torch.autocast("cpu", torch.bfloat16):
        logits = module.float()(features.float())
    assert logits.dtype == torch.bfloat16
    assert_close(logits / expected.abs().max(), expected / expected.abs().max())


@covers("DeepLabV2Head", "compile")
def test_compile():
    assert_compiles(head(8), random_maps(8))


@covers("DeepLabV2Head", "errors")
def test_errors():
    for name in ("dim", "num_classes"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            DeepLabV2Head(**({"dim": 3, "num_classes": 2} | {name: 0}))
    with pytest.raises(ValueError, match="rates must be at least 1, got 0"):
        DeepLabV2Head(3, 2, rates=(6, 0))
    with pytest.raises(ValueError, match="rates must hold at least one dilation, got none"):
        DeepLabV2Head(3, 2, rates=())
    with pytest.raises(TypeError, match="rates must be a sequence, got 6"):
        DeepLabV2Head(3, 2, rates=6)
    with pytest.raises(TypeError, match=r"rates must be an int, got 1\.5"):
        DeepLabV2Head(3, 2, rates=(1.5,))
    with pytest.raises(ValueError, match=r"features must have shape \(B, D, h, w\) with D=3, got"):
        head(0)(random_maps(10, dim=4))
    with pytest.raises(TypeError, match="features must be a floating-point tensor"):
        head(0)(random_maps(10).long())
    with pytest.raises(TypeError, match="features must have the dtype of the weights"):
        head(0)(random_maps(10).float())
    with pytest.raises(ValueError, match="features must be finite"):
        head(0)(random_maps(10) / 0)


@covers("DeepLabV2Head", "degenerate")
def test_degenerate():
    module = head(12, rates=(6, 12, 18, 24))
    features = random_maps(12, size=(1, 1)).requires_grad_()
    logits = module(features)
    logits.sum().backward()
    assert logits.shape == (2, 2, 1, 1)
    # One cell: every dilation sees its centre alone.
    centres = sum(branch.weight[:, :, 1, 1] for branch in module.branches)
    biases = sum(branch.bias for branch in module.branches)
    assert_close(logits[..., 0, 0], features[..., 0, 0] @ centres.T + biases)
    assert torch.isfinite(features.grad).all()
    assert module(random_maps(12)[:0]).shape == (0, 2, 4, 5)
