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

from wsss_blocks.cam import normalize_cam
from wsss_blocks.losses import (
    BackgroundConsistencyLoss,
    background_consistency_counts,
    background_consistency_loss,
)


def problem(seed=0, batch=3, size=(3, 4), classes=2):
    g = generator(seed)
    maps = torch.randn(2, batch, 1, *size, generator=g, dtype=torch.float64)
    return maps[0], maps[1], random_labels(batch, classes, g)


@covers("background_consistency_loss", "oracle")
@given(seeds, small, sizes(5), st.booleans(), st.sampled_from([1e-5, 0.1]), st.booleans())
def test_oracle(seed, batch, size, masked, eps, constant):
    foreground, background, labels = problem(seed, batch, size)
    if constant:
        foreground[0] = 2.5
    labels = labels if masked else None
    expected = oracle.background_consistency(
        foreground[:, 0].tolist(),
        background[:, 0].tolist(),
        None if labels is None else labels.tolist(),
        eps,
    )
    loss = background_consistency_loss(foreground, background, labels=labels, eps=eps)
    assert_close(loss, expected)


@covers("background_consistency_loss", "oracle")
def test_gradient_equals_that_of_the_loops():
    foreground, background, labels = problem(1)
    labels[0], labels[1:] = 0.0, 1.0
    maps = foreground.requires_grad_(), background.requires_grad_()
    for y in (None, labels):
        rows = None if y is None else y.tolist()
        loops = oracle.background_consistency(
            oracle.nested(maps[0][:, 0]), oracle.nested(maps[1][:, 0]), rows
        )
        loss = background_consistency_loss(*maps, labels=y)
        assert_close(loss, loops)
        for a, b in zip(
            torch.autograd.grad(loss, maps), torch.autograd.grad(loops, maps), strict=True
        ):
            assert_close(a, b)


@covers("background_consistency_loss", "properties")
def test_properties():
    foreground, background, labels = problem(2)
    loss = background_consistency_loss(foreground, background)
    assert 0 <= loss <= 1
    # symmetric, blind to the scale of each map and to the order of positions and images
    assert_close(background_consistency_loss(background, foreground), loss)
    assert_close(background_consistency_loss(background.flip(0), foreground.flip(0)), loss)
    assert_close(background_consistency_loss(background.flip(3), foreground.flip(3)), loss)
    fine = background_consistency_loss(foreground, background, eps=1e-12)
    assert_close(background_consistency_loss(3 * foreground, 0.2 * background, eps=1e-12), fine)
    # the complement is free, agreement is not
    foreground = foreground.relu()
    top = foreground.amax((2, 3), keepdim=True)
    assert background_consistency_loss(foreground, top - foreground) < 1e-4
    assert background_consistency_loss(foreground, foreground) > 0.2
    # images without any class: kept by default, left out with labels
    labels[0], labels[1:] = 0.0, 1.0
    foreground = foreground * labels.amax(1)[:, None, None, None]
    kept = background_consistency_loss(foreground, background)
    rest = background_consistency_loss(foreground[1:], background[1:])
    alone = (1 - normalize_cam(background[:1], mode="cti")).mean()
    assert_close(kept, (2 * rest + alone) / 3)
    assert_close(background_consistency_loss(foreground, background, labels=labels), rest)


@covers("background_consistency_loss", "gradcheck")
def test_gradient():
    foreground, background, labels = problem(3)
    assert_gradcheck(
        lambda f, b: background_consistency_loss(f, b, labels=labels, eps=0.05),
        foreground.requires_grad_(),
        background.requires_grad_(),
    )


@covers("background_consistency_loss", "module", "compile")
def test_module_and_compile():
    foreground, background, labels = problem(4)
    module = BackgroundConsistencyLoss(eps=0.1)
    assert "eps=0.1, gather_distributed=False" in repr(module)
    counts = torch.tensor(7)
    for options in ({}, {"labels": labels}, {"counts": counts}):
        expected = background_consistency_loss(foreground, background, eps=0.1, **options)
        assert_module(module, expected, foreground, background, **options)
    assert_compiles(background_consistency_loss, foreground, background)
    assert_compiles(
        lambda f, b, y: background_consistency_loss(f, b, labels=y), foreground, background, labels
    )


@covers("background_consistency_loss", "properties")
def test_counts_divide():
    foreground, background, labels = problem(5)
    labels[0] = 1.0
    parts = [(foreground[:1], background[:1]), (foreground[1:], background[1:])]
    counts = background_consistency_counts(labels)
    for y, number in ((None, torch.tensor(3)), (labels, counts)):
        whole = background_consistency_loss(foreground, background, labels=y)
        rows = (None, None) if y is None else (y[:1], y[1:])
        for dtype in (torch.int64, torch.int32, torch.float64):
            shares = [
                background_consistency_loss(*part, labels=row, counts=number.to(dtype))
                for part, row in zip(parts, rows, strict=True)
            ]
            assert shares[0].dtype == torch.float64
            assert_close(sum(shares), whole)


@covers("background_consistency_loss", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    foreground, background, labels = problem(6)
    foreground, background = foreground.to(dtype), background.to(dtype)
    expected = background_consistency_loss(foreground.double(), background.double(), labels=labels)
    foreground.requires_grad_()
    for autocast in (False, True):
        for other in (background, background.float()):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = background_consistency_loss(foreground, other, labels=labels.bool())
            assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert_close(loss, expected, dtype=torch.float32)  # whatever the maps were
            assert torch.autograd.grad(loss, foreground)[0].isfinite().all()


@covers("background_consistency_loss", "degenerate")
@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_degenerate(size):
    zero = torch.zeros(2, 1, *size, requires_grad=True)
    for other in (zero, zero + 3, torch.full_like(zero, -1.0)):
        loss = background_consistency_loss(zero, other)
        assert loss == 1  # constant maps are 0 after the normalisation
        assert torch.autograd.grad(loss, zero)[0].isfinite().all()
    loss = background_consistency_loss(zero + 1, zero, labels=torch.zeros(2, 3))
    assert loss == 0
    assert_same(torch.autograd.grad(loss, zero)[0], torch.zeros_like(zero))
    for labels in (None, torch.ones(0, 3)):
        assert background_consistency_loss(zero[:0], zero[:0], labels=labels) == 0
    narrow = (1e-6 * torch.rand(2, 1, *size)).requires_grad_()  # a range below eps
    loss = background_consistency_loss(narrow, narrow)
    assert torch.autograd.grad(loss, narrow)[0].isfinite().all()


@covers("background_consistency_loss", "errors")
def test_errors():
    foreground, background, labels = problem()
    with pytest.raises(ValueError, match=r"foreground must have shape \(B, 1, h, w\), got \(3, 2,"):
        background_consistency_loss(foreground.expand(-1, 2, -1, -1), background)
    with pytest.raises(ValueError, match=r"background must have shape .* B=3, h=3, w=4, got"):
        background_consistency_loss(foreground, background[..., 1:])
    with pytest.raises(ValueError, match="background must be on the device of foreground"):
        background_consistency_loss(foreground, background.to("meta"))
    for name, f, b in (
        ("foreground", foreground.long(), background),
        ("background", foreground, background.long()),
    ):
        with pytest.raises(TypeError, match=f"{name} must be a floating-point tensor"):
            background_consistency_loss(f, b)
    for name, f, b in (
        ("foreground", foreground / 0, background),
        ("background", foreground, background / 0),
    ):
        with pytest.raises(ValueError, match=f"{name} must be finite"):
            background_consistency_loss(f, b)
    with pytest.raises(
        ValueError, match=r"labels must have shape \(B, K\) with B=3.* got \(2, 2\)"
    ):
        background_consistency_loss(foreground, background, labels=labels[1:])
    with pytest.raises(ValueError, match="labels must be multi-hot"):
        background_consistency_loss(foreground, background, labels=labels - 1)
    with pytest.raises(ValueError, match="labels must be on cpu, got meta"):
        background_consistency_loss(foreground, background, labels=labels.to("meta"))
    for eps in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="eps must be positive"):
            background_consistency_loss(foreground, background, eps=eps)
        with pytest.raises(ValueError, match="eps must be positive"):
            BackgroundConsistencyLoss(eps=eps)
    with pytest.raises(ValueError, match=r"counts must have shape \(\), got \(2,\)"):
        background_consistency_loss(foreground, background, counts=torch.ones(2))


@covers("background_consistency_counts", "oracle", "properties", "dtypes", "degenerate")
@given(seeds, small, small)
def test_images_are_counted(seed, batch, classes):
    labels = random_labels(batch, classes, generator(seed))
    expected = sum(any(y > 0 for y in row) for row in labels.tolist())
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.uint8):
        counted = background_consistency_counts(labels.to(dtype))
        assert (counted.dtype, counted.shape, counted) == (torch.int64, (), expected)
    assert background_consistency_counts(0.1 * labels) == expected
    assert background_consistency_counts(labels.repeat(3, 2)) == 3 * expected
    assert background_consistency_counts(labels.flip(1).flip(0)) == expected
    assert background_consistency_counts(0 * labels) == 0
    assert background_consistency_counts(labels[:0]) == 0


@covers("background_consistency_counts", "compile", "errors")
def test_counts_compile_and_errors():
    labels = problem()[2]
    assert_compiles(background_consistency_counts, labels)
    with pytest.raises(ValueError, match=r"labels must have shape \(B, K\), got \(3,\)"):
        background_consistency_counts(labels[:, 0])
    with pytest.raises(ValueError, match="labels must be multi-hot"):
        background_consistency_counts(labels + 1)
