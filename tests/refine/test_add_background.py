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
from oracles.refine import add_background_oracle, no_refiner_oracle
from strategies import generator, random_labels, seeds, sizes, small

from wsss_blocks.refine import NoRefiner, add_background


@covers("add_background", "oracle")
@given(seeds, small, small, sizes(), st.sampled_from(["constant", "power"]), st.booleans())
def test_add_background_is_the_loop(seed, batch, classes, size, mode, per_image):
    g = generator(seed)
    cam = torch.rand(batch, classes, *size, generator=g, dtype=torch.float64)
    cam[0, 0, 0, 0] = 1
    values = torch.rand(batch, generator=g, dtype=torch.float64) * 4
    if not per_image:
        values = values[:1].expand(batch)
    expected = add_background_oracle(cam, mode=mode, value=values.tolist())
    value = values if per_image else float(values[0])
    assert_close(add_background(cam, mode=mode, value=value), expected)


@covers("add_background", "properties")
def test_add_background_keeps_the_cam_and_falls_with_the_exponent():
    cam = torch.rand(2, 3, 4, 5, generator=generator(0))
    weak = add_background(cam, mode="power", value=1.0)
    strong = add_background(cam, mode="power", value=8.0)
    assert_same(weak[:, 1:], cam)
    assert (strong[:, 0] < weak[:, 0]).all()
    assert_close(weak[:, 0] + cam.amax(1), torch.ones(2, 4, 5))
    permuted = add_background(cam[:, [2, 0, 1]], mode="power", value=8.0)
    assert_same(permuted, strong[:, [0, 3, 1, 2]])


@covers("add_background", "gradcheck")
@pytest.mark.parametrize("mode", ["constant", "power"])
def test_add_background_gradients(mode):
    cam = torch.rand(2, 3, 3, 2, generator=generator(1), dtype=torch.float64) * 0.9 + 0.05
    value = torch.tensor([0.5, 2.5], dtype=torch.float64)
    assert_gradcheck(
        lambda c, v: add_background(c, mode=mode, value=v),
        cam.requires_grad_(),
        value.requires_grad_(),
    )


@covers("add_background", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["constant", "power"])
def test_add_background_dtypes(dtype, mode):
    cam = torch.rand(2, 3, 3, 2, generator=generator(1)).to(dtype)
    value = torch.tensor([0.5, 2.5])
    out = add_background(cam, mode=mode, value=value)
    assert out.dtype == dtype
    assert_close(out, add_background_oracle(cam.double(), mode=mode, value=value.tolist()))
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(add_background(cam, mode=mode, value=value), out)


@covers("add_background", "compile")
@pytest.mark.parametrize("mode", ["constant", "power"])
def test_add_background_compiles(mode):
    cam = torch.rand(2, 3, 3, 4, generator=generator(1))
    assert_compiles(lambda c, v: add_background(c, mode=mode, value=v), cam, torch.rand(2))
    assert_compiles(lambda c: add_background(c, mode=mode, value=0.7), cam)


@covers("add_background", "errors")
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"cam": torch.rand(2, 3, 4)}, ValueError, r"cam must have shape \(B, K, h, w\), got"),
        ({"cam": torch.ones(2, 3, 4, 4).long()}, TypeError, "cam must be a floating-point"),
        ({"cam": -torch.ones(2, 3, 4, 4)}, ValueError, "cam must be >= 0"),
        ({"mode": "learned"}, ValueError, "mode must be one of 'constant', 'power'"),
        ({"value": -0.1}, ValueError, r"value must be finite and >= 0, got -0\.1"),
        ({"value": float("nan")}, ValueError, "value must be finite and >= 0"),
        ({"value": torch.rand(3)}, ValueError, r"value must have shape \(B,\) with B=2"),
        ({"value": torch.ones(2).long()}, TypeError, "value must be a floating-point"),
        ({"value": -torch.ones(2)}, ValueError, "value must be >= 0"),
    ],
)
def test_add_background_errors(change, error, match):
    call = {"cam": torch.rand(2, 3, 4, 4), "mode": "constant", "value": 0.5} | change
    with pytest.raises(error, match=match):
        add_background(call.pop("cam"), **call)


@covers("add_background", "degenerate")
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("level", [0.0, 1.0, 1.5])
def test_add_background_where_nothing_or_everything_is_foreground(value, level):
    cam = torch.full((1, 1, 1, 1), level, requires_grad=True)
    out = add_background(cam, mode="power", value=value)
    expected = 1.0 if value == 0 or level == 0 else 0.0
    assert out[0, 0].item() == expected
    out.sum().backward()
    assert torch.isfinite(cam.grad).all()
    assert add_background(cam, value=value)[0, 0].item() == value


@covers("NoRefiner", "oracle", "properties")
@given(seeds, small, small, sizes(6), sizes(6), st.booleans())
def test_no_refiner_is_the_loop(seed, batch, classes, size, low, labelled):
    g = generator(seed)
    images = torch.rand(batch, 3, *size, generator=g, dtype=torch.float64)
    maps = torch.rand(batch, classes + 1, *low, generator=g, dtype=torch.float64)
    labels = random_labels(batch, classes, g) if labelled else None
    out = NoRefiner()(images, maps, labels=labels)
    assert_close(out, no_refiner_oracle(size, maps, labels))
    assert out.max() <= maps.max() + 1e-12


@covers("NoRefiner", "gradcheck")
def test_no_refiner_gradients():
    g = generator(2)
    images = torch.rand(2, 3, 5, 4, dtype=torch.float64, generator=g)
    maps = (torch.rand(2, 2, 3, 2, 3, dtype=torch.float64, generator=g) + 0.1).requires_grad_()
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert_gradcheck(lambda m: NoRefiner()(images, m, labels=labels), maps)


@covers("NoRefiner", "module")
def test_no_refiner_module():
    images, maps = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 2, 2)
    assert_module(NoRefiner(), NoRefiner()(images, maps), images, maps)


@covers("NoRefiner", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_no_refiner_dtypes(dtype):
    g = generator(4)
    images = torch.rand(1, 3, 5, 6, generator=g)
    maps = torch.rand(1, 3, 2, 2, generator=g).to(dtype)
    out = NoRefiner()(images, maps)
    assert out.dtype == dtype
    assert_close(out, no_refiner_oracle((5, 6), maps.double(), None))
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(NoRefiner()(images, maps), out)


@covers("NoRefiner", "compile")
def test_no_refiner_compiles():
    images, maps = torch.rand(2, 3, 6, 5), torch.rand(2, 4, 3, 2)
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert_compiles(lambda i, m, y: NoRefiner()(i, m, labels=y), images, maps, labels)


@covers("NoRefiner", "errors")
def test_no_refiner_errors():
    # The shared script test_refiner_contract.py has the rest.
    with pytest.raises(ValueError, match=r"labels must have shape \(B, K\) with B=1, K=2"):
        NoRefiner()(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 2, 2), labels=torch.ones(1, 1))


@covers("NoRefiner", "degenerate")
def test_no_refiner_without_classes():
    out = NoRefiner()(torch.rand(1, 3, 2, 2), torch.ones(1, 1, 1, 1), labels=torch.ones(1, 0))
    assert_same(out, torch.ones(1, 1, 2, 2))
    empty = NoRefiner()(torch.rand(0, 3, 2, 2), torch.rand(0, 3, 1, 1), labels=torch.ones(0, 2))
    assert empty.shape == (0, 3, 2, 2)
