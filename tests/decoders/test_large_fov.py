import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_module, covers
from hypothesis import given
from hypothesis import strategies as st
from oracles import decoders as oracle
from strategies import generator, seeds, sizes, small

from wsss_blocks.decoders import LargeFOV

KEYS = ("conv1.weight", "conv2.weight", "classifier.weight")
SKIP_KEYS = (
    "conv1.weight",
    "conv2.weight",
    "skip_proj.weight",
    "skip_norm.weight",
    "skip_norm.bias",
    "fuse.weight",
    "classifier.weight",
)


def decoder(seed, dim=3, classes=4, skip_dim=None, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    options = {"hidden_dim": 3, "skip_hidden_dim": 2, "dilation": 2} | options
    module = LargeFOV(dim, classes, skip_dim=skip_dim, dtype=dtype, **options)
    if skip_dim is not None:
        torch.nn.init.normal_(module.skip_norm.weight)
        torch.nn.init.normal_(module.skip_norm.bias)
    return module


def random_maps(seed, batch=2, dim=3, size=(4, 5)):
    return torch.randn(batch, dim, *size, generator=generator(seed), dtype=torch.float64)


@covers("LargeFOV", "oracle")
@given(seeds, small, small, small, st.sampled_from([1, 2, 5]), sizes(5))
def test_oracle(seed, batch, dim, classes, dilation, size):
    module = decoder(seed, dim, classes, dilation=dilation)
    features = random_maps(seed, batch, dim, size)
    assert_close(module(features), oracle.large_fov(features, module.state_dict(), dilation))


@covers("LargeFOV", "oracle")
@given(seeds, small, small, sizes(3), sizes(4))
def test_oracle_with_skip(seed, batch, skip_dim, size, skip_size):
    module = decoder(seed, skip_dim=skip_dim)
    features = random_maps(seed, batch, 3, size)
    skip = random_maps(seed + 1, batch, skip_dim, skip_size)
    expected = oracle.large_fov(features, module.state_dict(), 2, skip)
    assert_close(module(features, skip=skip), expected)


@covers("LargeFOV", "properties")
def test_shapes_follow_the_paper():
    with torch.device("meta"):
        module = LargeFOV(768, 21)
        shapes = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    assert shapes == {
        "conv1.weight": (512, 768, 3, 3),
        "conv2.weight": (512, 512, 3, 3),
        "classifier.weight": (21, 512, 1, 1),
    }
    assert module.conv1.dilation == module.conv2.dilation == (5, 5)
    assert module(torch.randn(1, 768, 28, 28, device="meta")).shape == (1, 21, 28, 28)


@covers("LargeFOV", "properties")
def test_homogeneous_and_independent_of_the_batch():
    module, features = decoder(0), random_maps(0)
    logits = module(features)
    assert_close(module(3 * features), 3 * logits)
    assert_close(module(features[1:]), logits[1:])
    module.classifier.weight.data = module.classifier.weight.data.flip(0)
    assert_close(module(features), logits.flip(1))


@covers("LargeFOV", "properties")
def test_the_field_of_view_is_four_dilations_wide():
    module = decoder(1, dilation=3, hidden_dim=32)
    features = torch.zeros(1, 3, 1, 31, dtype=torch.float64)
    features[..., 15] = 1
    seen = module(features).abs().sum((0, 1, 2)).nonzero().flatten().tolist()
    assert seen == [9, 12, 15, 18, 21]


@covers("LargeFOV", "properties")
def test_fresh_weights_keep_the_size_of_activations():
    torch.manual_seed(2)
    module = LargeFOV(64, 21, hidden_dim=64, dilation=1, skip_dim=8)
    logits = module(torch.randn(4, 64, 16, 16), skip=100 * torch.randn(4, 8, 16, 16))
    assert 0.3 < logits.std() < 3
    before = module.conv1.weight.clone()
    module.reset_parameters()
    assert not torch.equal(module.conv1.weight, before)


@covers("LargeFOV", "gradcheck")
def test_gradcheck():
    features, skip = random_maps(3).requires_grad_(), random_maps(4, 2, 2, (5, 6)).requires_grad_()
    assert_gradcheck(decoder(3), features)
    module = decoder(4, skip_dim=2)
    assert_gradcheck(lambda x, s: module(x, skip=s), features, skip)


@covers("LargeFOV", "module")
def test_module():
    module, features = decoder(5), random_maps(5)
    assert_module(module, module(features), features, state_keys=KEYS)
    module, skip = decoder(5, skip_dim=2), random_maps(6, 2, 2)
    assert_module(module, module(features, skip=skip), features, state_keys=SKIP_KEYS, skip=skip)


@covers("LargeFOV", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    exact, features, skip = decoder(6, skip_dim=2), random_maps(6), random_maps(7, 2, 2, (6, 6))
    expected = exact(features, skip=skip)
    module = decoder(6, skip_dim=2, dtype=dtype)
    module.load_state_dict(exact.state_dict())
    logits = module(features.to(dtype), skip=skip.to(dtype))
    assert logits.dtype == dtype
    scale = expected.abs().max()
    assert_close(logits / scale.to(dtype), expected / scale)


@covers("LargeFOV", "dtypes")
def test_autocast():
    module, features, skip = decoder(7, skip_dim=2), random_maps(8), random_maps(9, 2, 2, (6, 6))
    expected = module(features, skip=skip)
    with torch.autocast("cpu", torch.bfloat16):
        logits = module.float()(features.float(), skip=skip.float())
    assert logits.dtype == torch.bfloat16
    assert_close(logits / expected.abs().max(), expected / expected.abs().max())


@covers("LargeFOV", "compile")
def test_compile():
    module, skip = decoder(8, skip_dim=2), random_maps(9, 2, 2, (6, 6))
    assert_compiles(lambda x, s: module(x, skip=s), random_maps(8), skip)


@covers("LargeFOV", "errors")
def test_errors():
    features, skip = random_maps(10), random_maps(11, 2, 2)
    for name in ("dim", "num_classes", "hidden_dim", "dilation", "skip_dim", "skip_hidden_dim"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            LargeFOV(**({"dim": 3, "num_classes": 2} | {name: 0}))
    with pytest.raises(ValueError, match=r"features must have shape \(B, D, h, w\) with D=3, got"):
        decoder(0)(random_maps(10, dim=4))
    with pytest.raises(TypeError, match="features must be a floating-point tensor"):
        decoder(0)(features.long())
    with pytest.raises(ValueError, match="skip must be left out without skip_dim"):
        decoder(0)(features, skip=skip)
    module = decoder(0, skip_dim=2)
    with pytest.raises(ValueError, match="skip must be given with skip_dim=2, got None"):
        module(features)
    with pytest.raises(ValueError, match=r"skip must have shape \(B, D, h, w\) with B=2, D=2"):
        module(features, skip=skip[:1])
    with pytest.raises(TypeError, match="skip must be a floating-point tensor"):
        module(features, skip=skip.long())
    with pytest.raises(ValueError, match="skip must be on the device of the weights"):
        module(features, skip=skip.to("meta"))


@covers("LargeFOV", "degenerate")
def test_degenerate():
    module = decoder(12, dim=1, classes=1, skip_dim=1)
    features = torch.zeros(1, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    constant = torch.ones(1, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    logits = module(features, skip=constant)
    logits.sum().backward()
    assert logits.shape == (1, 1, 1, 1)
    assert torch.isfinite(logits).all()
    assert torch.isfinite(constant.grad).all()
    assert not decoder(12)(torch.zeros(2, 3, 4, 4, dtype=torch.float64)).any()
    assert decoder(12)(random_maps(12)[:0]).shape == (0, 4, 4, 5)
