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
from strategies import generator, seeds, sizes, small

from wsss_blocks.cam import SimilarityCAM, similarity_cam

MODES = ["cosine", "margin", "softmax"]


def problem(g, batch=2, dim=5, classes=3, words=2, size=(3, 2)):
    features = torch.randn(batch, dim, *size, generator=g, dtype=torch.float64)
    features[0, :, 0, 0] = 0
    text = torch.randn(classes, dim, generator=g, dtype=torch.float64)
    return features, text, torch.randn(words, dim, generator=g, dtype=torch.float64)


@covers("similarity_cam", "oracle")
@given(
    seeds,
    small,
    st.integers(1, 5),
    small,
    small,
    sizes(4),
    st.sampled_from(MODES),
    st.sampled_from([0.07, 1.0]),
)
def test_oracle(seed, batch, dim, classes, words, size, mode, temperature):
    features, text, background = problem(generator(seed), batch, dim, classes, words, size)
    for given_background in (background, None):
        if mode == "margin" and given_background is None:
            continue
        actual = similarity_cam(
            features, text, background=given_background, mode=mode, temperature=temperature
        )
        assert_close(
            actual, oracle.similarity_cam(features, text, given_background, mode, temperature)
        )


@covers("similarity_cam", "properties")
@pytest.mark.parametrize("mode", MODES)
def test_lengths_do_not_matter_and_class_order_does_only_reorder(mode):
    features, text, background = problem(generator(0))
    cam = similarity_cam(features, text, background=background, mode=mode)
    scaled = similarity_cam(7 * features, 3 * text, background=0.2 * background, mode=mode)
    assert_close(scaled, cam)
    order = torch.tensor([2, 0, 1])
    reordered = similarity_cam(features, text[order], background=background.flip(0), mode=mode)
    assert_close(reordered, cam[:, order])
    limit = {"cosine": 1.0, "margin": 2.0, "softmax": 1.0}[mode]
    assert cam.abs().max() <= limit


@covers("similarity_cam", "properties")
def test_a_patch_equal_to_a_name_scores_one():
    features, text, background = problem(generator(1))
    features[1, :, 2, 1] = 4 * text[2]
    assert_close(similarity_cam(features, text)[1, 2, 2, 1], 1.0)
    margin = similarity_cam(features, text, background=text[2:], mode="margin")
    assert_close(margin[1, 2, 2, 1], 0.0)
    total = similarity_cam(features, torch.cat([text, background]), mode="softmax").sum(1)
    assert_close(total, torch.ones_like(total))


@covers("similarity_cam", "gradcheck")
@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode):
    features, text, background = problem(generator(2))
    features[0, :, 0, 0] = 1
    assert_gradcheck(
        lambda f, t, b: similarity_cam(f, t, background=b, mode=mode, temperature=0.5),
        features.requires_grad_(),
        text.requires_grad_(),
        background.requires_grad_(),
    )


@covers("similarity_cam", "module")
def test_module():
    features, text, background = problem(generator(3))
    expected = similarity_cam(features, text, background=background, mode="softmax", temperature=2)
    module = SimilarityCAM(text, background=background, mode="softmax", temperature=2)
    assert_module(module, expected, features, state_keys=("text", "background"))
    assert not list(module.parameters())
    assert_module(
        SimilarityCAM(text), similarity_cam(features, text), features, state_keys=("text",)
    )
    text.zero_()
    assert module.text.any(), "the bank must not share memory with the caller's tensor"


@covers("similarity_cam", "dtypes")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(mode, dtype):
    features, text, background = problem(generator(4))
    cam = similarity_cam(features.to(dtype), text, background=background, mode=mode)
    assert cam.dtype == dtype
    assert_close(cam, similarity_cam(features, text, background=background, mode=mode))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = similarity_cam(features.to(dtype), text, background=background, mode=mode)
    assert mixed.dtype == dtype
    assert_close(mixed, cam, dtype=torch.bfloat16)


@covers("similarity_cam", "compile")
@pytest.mark.parametrize("mode", MODES)
def test_compile(mode):
    features, text, background = problem(generator(5))
    assert_compiles(
        lambda f, t, b: similarity_cam(f, t, background=b, mode=mode), features, text, background
    )


@covers("similarity_cam", "errors")
def test_errors():
    features, text, background = problem(generator(6))
    with pytest.raises(ValueError, match=r"features must have shape \(B, D, h, w\)"):
        similarity_cam(features[0], text)
    with pytest.raises(ValueError, match=r"text must have shape \(K, D\) with D=5, got \(3, 4\)"):
        similarity_cam(features, text[:, :4])
    with pytest.raises(ValueError, match=r"background must have shape \(M, D\) with D=5"):
        similarity_cam(features, text, background=background[:, :4])
    with pytest.raises(ValueError, match=r"mode must be one of 'cosine', .* got 'dot'"):
        similarity_cam(features, text, mode="dot")
    with pytest.raises(ValueError, match="temperature must be positive"):
        similarity_cam(features, text, temperature=0.0)
    with pytest.raises(ValueError, match="background must be given"):
        similarity_cam(features, text, mode="margin")
    with pytest.raises(ValueError, match="text must be on the device of features"):
        similarity_cam(features, text.to("meta"))
    with pytest.raises(TypeError, match="features must be a floating-point tensor"):
        similarity_cam(features.long(), text)
    with pytest.raises(TypeError, match="text must be a floating-point tensor"):
        similarity_cam(features, text.long())
    with pytest.raises(ValueError, match="background must be given"):
        SimilarityCAM(text, mode="margin")
    with pytest.raises(ValueError, match=r"text must have shape \(K, D\)"):
        SimilarityCAM(text[0])


@covers("similarity_cam", "degenerate")
@pytest.mark.parametrize("mode", MODES)
def test_degenerate(mode):
    features = torch.zeros(1, 4, 1, 1, requires_grad=True)
    text, background = torch.ones(1, 4), torch.zeros(1, 4)
    cam = similarity_cam(features, text, background=background, mode=mode)
    assert cam.item() == (0.5 if mode == "softmax" else 0.0)
    cam.sum().backward()
    assert torch.isfinite(features.grad).all()
    none = similarity_cam(features.detach()[:0], text, background=background, mode=mode)
    assert none.shape == (0, 1, 1, 1)
