import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_same, covers
from hypothesis import given
from oracles import cti as oracle
from strategies import generator, seeds, sizes, small

from wsss_blocks.cam import fuse_cams

MODES = ("product", "sqrt", "attention", "cam")
every_mode = pytest.mark.parametrize("mode", MODES)


def problem(seed=0, batch=2, classes=3, size=(3, 4)):
    g = generator(seed)
    attention = torch.rand(batch, classes, *size, generator=g, dtype=torch.float64)
    cam = torch.randn(batch, classes, *size, generator=g, dtype=torch.float64)
    return attention, cam


@covers("fuse_cams", "oracle")
@every_mode
@given(seeds, small, small, sizes(5))
def test_oracle(mode, seed, batch, classes, size):
    attention, cam = problem(seed, batch, classes, size)
    pairs = zip(attention.tolist(), cam.tolist(), strict=True)
    expected = torch.tensor([oracle.fuse(a, m, mode) for a, m in pairs], dtype=torch.float64)
    assert_close(fuse_cams(attention, cam, mode=mode), expected)


@covers("fuse_cams", "properties")
@every_mode
def test_properties(mode):
    attention, cam = problem(1)
    fused = fuse_cams(attention, cam, mode=mode)
    assert bool((fused >= 0).all())
    assert_same(fuse_cams(attention, cam.relu(), mode=mode), fused)
    flipped = fuse_cams(attention.flip(3), cam.flip(3), mode=mode)
    assert_same(flipped, fused.flip(3))
    order = torch.tensor([2, 0, 1])
    assert_same(fuse_cams(attention[:, order], cam[:, order], mode=mode), fused[:, order])
    degree = {"product": (1, 1), "sqrt": (0.5, 0.5), "attention": (1, 0), "cam": (0, 1)}[mode]
    scaled = fuse_cams(4 * attention, 9 * cam, mode=mode)
    assert_close(scaled, fused * 4 ** degree[0] * 9 ** degree[1])
    if mode == "product":
        assert_same(fuse_cams(attention, cam), fused)
        assert_close(fuse_cams(attention, cam, mode="sqrt").square(), fused)


@covers("fuse_cams", "gradcheck")
@every_mode
def test_gradient(mode):
    attention, cam = problem(2)
    assert_gradcheck(
        lambda a, m: fuse_cams(a, m, mode=mode),
        attention.add(0.1).requires_grad_(),
        cam.requires_grad_(),
    )


@covers("fuse_cams", "properties")
def test_a_detached_map_trains_the_attention_alone():
    attention, cam = problem(3)
    attention.requires_grad_()
    cam.requires_grad_()
    fuse_cams(attention, cam.detach()).sum().backward()
    assert_same(attention.grad, cam.detach().relu())
    assert cam.grad is None


@covers("fuse_cams", "dtypes")
@every_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype, mode):
    attention, cam = problem(4)
    cam = cam.to(dtype)
    expected = fuse_cams(attention.to(dtype).double(), cam.double(), mode=mode)
    for given_as in (dtype, torch.float32, torch.float64):
        with torch.autocast("cpu", torch.bfloat16, enabled=given_as == dtype):
            fused = fuse_cams(attention.to(dtype).to(given_as), cam, mode=mode)
        assert fused.dtype == dtype
        rounded = given_as == torch.float32 and dtype == torch.float64
        assert_close(fused, expected, dtype=torch.float32 if rounded else dtype)


@covers("fuse_cams", "compile")
@every_mode
def test_compile(mode):
    assert_compiles(lambda a, m: fuse_cams(a, m, mode=mode), *problem())


@covers("fuse_cams", "errors")
def test_errors():
    attention, cam = problem()
    with pytest.raises(ValueError, match=r"cam must have shape \(B, K, h, w\), got \(2, 3, 12\)"):
        fuse_cams(attention, cam.flatten(2))
    with pytest.raises(ValueError, match=r"attention must have shape .* K=3, h=3, w=4, got \(2, 2"):
        fuse_cams(attention[:, 1:], cam)
    with pytest.raises(ValueError, match="attention must be on the device of cam"):
        fuse_cams(attention.to("meta"), cam)
    for name, a, m in (("attention", attention.long(), cam), ("cam", attention, cam.long())):
        with pytest.raises(TypeError, match=f"{name} must be a floating-point tensor"):
            fuse_cams(a, m)
    for name, a, m in (("attention", attention / 0, cam), ("cam", attention, cam / 0)):
        with pytest.raises(ValueError, match=f"{name} must be finite"):
            fuse_cams(a, m)
    with pytest.raises(ValueError, match="attention must be >= 0, got a minimum of -1"):
        fuse_cams(attention * 0 - 1, cam)
    with pytest.raises(ValueError, match="mode must be one of 'product', 'sqrt', 'attention', 'ca"):
        fuse_cams(attention, cam, mode="sum")


@covers("fuse_cams", "degenerate")
@every_mode
def test_degenerate(mode):
    attention, cam = problem(5)
    for a, m in ((attention, 0 * cam), (0 * attention, cam), (attention, -cam.abs())):
        a = a.detach().requires_grad_()
        m = m.detach().requires_grad_()
        fused = fuse_cams(a, m, mode=mode)
        grads = torch.autograd.grad(fused.sum(), (a, m), allow_unused=True)
        assert all(g.isfinite().all() for g in grads if g is not None)
        if mode in ("product", "sqrt"):
            assert bool((fused == 0).all())
    one = fuse_cams(torch.full((1, 1, 1, 1), 4.0), torch.ones(1, 1, 1, 1), mode=mode)
    assert one.item() == {"product": 4, "sqrt": 2, "attention": 4, "cam": 1}[mode]
    assert fuse_cams(attention[:0], cam[:0], mode=mode).shape == (0, 3, 3, 4)
