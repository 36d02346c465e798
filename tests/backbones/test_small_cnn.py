import copy

import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_module, covers
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.backbones import small_cnn
from packed import Packed
from strategies import generator, seeds
from torch import nn

from wsss_blocks.backbones import SmallCNN


def tiny(dtype=torch.float32, **kwargs):
    torch.manual_seed(0)
    return SmallCNN((4, 6), blocks=(1, 1), **kwargs).to(dtype).eval()


def shuffle_norms(model, g):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, generator=g)
            nn.init.normal_(module.bias, generator=g)
            nn.init.normal_(module.running_mean, generator=g)
            nn.init.uniform_(module.running_var, 0.5, 2.0, generator=g)


@covers("SmallCNN", "oracle")
@settings(max_examples=4)
@given(seeds, st.sampled_from([(0, 1), (1, 0), (2, 1)]), st.sampled_from([(4, 4), (8, 4)]))
def test_stages_equal_the_loops(seed, blocks, size):
    g = generator(seed)
    model = SmallCNN((2, 4), blocks=blocks, std=(0.2, 0.5, 1.0)).double().eval()
    shuffle_norms(model, g)
    images = torch.rand(2, 3, *size, generator=g, dtype=torch.float64)
    out = model(images, layers=(1, 2))
    state = {k: v.detach() for k, v in model.state_dict().items()}
    for i, image in enumerate(images):
        first, second = small_cnn(image, state, blocks)
        assert_close(out.intermediates[1][i], first)
        assert_close(out.intermediates[2][i], second)
        assert_close(out.feature_map[i], second)


@covers("SmallCNN", "properties")
def test_images_do_not_meet_each_other():
    model, images = tiny(), torch.rand(3, 3, 8, 8)
    order = torch.tensor([2, 0, 1])
    together = model(images).feature_map
    assert_close(model(images[order]).feature_map, together[order])
    assert_close(model(images[1:2]).feature_map, together[1:2])


@covers("SmallCNN", "properties")
def test_taps_are_on_the_path_and_layers_resolve():
    model, images = tiny(), torch.rand(1, 3, 8, 8)
    out = model(images, layers=(-2,))
    assert list(out.taps) == list(out.intermediates) == list(out.class_tokens_at) == [1]
    (grad,) = torch.autograd.grad(out.feature_map.sum(), out.taps[1])
    assert grad.abs().sum() > 0
    assert out.class_tokens.shape == (1, 0, 6)
    assert out.class_tokens_at[1].shape == (1, 0, 4)
    tokens = out.patch_tokens
    assert model.project(tokens) is tokens
    assert (model.dim, model.layer_dims, model.stride) == (6, {1: 4, 2: 6}, 4)
    assert model.num_class_tokens == 0


@covers("SmallCNN", "properties")
@pytest.mark.parametrize(("policy", "grid"), [("resize", 3), ("pad", 3), ("floor", 2)])
def test_size_policies(policy, grid):
    assert tiny(size_policy=policy)(torch.rand(1, 3, 11, 8)).feature_map.shape == (1, 6, grid, 2)


@covers("SmallCNN", "gradcheck")
def test_gradient():
    model = tiny(torch.float64)
    images = torch.rand(1, 3, 4, 8, dtype=torch.float64, requires_grad=True)
    assert_gradcheck(lambda x: model(x).feature_map, images)


@covers("SmallCNN", "module")
def test_state_copy_and_initialisation():
    model = Packed(SmallCNN((4,), blocks=(1,)).eval(), layers=(1,))
    images = torch.rand(1, 3, 4, 4)
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = ["mean", "std", "stages.0.0.weight", *(f"stages.0.1.{p}" for p in norm)]
    for i in (1, 2):
        keys += [f"stages.0.3.conv{i}.weight", *(f"stages.0.3.norm{i}.{p}" for p in norm)]
    assert_module(model, model(images), images, state_keys=tuple(f"encoder.{k}" for k in keys))
    weight = SmallCNN((64, 64), blocks=(0, 0)).stages[1][0].weight
    assert float(weight.detach().std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)


@covers("SmallCNN", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    model, images = tiny(), torch.rand(2, 3, 8, 8)
    out = copy.deepcopy(model).to(dtype)(images.to(dtype)).feature_map
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), model(images).feature_map, rtol=0.1, atol=0.1)


@covers("SmallCNN", "dtypes")
def test_autocast():
    model, images = tiny(), torch.rand(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images).feature_map
    torch.testing.assert_close(out.float(), model(images).feature_map, rtol=0.1, atol=0.1)


@covers("SmallCNN", "compile")
def test_compiles():
    assert_compiles(Packed(tiny(), layers=(1,)), torch.rand(2, 3, 10, 8))


@covers("SmallCNN", "errors")
def test_refuses():
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, H, W\)"):
        tiny()(torch.rand(1, 1, 8, 8))
    with pytest.raises(TypeError, match="images must be a floating-point tensor"):
        tiny()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"RGB in \[0, 1\].*to 255"):
        tiny()(torch.full((1, 3, 8, 8), 255.0))
    with pytest.raises(ValueError, match=r"images must be finite"):
        tiny()(torch.full((1, 3, 8, 8), float("nan")))
    with pytest.raises(ValueError, match=r"layers must lie in 1\.\.2 .*got 0"):
        tiny()(torch.rand(1, 3, 8, 8), layers=(0,))
    with pytest.raises(ValueError, match=r"got -3"):
        tiny()(torch.rand(1, 3, 8, 8), layers=(-3,))
    with pytest.raises(ValueError, match="got 2 widths and 3 blocks"):
        SmallCNN((8, 8))
    with pytest.raises(ValueError, match="got 0 widths and 0 blocks"):
        SmallCNN((), blocks=())
    with pytest.raises(ValueError, match="widths must be at least 1, got 0"):
        SmallCNN((0,), blocks=(0,))
    with pytest.raises(ValueError, match="size_policy must be one of"):
        SmallCNN(size_policy="crop")
    with pytest.raises(ValueError, match=r"mean must hold 3 numbers"):
        SmallCNN(mean=(0.5,))


@covers("SmallCNN", "degenerate")
def test_constant_tiny_and_no_images():
    model = tiny()
    flat = model(torch.full((1, 3, 8, 8), 0.5)).feature_map
    flat.sum().backward()
    assert torch.isfinite(flat).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert model(torch.rand(1, 3, 1, 1)).feature_map.shape == (1, 6, 1, 1)
    assert model(torch.rand(0, 3, 8, 8)).feature_map.shape == (0, 6, 2, 2)
