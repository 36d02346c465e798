import pytest
import torch
from contract import (
    assert_close,
    assert_compiles,
    assert_gradcheck,
    assert_module,
    covers,
)
from hypothesis import given
from hypothesis import strategies as st
from oracles import cam as oracle
from strategies import cam_problems, generator, seeds

from wsss_blocks.cam import NormalizeCAM, normalize_cam

MODES = ["minmax", "max", "cti"]


def random_cam(seed, shape=(2, 3, 4, 5)):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


@covers("normalize_cam", "oracle")
@given(
    cam_problems(),
    seeds,
    st.sampled_from(MODES),
    st.booleans(),
    st.sampled_from(["class", "image"]),
    st.sampled_from([1e-5, 0.1]),
)
def test_oracle(problem, seed, mode, relu, scope, eps):
    cam = problem.cam
    valid = torch.rand(cam.shape[0], *cam.shape[2:], generator=generator(seed)) < 0.6
    for mask in (None, valid):
        actual = normalize_cam(cam, mode=mode, relu=relu, scope=scope, valid=mask, eps=eps)
        assert_close(actual, oracle.normalize_cam(cam, mode, relu, scope, mask, eps))


@covers("normalize_cam", "properties")
@pytest.mark.parametrize("mode", MODES)
def test_range_order_and_class_permutation(mode):
    cam = random_cam(0)
    out = normalize_cam(cam, mode=mode)
    assert out.min() == 0
    assert out.max() <= 1
    assert (out.amax((2, 3)) > 0.999).all()
    order = torch.tensor([1, 2, 0])
    assert torch.equal(normalize_cam(cam[:, order], mode=mode), out[:, order])
    assert torch.equal(normalize_cam(cam.flip(0, -1), mode=mode), out.flip(0, -1))


@covers("normalize_cam", "properties")
def test_minmax_forgets_an_affine_change_and_max_a_scale():
    cam = random_cam(1)
    minmax = normalize_cam(cam, relu=False, eps=1e-12)
    assert_close(normalize_cam(3 * cam + 2, relu=False, eps=1e-12), minmax)
    assert_close(normalize_cam(5 * cam, mode="max"), normalize_cam(cam, mode="max"))


@covers("normalize_cam", "properties")
def test_image_scope_keeps_the_order_of_classes():
    cam = torch.tensor([[[[1.0, 2.0]], [[2.0, 4.0]]]])
    assert_close(normalize_cam(cam, mode="max", scope="image"), cam / 4)
    assert normalize_cam(cam, mode="max", scope="class").amax((2, 3)).tolist() == [[1.0, 1.0]]


@covers("normalize_cam", "properties")
@pytest.mark.parametrize("mode", MODES)
def test_padding_does_not_contribute(mode):
    cam, valid = random_cam(2), torch.zeros(2, 4, 5, dtype=torch.bool)
    valid[:, 1:3, :4] = True
    out = normalize_cam(cam, mode=mode, valid=valid)
    for padding in (1e6, -1e6, float("inf"), float("nan")):
        other = torch.where(valid[:, None], cam, padding).requires_grad_()
        padded = normalize_cam(other, mode=mode, valid=valid)
        assert torch.equal(padded, out)
        padded.square().sum().backward()
        assert torch.isfinite(other.grad).all()
    assert_close(out[:, :, 1:3, :4], normalize_cam(cam[:, :, 1:3, :4], mode=mode))
    assert not out.masked_select(~valid[:, None]).any()


@covers("normalize_cam", "gradcheck")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scope", ["class", "image"])
def test_gradcheck(mode, scope):
    cam, valid = random_cam(3).requires_grad_(), torch.ones(2, 4, 5, dtype=torch.bool)
    valid[0, 0] = False
    for mask in (None, valid):
        assert_gradcheck(
            lambda x, m=mask: normalize_cam(x, mode=mode, scope=scope, valid=m, eps=1e-2), cam
        )


@covers("normalize_cam", "module")
def test_module():
    cam, valid = random_cam(4), torch.ones(2, 4, 5, dtype=torch.bool)
    options = {"mode": "cti", "relu": False, "scope": "image", "eps": 1e-3}
    valid[0, 1] = False
    expected = normalize_cam(cam, valid=valid, **options)
    assert_module(NormalizeCAM(**options), expected, cam, valid=valid)
    assert_module(NormalizeCAM(), normalize_cam(cam), cam)


@covers("normalize_cam", "dtypes")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(mode, dtype):
    cam = random_cam(5).to(dtype)
    out = normalize_cam(cam, mode=mode)
    assert out.dtype == dtype
    expected = oracle.normalize_cam(cam.double(), mode, True, "class", None, 1e-5)
    assert_close(out, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(normalize_cam(cam, mode=mode), out)


@covers("normalize_cam", "compile")
@pytest.mark.parametrize("mode", MODES)
def test_compile(mode):
    valid = torch.rand(2, 4, 5, generator=generator(6)) < 0.5
    assert_compiles(lambda x, v: normalize_cam(x, mode=mode, valid=v), random_cam(6), valid)
    assert_compiles(lambda x: normalize_cam(x, mode=mode, scope="image"), random_cam(6))


@covers("normalize_cam", "errors")
def test_errors():
    cam = random_cam(7)
    with pytest.raises(ValueError, match=r"cam must have shape \(B, K, h, w\), got \(3, 4, 5\)"):
        normalize_cam(cam[0])
    with pytest.raises(TypeError, match="cam must be a floating-point tensor"):
        normalize_cam(cam.long())
    with pytest.raises(ValueError, match="mode must be one of"):
        normalize_cam(cam, mode="l2")
    with pytest.raises(ValueError, match="scope must be one of"):
        normalize_cam(cam, scope="batch")
    with pytest.raises(ValueError, match="eps must be positive"):
        normalize_cam(cam, eps=0.0)
    with pytest.raises(ValueError, match=r"valid must have shape \(B, h, w\)"):
        normalize_cam(cam, valid=torch.ones(2, 5, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match="valid must be a bool tensor"):
        normalize_cam(cam, valid=torch.ones(2, 4, 5))
    with pytest.raises(ValueError, match="valid must be on the device of cam"):
        normalize_cam(cam, valid=torch.ones(2, 4, 5, dtype=torch.bool, device="meta"))
    with pytest.raises(ValueError, match="mode must be one of"):
        NormalizeCAM(mode="l2")


@covers("normalize_cam", "degenerate")
@pytest.mark.parametrize("mode", MODES)
def test_degenerate(mode):
    for value in (0.0, -3.0, 2.5):
        for size in ((1, 1), (3, 2)):
            cam = torch.full((1, 1, *size), value, requires_grad=True)
            out = normalize_cam(cam, mode=mode)
            out.sum().backward()
            expected = 1.0 if mode == "max" and value > 0 else 0.0
            assert torch.equal(out, torch.full_like(out, expected))
            assert torch.isfinite(cam.grad).all()
    cam = random_cam(8).requires_grad_()
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way back either
        out = normalize_cam(cam, mode=mode, valid=torch.zeros(2, 4, 5, dtype=torch.bool))
        out.sum().backward()
    assert not out.any()
    assert not cam.grad.any()
    assert normalize_cam(cam[:0], mode=mode).shape == (0, 3, 4, 5)
