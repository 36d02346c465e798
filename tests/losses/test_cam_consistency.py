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
from oracles import cti as oracle
from strategies import generator, random_labels, seeds, sizes, small

from wsss_blocks.losses import CAMConsistencyLoss, cam_consistency_counts, cam_consistency_loss


def problem(seed=0, batch=3, classes=2, size=(3, 4), background=False):
    g = generator(seed)
    shape = (2, batch, classes + background, *size)
    cam, other = torch.randn(*shape, generator=g, dtype=torch.float64)
    return cam, other, random_labels(batch, classes, g)


@covers("cam_consistency_loss", "oracle")
@given(seeds, small, small, sizes(4), st.booleans(), st.booleans(), st.sampled_from([1e-5, 0.1]))
def test_oracle(seed, batch, classes, size, background, masked, eps):
    cam, other, labels = problem(seed, batch, classes, size, background)
    labels = labels if masked else None
    expected = oracle.cam_consistency(
        cam.tolist(), other.tolist(), None if labels is None else labels.tolist(), eps
    )
    assert_close(cam_consistency_loss(cam, other, labels=labels, eps=eps), expected)


@covers("cam_consistency_loss", "oracle")
@pytest.mark.parametrize("background", [False, True])
def test_gradient_equals_that_of_the_loops(background):
    cam, other, labels = problem(1, background=background)
    labels[0, 0] = 1.0
    maps = cam.requires_grad_(), other.requires_grad_()
    for y in (None, labels):
        rows = None if y is None else y.tolist()
        loops = oracle.cam_consistency(oracle.nested(cam), oracle.nested(other), rows)
        loss = cam_consistency_loss(cam, other, labels=y)
        assert_close(loss, loops)
        for a, b in zip(
            torch.autograd.grad(loss, maps), torch.autograd.grad(loops, maps), strict=True
        ):
            assert_close(a, b)


@covers("cam_consistency_loss", "properties")
def test_properties():
    cam, other, labels = problem(2)
    loss = cam_consistency_loss(cam, other)
    assert 0 < loss < 1
    assert_close(cam_consistency_loss(other, cam), loss)
    assert cam_consistency_loss(cam, cam) == 0
    assert_close(cam_consistency_loss(cam.flip(2), other.flip(2)), loss)
    assert_close(cam_consistency_loss(cam.flip(0, 1), other.flip(0, 1)), loss)
    fine = cam_consistency_loss(cam, other, eps=1e-12)
    assert_close(cam_consistency_loss(5 * cam, 0.1 * other, eps=1e-12), fine)
    # a small map weighs as much as a large one
    assert_close(cam_consistency_loss(cam * 1e6, other, eps=1e-12), fine)
    # maps of absent classes are not looked at; the loss is the mean over the others
    absent = torch.where(labels[:, :, None, None] > 0, cam, 7 * other.flip(3))
    masked = cam_consistency_loss(cam, other, labels=labels)
    assert_same(cam_consistency_loss(absent, other, labels=labels), masked)
    present = labels > 0
    assert_close(masked, cam_consistency_loss(cam[present][None], other[present][None]))
    # the background takes part whatever the labels say
    cam, other, labels = problem(2, background=True)
    with_background = cam_consistency_loss(cam, other, labels=0 * labels)
    assert_close(with_background, cam_consistency_loss(cam[:, :1], other[:, :1]))
    every = torch.cat([torch.ones(3, 1), labels], 1)
    expected = cam_consistency_loss(cam, other, labels=every)
    assert_close(cam_consistency_loss(cam, other, labels=labels), expected)


@covers("cam_consistency_loss", "gradcheck")
def test_gradient():
    cam, other, labels = problem(3)
    assert_gradcheck(
        lambda x, y: cam_consistency_loss(x, y, labels=labels, eps=0.05),
        cam.requires_grad_(),
        other.requires_grad_(),
    )


@covers("cam_consistency_loss", "module", "compile")
def test_module_and_compile():
    cam, other, labels = problem(4)
    module = CAMConsistencyLoss(eps=0.1)
    assert "eps=0.1, gather_distributed=False" in repr(module)
    for options in ({}, {"labels": labels}, {"counts": torch.tensor(9)}):
        expected = cam_consistency_loss(cam, other, eps=0.1, **options)
        assert_module(module, expected, cam, other, **options)
    assert_compiles(cam_consistency_loss, cam, other)
    for background in (False, True):
        args = problem(4, background=background)
        assert_compiles(lambda x, y, z: cam_consistency_loss(x, y, labels=z), *args)


@covers("cam_consistency_loss", "properties")
@pytest.mark.parametrize("background", [False, True])
def test_counts_divide(background):
    cam, other, labels = problem(5, background=background)
    labels[0] = 1.0
    counts = cam_consistency_counts(labels, background=background)
    every = torch.tensor(3 * (2 + background))
    for y, number in ((None, every), (labels, counts)):
        whole = cam_consistency_loss(cam, other, labels=y)
        rows = (None, None) if y is None else (y[:1], y[1:])
        parts = zip((cam[:1], cam[1:]), (other[:1], other[1:]), rows, strict=True)
        shares = [
            cam_consistency_loss(a, b, labels=row, counts=number.float()) for a, b, row in parts
        ]
        assert shares[0].dtype == torch.float64
        assert_close(sum(shares), whole)


@covers("cam_consistency_loss", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    cam, other, labels = problem(6)
    cam, other = cam.to(dtype), other.to(dtype)
    expected = cam_consistency_loss(cam.double(), other.double(), labels=labels)
    cam.requires_grad_()
    for autocast in (False, True):
        for given_as in (dtype, torch.float32):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = cam_consistency_loss(cam, other.to(given_as), labels=labels.bool())
            assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert_close(loss, expected, dtype=torch.float32)  # whatever the maps were
            assert torch.autograd.grad(loss, cam)[0].isfinite().all()


@covers("cam_consistency_loss", "degenerate")
@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
@pytest.mark.parametrize("classes", [1, 3])
def test_degenerate(size, classes):
    zero = torch.zeros(2, classes, *size, requires_grad=True)
    for other in (zero, zero + 3, torch.full_like(zero, -1.0)):
        loss = cam_consistency_loss(zero, other)
        assert loss == 0
        assert torch.autograd.grad(loss, zero)[0].isfinite().all()
    cam = torch.rand(2, classes, *size, requires_grad=True)
    loss = cam_consistency_loss(cam, zero, labels=torch.zeros(2, classes))
    assert loss == 0
    assert_same(torch.autograd.grad(loss, cam)[0], torch.zeros_like(cam))
    for labels in (None, torch.ones(0, classes)):
        assert cam_consistency_loss(zero[:0], zero[:0], labels=labels) == 0
    narrow = (1e-6 * torch.rand(2, classes, *size)).requires_grad_()  # a range below eps
    loss = cam_consistency_loss(narrow, cam)
    assert torch.autograd.grad(loss, narrow)[0].isfinite().all()


@covers("cam_consistency_loss", "errors")
def test_errors():
    cam, other, labels = problem()
    with pytest.raises(ValueError, match=r"cam must have shape \(B, K, h, w\), got \(3, 2, 12\)"):
        cam_consistency_loss(cam.flatten(2), other)
    with pytest.raises(ValueError, match=r"other must have shape .* B=3, K=2, h=3, w=4, got"):
        cam_consistency_loss(cam, other[:, 1:])
    with pytest.raises(ValueError, match="other must be on the device of cam"):
        cam_consistency_loss(cam, other.to("meta"))
    for name, x, y in (("cam", cam.long(), other), ("other", cam, other.long())):
        with pytest.raises(TypeError, match=f"{name} must be a floating-point tensor"):
            cam_consistency_loss(x, y)
    for name, x, y in (("cam", cam / 0, other), ("other", cam, other / 0)):
        with pytest.raises(ValueError, match=f"{name} must be finite"):
            cam_consistency_loss(x, y)
    with pytest.raises(ValueError, match=r"labels must have shape.* background column too many"):
        cam_consistency_loss(cam, other, labels=torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"labels must have shape \(B, K\) with B=3, K=2, got"):
        cam_consistency_loss(cam, other, labels=labels[1:])
    with pytest.raises(TypeError, match=r"labels must be a torch.Tensor, got list"):
        cam_consistency_loss(cam, other, labels=labels.tolist())
    with pytest.raises(ValueError, match="labels must be multi-hot"):
        cam_consistency_loss(cam, other, labels=labels - 1)
    for eps in (0, float("inf")):
        with pytest.raises(ValueError, match="eps must be positive and finite"):
            cam_consistency_loss(cam, other, eps=eps)
        with pytest.raises(ValueError, match="eps must be positive and finite"):
            CAMConsistencyLoss(eps=eps)
    with pytest.raises(ValueError, match=r"counts must be >= 0, got a minimum of -1"):
        cam_consistency_loss(cam, other, counts=torch.tensor(-1))


@covers("cam_consistency_counts", "oracle", "properties", "dtypes", "degenerate")
@given(seeds, small, small)
def test_maps_are_counted(seed, batch, classes):
    labels = random_labels(batch, classes, generator(seed))
    expected = sum(y > 0 for row in labels.tolist() for y in row)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.uint8):
        counted = cam_consistency_counts(labels.to(dtype))
        assert (counted.dtype, counted.shape, counted) == (torch.int64, (), expected)
    assert cam_consistency_counts(labels, background=True) == expected + batch
    assert cam_consistency_counts(0.1 * labels) == expected
    assert cam_consistency_counts(labels.flip(0, 1).repeat(3, 1)) == 3 * expected
    assert cam_consistency_counts(0 * labels) == 0
    assert cam_consistency_counts(labels[:0], background=True) == 0


@covers("cam_consistency_counts", "compile", "errors")
def test_counts_compile_and_errors():
    labels = problem()[2]
    assert_compiles(lambda y: cam_consistency_counts(y, background=True), labels)
    with pytest.raises(ValueError, match=r"labels must have shape \(B, K\), got \(3,\)"):
        cam_consistency_counts(labels[:, 0])
    with pytest.raises(ValueError, match="labels must be multi-hot"):
        cam_consistency_counts(labels + 1)
