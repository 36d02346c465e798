import functools

import pytest
import torch
import torch.nn.functional as F
from contract import assert_compiles, assert_same, covers
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.refine import (
    add_background_oracle,
    label_rule_oracle,
    no_refiner_oracle,
    par_refiner_oracle,
)
from strategies import generator, random_labels, seeds, sizes, small

from wsss_blocks.refine import NoRefiner, PixelAdaptiveRefine, refine_to_label

PAR = {"dilations": (1, 2), "iterations": 2}


def random_box(batch, size, g):
    rows = []
    for _ in range(batch):
        edges = [sorted(torch.randint(0, n + 1, (2,), generator=g).tolist()) for n in size]
        rows.append([edges[0][0], edges[1][0], edges[0][1], edges[1][1]])
    return rows


@covers("refine_to_label", "oracle")
@settings(max_examples=15)
@given(seeds, small, small, sizes(5), sizes(4), st.booleans(), st.booleans(), st.booleans())
def test_refine_to_label_is_the_loop(seed, batch, classes, size, low, use_par, boxed, per_image):
    g = generator(seed)
    images = torch.rand(batch, 3, *size, generator=g, dtype=torch.float64)
    cam = torch.rand(batch, classes, *low, generator=g, dtype=torch.float64)
    labels = random_labels(batch, classes, g)
    box = random_box(batch, size, g) if boxed else None
    pairs = torch.rand(batch, 2, generator=g, dtype=torch.float64).sort(1).values
    if not per_image:
        pairs = pairs[:1].expand(batch, 2)

    sides = []
    for value in (pairs[:, 1], pairs[:, 0]):
        maps = add_background_oracle(cam, mode="constant", value=value.tolist())
        if use_par:
            recipe = {"downsample": 2, "softmax": True, **PAR}
            sides.append(par_refiner_oracle(images, maps, labels, **recipe))
        else:
            sides.append(no_refiner_oracle(size, maps, labels))
    expected = label_rule_oracle(*sides, box, 255)

    out = refine_to_label(
        cam,
        images,
        labels,
        PixelAdaptiveRefine(**PAR) if use_par else NoRefiner(),
        thresholds=pairs if per_image else (float(pairs[0, 0]), float(pairs[0, 1])),
        box=None if box is None else torch.tensor(box),
    )
    assert out.dtype == torch.int64
    assert torch.equal(out, expected)


@covers("refine_to_label", "oracle")
def test_rule_on_a_hand_made_cam():
    """Spec 3.4 and 3.5: below both, between, above both, and the ties."""
    cam = torch.tensor([[0.1, 0.25, 0.5, 0.7, 0.9], [0.0, 0.25, 0.6, 0.7, 0.9]])
    cam = cam.view(1, 2, 1, 5)
    images = torch.rand(1, 3, 1, 5)
    out = refine_to_label(cam, images, torch.ones(1, 2), NoRefiner())
    assert out.tolist() == [[[0, 0, 255, 255, 1]]]
    out = refine_to_label(cam, images, torch.tensor([[0.0, 1.0]]), NoRefiner(), ignore_index=-1)
    assert out.tolist() == [[[0, 0, -1, -1, 2]]]


@covers("refine_to_label", "oracle")
@given(seeds, small, small, sizes(4))
def test_rule_where_the_two_backgrounds_name_different_classes(seed, batch, classes, size):
    g = generator(seed)
    refined = torch.rand(batch, 2, classes + 1, *size, generator=g).mul(3).round()
    cam, images = torch.rand(batch, classes, *size), torch.rand(batch, 3, *size)
    out = refine_to_label(cam, images, torch.ones(batch, classes), lambda *_, **__: refined)
    assert torch.equal(out, label_rule_oracle(refined[:, 0], refined[:, 1], None, 255))


def smooth_problem(seed=0, batch=3, classes=6):
    g = generator(seed)
    images = F.interpolate(torch.rand(batch, 3, 4, 4, generator=g), size=(16, 14), mode="bilinear")
    cam = torch.rand(batch, classes, 4, 5, generator=g)
    labels = torch.zeros(batch, classes)
    labels[0, [1, 4]] = 1
    labels[2, 5] = 1
    return cam, images, labels


@covers("refine_to_label", "properties")
def test_only_present_classes_and_any_class_order():
    cam, images, labels = smooth_problem()
    refiner = PixelAdaptiveRefine(**PAR)
    out = refine_to_label(cam, images, labels, refiner, thresholds=(0.6, 0.75))
    assert set(out[0].unique().tolist()) == {0, 2, 5, 255}
    assert set(out[1].unique().tolist()) == {0}
    assert set(out[2].unique().tolist()) == {0, 6, 255}
    order = [3, 5, 0, 4, 2, 1]
    permuted = refine_to_label(
        cam[:, order], images, labels[:, order], refiner, thresholds=(0.6, 0.75)
    )
    names = torch.arange(256)
    names[1:7] = torch.tensor(order) + 1
    assert torch.equal(names[permuted], out)
    narrow = refine_to_label(cam, images, labels, refiner, thresholds=(0.4, 0.4))
    assert not (narrow == 255).any()


@covers("refine_to_label", "properties")
def test_refiner_is_called_once_with_both_backgrounds():
    cam, images, labels = smooth_problem()
    calls = []

    def refiner(images, maps, *, labels=None, box=None, features=None):
        calls.append((maps, labels, box, features))
        return NoRefiner()(images, maps, labels=labels)

    box = torch.tensor([[0, 0, 16, 14], [2, 1, 9, 5], [3, 0, 3, 0]])
    with_features = functools.partial(refiner, features="tokens")
    out = refine_to_label(cam, images, labels, with_features, box=box)
    ((maps, present, seen_box, features),) = calls
    assert maps.shape == (3, 2, 3, 4, 5)  # background and at most two present classes
    assert (maps[:, 0, 0] == 0.7).all()
    assert (maps[:, 1, 0] == 0.25).all()
    assert present.tolist() == [[1, 1], [0, 0], [1, 0]]
    assert seen_box is box
    assert features == "tokens"
    assert (out[1, 2:9, 1:5] == 0).all()
    assert (out[1] == 255).sum() == 16 * 14 - 7 * 4
    assert (out[2] == 255).all()


@covers("refine_to_label", "properties")
def test_present_classes_only_equals_all_classes(monkeypatch):
    cam, images, labels = smooth_problem(1)
    refiner = PixelAdaptiveRefine(**PAR)
    compact = refine_to_label(cam, images, labels, refiner, thresholds=(0.3, 0.5))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(
        refine_to_label(cam, images, labels, refiner, thresholds=(0.3, 0.5)), compact
    )


@covers("refine_to_label", "properties")
def test_no_gradient_flows_and_inputs_are_left_alone():
    cam, images, labels = smooth_problem()
    before = [cam.clone(), images.clone(), labels.clone()]
    refine_to_label(cam.requires_grad_(), images, labels, PixelAdaptiveRefine(**PAR))
    assert_same([cam, images, labels], before)
    assert cam.grad is None


@covers("refine_to_label", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_refine_to_label_dtypes(dtype):
    cam, images, labels = smooth_problem()
    refiner = PixelAdaptiveRefine(**PAR)
    out = refine_to_label(cam.to(dtype), images.to(dtype), labels, refiner, thresholds=(0.3, 0.5))
    assert out.dtype == torch.int64
    reference = refine_to_label(
        cam.double(), images.double(), labels.bool(), refiner, thresholds=(0.3, 0.5)
    )
    agreement = (out == reference).double().mean()
    assert agreement > (0.95 if dtype == torch.bfloat16 else 0.999)
    with torch.autocast("cpu", torch.bfloat16):
        cast = refine_to_label(
            cam.to(dtype), images.to(dtype), labels, refiner, thresholds=(0.3, 0.5)
        )
    assert torch.equal(cast, out)


@covers("refine_to_label", "compile")
def test_refine_to_label_compiles():
    cam, images, labels = smooth_problem()
    box = torch.tensor([[0, 0, 16, 14], [2, 1, 9, 5], [3, 0, 8, 9]])
    refiner = PixelAdaptiveRefine(dilations=(1,), iterations=1)
    assert_compiles(
        lambda c, i, y, b: refine_to_label(c, i, y, refiner, box=b), cam, images, labels, box
    )


@covers("refine_to_label", "errors")
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"cam": torch.rand(2, 3, 4)}, ValueError, r"cam must have shape \(B, K, h, w\) with B=2"),
        ({"cam": torch.ones(2, 3, 4, 4).int()}, TypeError, "cam must be a floating-point"),
        ({"cam": -torch.ones(2, 3, 4, 4)}, ValueError, "cam must be >= 0"),
        ({"images": torch.rand(2, 1, 8, 8)}, ValueError, r"images must have shape \(B, 3, H, W\)"),
        ({"images": torch.ones(2, 3, 8, 8).int()}, TypeError, "images must be a floating-point"),
        ({"labels": torch.ones(2, 4)}, ValueError, "background column too many"),
        ({"box": torch.ones(2, 4)}, TypeError, "box must be an integer"),
        ({"box": torch.tensor([[0, 0, 9, 8]] * 2)}, ValueError, "box must hold"),
        ({"thresholds": (0.7, 0.25)}, ValueError, r"0 <= low <= high, got \(0\.7, 0\.25\)"),
        ({"thresholds": torch.tensor([[0.7, 0.2]] * 2)}, ValueError, "0 <= low <= high, got"),
        ({"thresholds": torch.rand(2)}, ValueError, r"thresholds must have shape \(B, 2\)"),
        ({"thresholds": torch.ones(2, 2).int()}, TypeError, "thresholds must be a floating"),
        ({"ignore_index": 3}, ValueError, r"one of the classes 0\.\.3, got 3"),
        (
            {"refiner": lambda images, maps, **_: maps},
            ValueError,
            r"refiner must return maps of shape \(2, 2, 4, 8, 8\), got \(2, 2, 4, 4, 4\)",
        ),
    ],
)
def test_refine_to_label_errors(change, error, match):
    call = {
        "cam": torch.rand(2, 3, 4, 4),
        "images": torch.rand(2, 3, 8, 8),
        "labels": torch.ones(2, 3),
        "refiner": NoRefiner(),
    } | change
    tensors = [call.pop(name) for name in ("cam", "images", "labels", "refiner")]
    with pytest.raises(error, match=match):
        refine_to_label(*tensors, **call)


@covers("refine_to_label", "degenerate")
@pytest.mark.parametrize("refiner", [NoRefiner(), PixelAdaptiveRefine(**PAR)])
@pytest.mark.parametrize("classes", [1, 4])
def test_nothing_to_see_is_background(refiner, classes):
    images = torch.rand(1, 3, 1, 1)
    cam = torch.full((1, classes, 1, 1), 0.5)
    out = refine_to_label(cam, images, torch.zeros(1, classes), refiner)
    assert out.tolist() == [[[0]]]
    out = refine_to_label(torch.zeros_like(cam), images, torch.ones(1, classes), refiner)
    assert out.tolist() == [[[0]]]
    zero = refine_to_label(
        torch.zeros_like(cam), images, torch.ones(1, classes), refiner, thresholds=(0.0, 0.0)
    )
    assert zero.tolist() == [[[0]]]
