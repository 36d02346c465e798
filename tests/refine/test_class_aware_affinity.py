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
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.affinity import boxes_oracle, class_aware_affinity_oracle
from strategies import generator, random_labels, seeds, sizes

from wsss_blocks.refine import ClassAwareAffinity, class_aware_affinity
from wsss_blocks.refine._component_boxes import fill_component_boxes


def problem(seed=0, batch=2, classes=3, size=(3, 4), dtype=torch.float64):
    g = generator(seed)
    n = size[0] * size[1]
    cam = torch.rand(batch, classes, *size, generator=g, dtype=torch.float64)
    attention = torch.randn(batch, n, n, generator=g, dtype=torch.float64).softmax(2)
    return cam.to(dtype), attention.to(dtype), random_labels(batch, classes, g)


@settings(max_examples=30)
@given(seeds, sizes(9), st.sampled_from([0.1, 0.3, 0.6]))
def test_boxes_are_those_of_the_flood_fill(seed, size, density):
    marked = torch.rand(3, *size, generator=generator(seed)) < density
    expected = torch.tensor([boxes_oracle(plane.tolist()) for plane in marked])
    assert_same(fill_component_boxes(marked), expected)


def test_boxes_of_known_components():
    plane = torch.tensor(
        [
            [1, 0, 0, 0, 0, 1],
            [0, 1, 0, 0, 0, 0],  # touches the first at a corner: one component
            [0, 0, 0, 0, 1, 0],
            [1, 1, 0, 0, 0, 1],  # left: one of its own; right: a corner again
        ]
    ).bool()
    filled = torch.tensor(
        [
            [1, 1, 0, 0, 0, 1],
            [1, 1, 0, 0, 0, 0],
            [0, 0, 0, 0, 1, 1],
            [1, 1, 0, 0, 1, 1],
        ]
    ).bool()
    # planes do not touch each other
    assert_same(fill_component_boxes(torch.stack([plane, ~plane])[:1])[0], filled)
    apart = torch.stack([plane, torch.zeros_like(plane), plane.flip(0)])
    expected = torch.stack([filled, torch.zeros_like(filled), filled.flip(0)])
    assert_same(fill_component_boxes(apart), expected)
    assert_same(fill_component_boxes(torch.ones_like(apart)), torch.ones_like(apart))
    assert fill_component_boxes(apart[:0]).shape == (0, 4, 6)


@covers("class_aware_affinity", "oracle")
@settings(max_examples=12)
@given(
    seeds, st.integers(1, 3), sizes(3), st.sampled_from([0.0, 0.4, 0.9]), st.integers(0, 3),
    st.integers(0, 3),
)  # fmt: skip
def test_equals_the_loop(seed, classes, size, threshold, rounds, power):
    cam, attention, labels = problem(seed, 2, classes, size)
    options = {"threshold": threshold, "rounds": rounds, "power": power}
    expected = class_aware_affinity_oracle(cam, attention, labels, **options)
    assert_close(class_aware_affinity(cam, attention, labels, **options), expected)


@covers("class_aware_affinity", "properties")
def test_many_rounds_keep_the_mass_of_what_is_boxed():
    """A balanced affinity is doubly stochastic: it spreads scores and keeps their sum."""
    cam, attention, _ = problem(1)
    labels = torch.ones(2, 3)
    out = class_aware_affinity(cam, attention, labels, threshold=0.0, rounds=60)
    assert_close(out.sum((2, 3)), cam.sum((2, 3)))
    assert (out >= 0).all()
    assert_same(class_aware_affinity(cam, attention, labels, threshold=0.0, power=0), cam)


@covers("class_aware_affinity", "properties")
def test_classes_and_images_are_independent():
    cam, attention, _ = problem(2)
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    out = class_aware_affinity(cam, attention, labels)
    assert torch.equal(out.amax((2, 3)) > 0, labels > 0)
    assert_close(class_aware_affinity(cam[1:], attention[1:], labels[1:]), out[1:])
    order = [2, 0, 1]
    assert_close(class_aware_affinity(cam[:, order], attention, labels[:, order]), out[:, order])
    absent = (labels == 0)[:, :, None, None]
    assert_close(class_aware_affinity(cam.masked_fill(absent, 9), attention, labels), out)
    everything = class_aware_affinity(cam, attention, torch.ones(2, 3))
    assert_close(everything.masked_fill(absent, 0), out)
    assert_close(class_aware_affinity(3 * cam, 5 * attention, labels), 3 * out)


@covers("class_aware_affinity", "properties")
def test_a_class_spreads_along_attention_out_of_its_box():
    """Two regions attend within themselves: what is boxed in one does not reach the other."""
    side = torch.tensor([[0, 0, 1, 1]] * 3).flatten()
    attention = torch.where(side[:, None] == side, 1.0, 1e-4)[None]
    cam = torch.zeros(1, 1, 3, 4)
    cam[..., 1, 0] = 1
    cam[..., 0, 3] = 0.3  # below the threshold: outside any box, it is left out
    out = class_aware_affinity(cam, attention, torch.ones(1, 1))[0, 0]
    assert_close(out[:, :2], torch.full((3, 2), 1 / 6), dtype=torch.bfloat16)
    assert out[:, 2:].max() < 1e-3


@covers("class_aware_affinity", "properties")
def test_a_score_at_the_threshold_draws_no_box():
    cam = torch.tensor([[[[2.0, 0.0, 0.0, 1.0]]]])
    options = {"threshold": 0.5, "power": 0}
    out = class_aware_affinity(cam, torch.ones(1, 4, 4), torch.ones(1, 1), **options)
    assert out.flatten().tolist() == [2, 0, 0, 0]
    out = class_aware_affinity(cam + 1e-3, torch.ones(1, 4, 4), torch.ones(1, 1), **options)
    assert out.flatten()[3] > 1


@covers("class_aware_affinity", "gradcheck")
def test_gradients():
    cam, attention, _ = problem(3, 1, 2, (2, 3))
    labels = torch.tensor([[1.0, 0.0]])
    assert_gradcheck(
        lambda c, a: class_aware_affinity(c, a, labels, rounds=2),
        cam.requires_grad_(),
        attention.requires_grad_(),
    )


@covers("class_aware_affinity", "module")
def test_module():
    cam, attention, labels = problem(4)
    options = {"threshold": 0.5, "rounds": 2, "power": 1}
    expected = class_aware_affinity(cam, attention, labels, **options)
    module = ClassAwareAffinity(**options)
    assert_module(module, expected, cam, attention, labels)
    assert repr(module) == "ClassAwareAffinity(threshold=0.5, rounds=2, power=1)"


@covers("class_aware_affinity", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtypes(dtype):
    cam, attention, labels = problem(5, dtype=dtype)
    out = class_aware_affinity(cam, attention, labels)
    assert out.dtype == dtype
    assert_close(out, class_aware_affinity(cam.double(), attention.double(), labels))
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(class_aware_affinity(cam, attention, labels), out)
    mixed = class_aware_affinity(cam.float(), attention, labels)
    assert mixed.dtype == torch.float32
    assert_same(class_aware_affinity(cam, attention, labels.long()), out)


@covers("class_aware_affinity", "compile")
def test_compiles():
    cam, attention, labels = problem(6, dtype=torch.float32)
    assert_compiles(class_aware_affinity, cam, attention, labels)


@covers("class_aware_affinity", "degenerate")
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 3)])
@pytest.mark.parametrize("fill", ["no label", "zero map", "zero attention", "constant"])
def test_degenerate(size, fill):
    n = size[0] * size[1]
    cam = torch.full((2, 1, *size), 0.0 if fill == "zero map" else 0.5, requires_grad=True)
    attention = torch.full((2, n, n), 0.0 if fill == "zero attention" else 0.2).requires_grad_()
    labels = torch.full((2, 1), float(fill != "no label"))
    out = class_aware_affinity(cam, attention, labels)
    assert_close(out, torch.full_like(out, 0.5 if fill == "constant" else 0.0))
    out.sum().backward()
    assert torch.isfinite(cam.grad).all()
    assert torch.isfinite(attention.grad).all()


@covers("class_aware_affinity", "degenerate")
def test_a_patch_that_takes_no_part_in_attention():
    cam, attention, _ = problem(7)
    attention[:, 4], attention[:, :, 4] = 0, 0
    labels = torch.ones(2, 3)
    out = class_aware_affinity(cam, attention, labels, threshold=0.0)
    assert_close(out, class_aware_affinity_oracle(cam, attention, labels, threshold=0.0))
    assert (out.flatten(2)[..., 4] == 0).all()
    assert class_aware_affinity(cam[:0], attention[:0], labels[:0]).shape == (0, 3, 3, 4)


@covers("class_aware_affinity", "errors")
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"cam": torch.rand(3, 4)}, ValueError, r"cam must have shape \(B, K, h, w\)"),
        ({"cam": torch.ones(2, 3, 3, 4).int()}, TypeError, "cam must be a floating-point"),
        ({"cam": -torch.ones(2, 3, 3, 4)}, ValueError, "cam must be >= 0"),
        ({"cam": torch.full((2, 3, 3, 4), torch.nan)}, ValueError, "cam must be finite"),
        ({"attention": torch.rand(2, 12, 13)}, ValueError, r"attention .* B=2, N=12"),
        ({"attention": torch.ones(2, 12, 12).int()}, TypeError, "attention must be a floating"),
        ({"attention": -torch.ones(2, 12, 12)}, ValueError, "attention must be >= 0"),
        ({"attention": torch.full((2, 12, 12), torch.inf)}, ValueError, "attention must be fin"),
        ({"attention": torch.rand(2, 12, 12, device="meta")}, ValueError, "on the device of cam"),
        ({"labels": torch.ones(2, 4)}, ValueError, "background column too many"),
        ({"labels": torch.full((2, 3), 2.0)}, ValueError, "labels must be multi-hot"),
        ({"threshold": 1.5}, ValueError, r"threshold must be in \[0, 1\], got 1.5"),
        ({"threshold": "0.4"}, TypeError, "threshold must be a number"),
        ({"rounds": -1}, ValueError, "rounds must be at least 0, got -1"),
        ({"power": 0.5}, TypeError, "power must be an int, got 0.5"),
    ],
)
def test_errors(change, error, match):
    cam, attention, labels = problem(dtype=torch.float32)
    call = {"cam": cam, "attention": attention, "labels": labels} | change
    with pytest.raises(error, match=match):
        class_aware_affinity(call.pop("cam"), call.pop("attention"), call.pop("labels"), **call)
    if {"threshold", "rounds", "power"} & change.keys():
        with pytest.raises(error, match=match):
            ClassAwareAffinity(**change)
