import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_same, covers
from hypothesis import given
from oracles import cti as oracle
from strategies import cam_problems

from wsss_blocks.cam import foreground_map


def problem():
    g = torch.Generator().manual_seed(0)
    cam = torch.rand(2, 3, 3, 4, generator=g, dtype=torch.float64)
    return cam, torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


@covers("foreground_map", "oracle")
@given(cam_problems())
def test_oracle(p):
    cam = p.cam.relu()
    pairs = zip(cam.tolist(), p.labels.tolist(), strict=True)
    expected = torch.tensor([[oracle.foreground(m, y)] for m, y in pairs], dtype=torch.float64)
    assert_close(foreground_map(cam, p.labels), expected)


@covers("foreground_map", "properties")
def test_properties():
    cam, labels = problem()
    expected = torch.stack([torch.maximum(cam[0, 0], cam[0, 2]), cam[1, 1]])[:, None]
    assert_same(foreground_map(cam, labels), expected)
    order = torch.tensor([2, 0, 1])
    assert_same(foreground_map(cam[:, order], labels[:, order]), expected)
    assert_same(foreground_map(cam.flip(0), labels.flip(0)), expected.flip(0))
    assert_close(foreground_map(3 * cam, labels), 3 * expected)
    absent = torch.where(labels[:, :, None, None] > 0, cam, 9.0)  # their scores are not looked at
    assert_same(foreground_map(absent, labels), expected)


@covers("foreground_map", "gradcheck")
def test_gradient():
    cam, labels = problem()
    assert_gradcheck(lambda x: foreground_map(x, labels), cam.requires_grad_())
    foreground_map(cam, labels).sum().backward()
    assert bool((cam.grad[labels == 0] == 0).all())
    assert_close(cam.grad.sum(1), torch.ones(2, 3, 4))


@covers("foreground_map", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    cam, labels = problem()
    cam = cam.to(dtype)
    for y in (labels, labels.bool(), labels.to(torch.uint8), labels.double()):
        for autocast in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                found = foreground_map(cam, y)
            assert found.dtype == dtype
            assert_same(found.double(), foreground_map(cam.double(), labels))


@covers("foreground_map", "compile")
def test_compile():
    assert_compiles(foreground_map, *problem())


@covers("foreground_map", "errors")
def test_errors():
    cam, labels = problem()
    with pytest.raises(ValueError, match=r"cam must have shape \(B, K, h, w\), got \(2, 3, 12\)"):
        foreground_map(cam.flatten(2), labels)
    with pytest.raises(TypeError, match=r"cam must be a floating-point tensor"):
        foreground_map(cam.long(), labels)
    with pytest.raises(ValueError, match="background column too many"):
        foreground_map(cam[:, 1:], labels)
    with pytest.raises(ValueError, match="labels must be on cpu, got meta"):
        foreground_map(cam, labels.to("meta"))
    with pytest.raises(ValueError, match="cam must be finite"):
        foreground_map(cam / 0, labels)
    with pytest.raises(ValueError, match="cam must be >= 0, got a minimum of -"):
        foreground_map(-cam, labels)


@covers("foreground_map", "degenerate")
def test_degenerate():
    cam, labels = problem()
    cam.requires_grad_()
    none = foreground_map(cam, 0 * labels)
    assert_same(none, torch.zeros(2, 1, 3, 4, dtype=torch.float64))
    assert bool((torch.autograd.grad(none.sum(), cam)[0] == 0).all())
    one = torch.full((1, 1, 1, 1), 2.0)
    assert_same(foreground_map(one, torch.ones(1, 1)), one)
    assert foreground_map(cam[:0], labels[:0]).shape == (0, 1, 3, 4)
