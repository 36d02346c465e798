import math

import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_module, covers
from hypothesis import given
from hypothesis import strategies as st
from oracles.losses import exact, global_implicit_alignment
from strategies import generator, random_labels, seeds, small

from wsss_blocks.losses import GlobalImplicitAlignmentLoss, global_implicit_alignment_loss

SIMILARITIES = ("tangent", "clamp", "shifted")


def problem(seed=0, batch=3, classes=4, prompts=1, dim=6):
    g = generator(seed)
    token = torch.randn(batch, dim, generator=g, dtype=torch.float64)
    labels = random_labels(batch, classes, g)
    text = torch.randn(classes, dim, generator=g, dtype=torch.float64)
    background = torch.randn(prompts, dim, generator=g, dtype=torch.float64)
    return token, labels, text, background


def at_cosine(s, background=0.0):
    """A token with cosine s to the one class text and ``background`` to the background text."""
    rest = math.sqrt(1 - s * s - background * background)
    token = torch.tensor([[s, background, rest]], dtype=torch.float64)
    axes = torch.eye(3, dtype=torch.float64)
    return token, torch.ones(1, 1), axes[:1], axes[1:2]


def slope(s, background, similarity):
    args = at_cosine(s, background)
    token = args[0].requires_grad_()
    loss = global_implicit_alignment_loss(*args, similarity=similarity)
    (gradient,) = torch.autograd.grad(loss, token)
    return gradient[0]


@covers("global_implicit_alignment_loss", "oracle")
@pytest.mark.parametrize("similarity", SIMILARITIES)
@given(seeds, small, st.integers(1, 4), st.integers(0, 3), st.sampled_from(["sum", "mean"]))
def test_equals_the_formula(similarity, seed, batch, classes, prompts, per_class):
    args = problem(seed, batch, classes, prompts)
    rows = global_implicit_alignment(*args, similarity, per_class)
    options = {"similarity": similarity, "class_reduction": per_class}
    assert_close(global_implicit_alignment_loss(*args, reduction="none", **options), rows)
    assert_close(global_implicit_alignment_loss(*args, reduction="sum", **options), rows.sum())
    contributing = (args[1].sum(1) > 0).sum().clamp_min(1)
    assert_close(global_implicit_alignment_loss(*args, **options), rows.sum() / contributing)


@covers("global_implicit_alignment_loss", "oracle")
def test_known_values():
    # -log 1/2 - log(1 - 1/2)
    assert_close(global_implicit_alignment_loss(*at_cosine(0.5, 0.5)), exact(2 * math.log(2)))
    # tangent of -log at 0.1, continued to a cosine of -0.4
    assert_close(global_implicit_alignment_loss(*at_cosine(-0.4)), exact(math.log(10) + 5))
    clamped = global_implicit_alignment_loss(*at_cosine(-0.4), similarity="clamp")
    assert_close(clamped, exact(-math.log(1e-4) - math.log(1 - 1e-4)))
    shifted = global_implicit_alignment_loss(*at_cosine(-0.4), similarity="shifted")
    assert_close(shifted, exact(-math.log(0.3) - math.log(0.5)))


@covers("global_implicit_alignment_loss", "properties")
def test_tangent_has_no_dead_zone_and_a_bounded_slope():
    assert slope(-0.1, 0.0, "tangent")[0] < -5
    assert slope(-0.1, 0.0, "clamp")[0] == 0
    for s in (-0.9, -0.1, 0.0, 0.05, 0.0999, 0.1001, 0.5):
        assert -10.001 <= slope(s, 0.0, "tangent")[0] <= 0
    for b in (0.5, 0.8999, 0.9001, 0.99):
        # the token only has |token| <= 1, so the slope along the text is at most 10
        assert 0 < slope(0.05, b, "tangent")[1] <= 10.001
    # a background cosine below zero is no further reward
    below, zero = at_cosine(0.5, -0.3), at_cosine(0.5, 0.0)
    assert_close(global_implicit_alignment_loss(*below), global_implicit_alignment_loss(*zero))


@covers("global_implicit_alignment_loss", "properties")
def test_value_and_slope_are_continuous_at_the_knee():
    for knee, background in ((0.1, False), (0.9, True)):
        losses, slopes = [], []
        for s in (knee - 1e-7, knee + 1e-7):
            args = at_cosine(0.3, s) if background else at_cosine(s)
            token = args[0].requires_grad_()
            loss = global_implicit_alignment_loss(*args)
            losses.append(loss.detach())
            slopes.append(torch.autograd.grad(loss, token)[0])
        torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-5)
        torch.testing.assert_close(slopes[0], slopes[1], rtol=0, atol=1e-4)


@covers("global_implicit_alignment_loss", "properties")
@given(seeds)
def test_symmetries(seed):
    token, labels, text, background = problem(seed, prompts=2)
    labels[0, 0] = 1.0
    loss = global_implicit_alignment_loss(token, labels, text, background)
    order = torch.tensor([2, 0, 3, 1])
    assert_close(
        global_implicit_alignment_loss(token, labels[:, order], text[order], background), loss
    )
    rows = torch.tensor([2, 0, 1])
    assert_close(global_implicit_alignment_loss(token[rows], labels[rows], text, background), loss)
    assert_close(
        global_implicit_alignment_loss(3 * token, labels, 0.2 * text, 7 * background), loss
    )
    # a repeated prompt changes nothing, neither do more images without objects
    repeated = torch.cat([background, background[:1]])
    assert_close(global_implicit_alignment_loss(token, labels, text, repeated), loss)
    more = torch.cat([token, token]), torch.cat([labels, torch.zeros_like(labels)])
    assert_close(global_implicit_alignment_loss(*more, text, background), loss)


@covers("global_implicit_alignment_loss", "gradcheck")
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_gradient(similarity):
    token, labels, text, background = problem(3, prompts=2)
    assert_gradcheck(
        lambda *x: global_implicit_alignment_loss(x[0], labels, *x[1:], similarity=similarity),
        token.requires_grad_(),
        text.requires_grad_(),
        background.requires_grad_(),
    )


@covers("global_implicit_alignment_loss", "module", "compile")
def test_module_and_compile():
    args = problem()
    options = {"similarity": "shifted", "reduction": "none", "class_reduction": "mean"}
    expected = global_implicit_alignment_loss(*args, **options)
    assert_module(GlobalImplicitAlignmentLoss(**options), expected, *args)
    default = global_implicit_alignment_loss(*args)
    assert_module(GlobalImplicitAlignmentLoss(), default, *args)
    for prompts in (0, 1, 3):
        assert_compiles(global_implicit_alignment_loss, *problem(prompts=prompts))


@covers("global_implicit_alignment_loss", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_dtypes(dtype, similarity):
    token, labels, text, background = problem(1)
    exact = global_implicit_alignment_loss(
        token.to(dtype).double(), labels, text, background, similarity=similarity
    )
    token = token.to(dtype).requires_grad_()
    texts = text.float(), background.float()
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = global_implicit_alignment_loss(token, labels, *texts, similarity=similarity)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        # the texts are float32, and everything inside is, also under autocast
        assert_close(loss, exact, dtype=torch.float32)
        assert torch.autograd.grad(loss, token)[0].isfinite().all()


@covers("global_implicit_alignment_loss", "degenerate")
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_degenerate(similarity):
    token, _, text, background = problem()
    token.requires_grad_()
    for reduction in ("mean", "sum", "none"):
        loss = global_implicit_alignment_loss(
            token, torch.zeros(3, 4), text, background, similarity=similarity, reduction=reduction
        )
        assert (loss == 0).all()
        (gradient,) = torch.autograd.grad(loss.sum(), token)
        assert (gradient == 0).all()
    # cosines of exactly 1, -1 and 0, and a zero token
    text = torch.eye(3)
    token = torch.stack([text[0], -text[0], text[1], torch.zeros(3)]).requires_grad_()
    for prompt in (text[:1], -text[:1], text[2:], text[:0]):
        loss = global_implicit_alignment_loss(
            token, torch.ones(4, 1), text[:1], prompt, similarity=similarity
        )
        assert loss.isfinite()
        assert torch.autograd.grad(loss, token)[0].isfinite().all()
    assert global_implicit_alignment_loss(token[:0], torch.ones(0, 1), text[:1], text[1:]) == 0


@covers("global_implicit_alignment_loss", "errors")
def test_errors():
    token, labels, text, background = problem()
    with pytest.raises(ValueError, match=r"token must have shape \(B, D\), got \(3, 6, 1\)"):
        global_implicit_alignment_loss(token[..., None], labels, text, background)
    with pytest.raises(ValueError, match=r"class_text must have shape .* D=6, got \(4, 5\)"):
        global_implicit_alignment_loss(token, labels, text[:, :5], background)
    with pytest.raises(ValueError, match=r"background_text must have shape \(M, D\) .* got \(6,\)"):
        global_implicit_alignment_loss(token, labels, text, background[0])
    with pytest.raises(ValueError, match="background column too many"):
        global_implicit_alignment_loss(token, torch.ones(3, 5), text, background)
    with pytest.raises(ValueError, match="labels must be multi-hot"):
        global_implicit_alignment_loss(token, labels - 1, text, background)
    with pytest.raises(ValueError, match="class_text must be on the device of token"):
        global_implicit_alignment_loss(token, labels, text.to("meta"), background)
    with pytest.raises(TypeError, match=r"token must be a floating-point tensor, got torch.int64"):
        global_implicit_alignment_loss(token.long(), labels, text, background)
    with pytest.raises(TypeError, match=r"background_text must be a floating-point tensor"):
        global_implicit_alignment_loss(token, labels, text, background.long())
    for option in ("similarity", "reduction", "class_reduction"):
        with pytest.raises(ValueError, match=f"^{option} must be one of"):
            GlobalImplicitAlignmentLoss(**{option: "no"})
        with pytest.raises(ValueError, match=f"^{option} must be one of"):
            global_implicit_alignment_loss(token, labels, text, background, **{option: "no"})
