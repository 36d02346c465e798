import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, covers
from hypothesis import given
from hypothesis import strategies as st
from oracles import cam as oracle
from strategies import generator, seeds, sizes, small

from wsss_blocks.cam import class_weight_cam


def problem(g, batch=2, dim=3, classes=4, size=(3, 2)):
    features = torch.randn(batch, dim, *size, generator=g, dtype=torch.float64)
    return features, torch.randn(classes, dim, generator=g, dtype=torch.float64)


@covers("class_weight_cam", "oracle")
@given(seeds, small, st.integers(1, 5), st.integers(1, 4), sizes(5))
def test_oracle(seed, batch, dim, classes, size):
    features, weight = problem(generator(seed), batch, dim, classes, size)
    assert_close(class_weight_cam(features, weight), oracle.class_weight_cam(features, weight))


@covers("class_weight_cam", "properties")
def test_linear_in_the_weights_and_equivariant_to_class_order():
    features, weight = problem(generator(0))
    cam = class_weight_cam(features, weight)
    order = torch.tensor([2, 0, 3, 1])
    assert_close(class_weight_cam(features, weight[order]), cam[:, order])
    assert_close(class_weight_cam(features, 3 * weight), 3 * cam)
    assert_close(class_weight_cam(features, weight[:, :, None, None]), cam)


@covers("class_weight_cam", "properties")
def test_its_mean_is_the_logit_of_a_pooled_classifier():
    features, weight = problem(generator(1))
    logits = features.mean((2, 3)) @ weight.T
    assert_close(class_weight_cam(features, weight).mean((2, 3)), logits)


@covers("class_weight_cam", "gradcheck")
def test_gradcheck():
    features, weight = problem(generator(2))
    assert_gradcheck(class_weight_cam, features.requires_grad_(), weight.requires_grad_())


@covers("class_weight_cam", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    features, weight = problem(generator(3))
    cam = class_weight_cam(features.to(dtype), weight.float())
    assert cam.dtype == dtype
    assert_close(cam, class_weight_cam(features, weight), dtype=min_precision(dtype))


def min_precision(dtype):
    return torch.float32 if dtype == torch.float64 else dtype


@covers("class_weight_cam", "dtypes")
def test_autocast():
    features, weight = problem(generator(3))
    with torch.autocast("cpu", torch.bfloat16):
        cam = class_weight_cam(features.float(), weight.float())
    assert cam.dtype == torch.bfloat16
    assert_close(cam, class_weight_cam(features, weight))


@covers("class_weight_cam", "compile")
def test_compile():
    assert_compiles(class_weight_cam, *problem(generator(4)))


@covers("class_weight_cam", "errors")
def test_errors():
    features, weight = problem(generator(5))
    with pytest.raises(ValueError, match=r"features must have shape \(B, D, h, w\), got \(3, 3"):
        class_weight_cam(features[0], weight)
    with pytest.raises(ValueError, match=r"weight must have shape \(K, D\) with D=3, got \(4, 2"):
        class_weight_cam(features, weight[:, :2])
    with pytest.raises(ValueError, match=r"weight must have shape \(K, D, 1, 1\)"):
        class_weight_cam(features, weight[:, :, None, None].expand(-1, -1, 3, 3))
    with pytest.raises(TypeError, match="features must be a floating-point tensor"):
        class_weight_cam(features.long(), weight)
    with pytest.raises(TypeError, match="weight must be a floating-point tensor"):
        class_weight_cam(features, weight.long())
    with pytest.raises(ValueError, match="weight must be on the device of features"):
        class_weight_cam(features, weight.to("meta"))


@covers("class_weight_cam", "degenerate")
def test_degenerate():
    features, weight = torch.full((1, 2, 1, 1), 3.0), torch.tensor([[1.0, -2.0]])
    assert class_weight_cam(features, weight).item() == -3.0
    assert not class_weight_cam(torch.zeros(2, 2, 3, 3), weight).any()
    assert class_weight_cam(torch.zeros(0, 2, 3, 3), weight).shape == (0, 1, 3, 3)
