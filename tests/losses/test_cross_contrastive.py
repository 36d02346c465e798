import math

import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_module, covers
from hypothesis import given
from hypothesis import strategies as st
from oracles.losses import cross_contrastive
from strategies import generator, random_labels, random_mask, seeds, sizes, small

from wsss_blocks.losses import CrossContrastiveLoss, cross_contrastive_loss

VARIANTS = ("background", "classes", "denominator", "batch")
POOLS = ("region", "token")
READINGS = [{"variant": v, "pool": p} for v in VARIANTS for p in POOLS]
every_reading = pytest.mark.parametrize("reading", READINGS, ids=lambda r: "-".join(r.values()))


def problem(seed=0, batch=2, size=(3, 4), classes=3, prompts=1, dim=5):
    g = generator(seed)
    features = torch.randn(batch, dim, *size, generator=g, dtype=torch.float64)
    mask = random_mask((batch, *size), classes + 1, g)
    labels = random_labels(batch, classes, g)
    text = torch.randn(classes, dim, generator=g, dtype=torch.float64)
    background = torch.randn(prompts, dim, generator=g, dtype=torch.float64)
    return features, mask, labels, text, background


@covers("cross_contrastive_loss", "oracle")
@every_reading
@given(seeds, small, sizes(4), st.integers(1, 4), small, st.sampled_from([(1.0, 1e-3), (0.3, 0.7)]))
def test_equals_the_formula(reading, seed, batch, size, classes, prompts, weights):
    args = problem(seed, batch, size, classes, prompts)
    options = {"temperature": weights[0], "background_weight": weights[1], **reading}
    assert_close(cross_contrastive_loss(*args, **options), cross_contrastive(*args, **options))


@covers("cross_contrastive_loss", "oracle")
@every_reading
@given(seeds, sizes(3), st.integers(0, 3))
def test_any_id_may_be_the_ignored_one(reading, seed, size, ignore):
    features, mask, *rest = problem(seed, size=size)
    args = features, mask.where(mask != 255, ignore), *rest
    expected = cross_contrastive(*args, ignore_index=ignore, **reading)
    assert_close(cross_contrastive_loss(*args, ignore_index=ignore, **reading), expected)


@covers("cross_contrastive_loss", "oracle")
def test_equal_similarities_cost_log_two_per_direction():
    features, mask = torch.ones(1, 4, 2, 2), torch.tensor([[[0, 1], [2, 255]]])
    labels, axes = torch.tensor([[1.0, 1.0]]), torch.eye(4)
    args = features, mask, labels, axes[:2], axes[2:3]
    for pool in POOLS:
        for tau in (0.2, 1.0):
            loss = cross_contrastive_loss(*args, temperature=tau, background_weight=0.0, pool=pool)
            assert_close(loss, 2 * math.log(2))
            # the background term has both classes as negatives
            loss = cross_contrastive_loss(*args, temperature=tau, background_weight=0.5, pool=pool)
            assert_close(loss, 2 * math.log(2) + 0.5 * math.log(3))
    # one more negative in the image-to-text direction
    loss = cross_contrastive_loss(*args, background_weight=0.0, variant="classes")
    assert_close(loss, math.log(3) + math.log(2))
    loss = cross_contrastive_loss(*args, background_weight=0.0, variant="denominator")
    assert_close(loss, math.log(3))  # no repulsion at all, and the background term in full
    # without a background region only the image-to-text direction is left
    no_background = mask.where(mask > 0, 255)
    loss = cross_contrastive_loss(features, no_background, *args[2:])
    assert_close(loss, math.log(2))


@covers("cross_contrastive_loss", "properties")
@given(st.sampled_from(READINGS), seeds)
def test_symmetries(reading, seed):
    features, mask, labels, text, background = problem(seed, prompts=2)
    mask[0, 0], labels[0, 0] = torch.tensor([0, 0, 1, 1]), 1.0
    args = features, mask, labels, text, background
    loss = cross_contrastive_loss(*args, **reading)
    assert loss > 0
    order = torch.randperm(12, generator=generator(seed))
    shuffled = features.flatten(2)[..., order].view_as(features)
    permuted = mask.flatten(1)[:, order].view_as(mask)
    assert_close(cross_contrastive_loss(shuffled, permuted, *args[2:], **reading), loss)
    # tokens inside one region, the mask as it is
    inside = features.clone()
    inside[0, :, 0, :2] = features[0, :, 0, [1, 0]]
    assert_close(cross_contrastive_loss(inside, *args[1:], **reading), loss)
    repeated = torch.cat([background, background])
    assert_close(cross_contrastive_loss(*args[:4], repeated, **reading), loss)
    scaled = 3 * features, mask, labels, 2 * text, 0.1 * background
    assert_close(cross_contrastive_loss(*scaled, **reading), loss)
    classes = torch.tensor([2, 0, 1])
    renumbered = mask.clone()
    for new, old in enumerate(classes):
        renumbered[mask == old + 1] = new + 1
    swapped = features, renumbered, labels[:, classes], text[classes], background
    assert_close(cross_contrastive_loss(*swapped, **reading), loss)
    assert_close(cross_contrastive_loss(*(x.flip(0) for x in args[:3]), *args[3:], **reading), loss)


@covers("cross_contrastive_loss", "properties")
@given(st.sampled_from(READINGS), seeds)
def test_ignored_and_unlabelled_pixels_never_contribute(reading, seed):
    features, mask, labels, text, background = problem(seed)
    allowed = torch.cat([torch.ones(2, 1), labels, torch.zeros(2, 252)], 1)  # by id
    known = allowed.gather(1, mask.flatten(1)).view_as(mask) > 0
    features.requires_grad_()
    loss = cross_contrastive_loss(features, mask, labels, text, background, **reading)
    (gradient,) = torch.autograd.grad(loss, features)
    assert (gradient.movedim(1, -1)[~known] == 0).all()
    moved = torch.where(known[:, None], features, -features.flip(1))
    assert_close(cross_contrastive_loss(moved, mask, labels, text, background, **reading), loss)
    mask = mask.where(known, 255)
    assert_close(cross_contrastive_loss(features, mask, labels, text, background, **reading), loss)


@covers("cross_contrastive_loss", "properties")
def test_batch_variant_sees_the_background_of_other_images():
    features, mask, labels, text, background = problem()
    mask[0], mask[1], labels = torch.ones(3, 4), torch.zeros(3, 4), torch.eye(2, 3)
    labels[1] = 0.0
    features.requires_grad_()
    for variant in ("background", "batch"):
        loss = cross_contrastive_loss(features, mask, labels, text, background, variant=variant)
        (gradient,) = torch.autograd.grad(loss, features)
        assert bool((gradient[1] != 0).any()) == (variant == "batch")


@covers("cross_contrastive_loss", "gradcheck")
@every_reading
def test_gradient(reading):
    features, mask, labels, text, background = problem(1, size=(2, 3), prompts=2)
    labels[0] = 1.0
    # the text is not detached: a trained tower gets its gradient
    assert_gradcheck(
        lambda x, *texts: cross_contrastive_loss(x, mask, labels, *texts, **reading),
        features.requires_grad_(),
        text.requires_grad_(),
        background.requires_grad_(),
    )


@covers("cross_contrastive_loss", "module")
@every_reading
def test_module(reading):
    args = problem()
    options = {"temperature": 0.5, "background_weight": 0.1, "ignore_index": 255, **reading}
    expected = cross_contrastive_loss(*args, **options)
    assert_module(CrossContrastiveLoss(**options), expected, *args)
    args[1][args[1] == 255] = 77
    module = CrossContrastiveLoss(ignore_index=77, **reading)
    assert_module(module, cross_contrastive_loss(*args, ignore_index=77, **reading), *args)


@covers("cross_contrastive_loss", "compile")
@pytest.mark.parametrize(("variant", "pool"), [("denominator", "region"), ("batch", "token")])
def test_compile(variant, pool):
    assert_compiles(CrossContrastiveLoss(variant=variant, pool=pool), *problem(prompts=2))


@covers("cross_contrastive_loss", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@every_reading
def test_dtypes(dtype, reading):
    features, mask, labels, text, background = problem(1, prompts=2)
    labels[0] = 1.0
    exact_features = features.to(dtype).double()
    expected = cross_contrastive_loss(exact_features, mask, labels, text, background, **reading)
    features = features.to(dtype).requires_grad_()
    texts = text.float(), background.float()
    for ids in (mask, mask.to(torch.uint8)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=ids is not mask):
            loss = cross_contrastive_loss(features, ids, labels.int(), *texts, **reading)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        # the texts are float32, and everything inside is, also under autocast
        assert_close(loss, expected, dtype=torch.float32)
        assert torch.autograd.grad(loss, features)[0].isfinite().all()


@covers("cross_contrastive_loss", "degenerate")
@every_reading
@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_nothing_to_contrast_is_a_differentiable_zero(reading, size):
    features, _, _, text, background = problem(size=size)
    features.requires_grad_()
    some = torch.ones(2, 3)
    for fill, labels in ((255, some), (0, some), (0, 0 * some), (2, 0 * some), (2, some)):
        mask = torch.full((2, *size), fill)
        loss = cross_contrastive_loss(features, mask, labels, text, background, **reading)
        (gradient,) = torch.autograd.grad(loss, features)
        contrasted = fill == 2 and bool(labels.any())
        assert gradient.isfinite().all()
        assert bool((gradient != 0).any()) == contrasted
        assert bool(loss > 0) == contrasted


@covers("cross_contrastive_loss", "degenerate")
@every_reading
def test_extremes_stay_finite(reading):
    axes = torch.eye(3)
    # one class, tokens that equal, oppose or lack a direction, a very low temperature
    features = torch.stack([axes[0], -axes[0], axes[1], 0 * axes[0]], 1).view(1, 3, 2, 2)
    features.requires_grad_()
    mask, labels = torch.tensor([[[0, 1], [1, 0]]]), torch.ones(1, 1)
    for tau, lam in ((1.0, 0.0), (1e-3, 1.0)):
        options = {"temperature": tau, "background_weight": lam, **reading}
        loss = cross_contrastive_loss(features, mask, labels, axes[:1], axes[1:2], **options)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, features)[0].isfinite().all()
    empty = features[:0], mask[:0], labels[:0], axes[:1], axes[1:2]
    assert cross_contrastive_loss(*empty, **reading) == 0


@covers("cross_contrastive_loss", "errors")
@pytest.mark.parametrize(
    ("position", "change", "error", "message"),
    [
        (0, lambda x: x[0], ValueError, r"features must have shape .* got \(5, 3, 4\)"),
        (0, lambda x: x.long(), TypeError, "features must be a floating-point tensor"),
        (1, lambda x: x[:, :2], ValueError, r"mask must have shape .* h=3, w=4, got \(2, 2, 4\)"),
        (1, lambda x: x.double(), TypeError, "mask must be an integer tensor, got torch.float64"),
        (1, lambda x: x + 3, ValueError, r"mask must hold ids in \[0, 4\) or ignore_index=255"),
        (1, lambda x: x.to("meta"), ValueError, "mask must be on the device of features"),
        (2, lambda x: torch.ones(2, 4), ValueError, "background column too many"),
        (2, lambda x: x - 2, ValueError, "labels must be multi-hot"),
        (3, lambda x: x[:, :4], ValueError, r"class_text must have shape \(K, D\) with D=5"),
        (3, lambda x: x.to("meta"), ValueError, "class_text must be on the device of features"),
        (4, lambda x: x[:0], ValueError, r"background_text must have shape .* got \(0, 5\)"),
        (4, lambda x: x.long(), TypeError, "background_text must be a floating-point tensor"),
    ],
)
def test_argument_errors(position, change, error, message):
    args = list(problem())
    args[position] = change(args[position])
    with pytest.raises(error, match=message):
        cross_contrastive_loss(*args)


@covers("cross_contrastive_loss", "errors")
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"background_weight": -1.0}, "background_weight must be >= 0 and finite, got -1.0"),
        ({"variant": "V1"}, "variant must be one of 'background'"),
        ({"pool": "mean"}, "pool must be one of 'region', 'token'"),
    ],
)
def test_option_errors(option, message):
    for call in (
        lambda: CrossContrastiveLoss(**option),
        lambda: cross_contrastive_loss(*problem(), **option),
    ):
        with pytest.raises(ValueError, match=message):
            call()
