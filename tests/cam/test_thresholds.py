import sys

import pytest
import torch
from contract import assert_close, assert_same, covers
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.thresholds import crossing_oracle, otsu_oracle, strongest_oracle
from strategies import cam_problems, generator, seeds

from wsss_blocks.cam import (
    cam_to_label,
    mixture_threshold,
    otsu_threshold,
    strongest_scores,
)


def heaps(n=4000, share=0.75, means=(0.2, 0.8), deviations=(0.08, 0.1), seed=0):
    """Draw scores of two normal distributions, mixed up."""
    g = generator(seed)
    low = torch.randn(int(n * share), generator=g, dtype=torch.float64)
    high = torch.randn(n - int(n * share), generator=g, dtype=torch.float64)
    scores = torch.cat([low * deviations[0] + means[0], high * deviations[1] + means[1]])
    return scores[torch.randperm(n, generator=g)]


@covers("strongest_scores", "oracle")
@settings(max_examples=25)
@given(cam_problems(), st.booleans(), st.booleans())
def test_scores_are_the_loop(problem, relu, minmax):
    options = {"relu": relu, "normalize": "minmax" if minmax else None}
    found = strongest_scores(problem.cam, problem.labels, **options)
    lists = problem.cam.tolist(), problem.labels.tolist()
    expected = strongest_oracle(*lists, relu=relu, minmax=minmax)
    assert_close(found, torch.tensor(expected, dtype=torch.float64))


@covers("strongest_scores", "properties")
@settings(max_examples=15)
@given(cam_problems(), st.sampled_from([0.1, 0.35, 0.8]), st.sampled_from([(5, 4), (11, 9)]))
def test_scores_are_what_cam_to_label_compares(problem, threshold, size):
    label = cam_to_label(problem.cam, problem.labels, size=size, threshold=threshold)
    scores = strongest_scores(problem.cam, problem.labels, size=size)
    some = problem.labels.any(1)
    assert_same(scores > threshold, (label[some] > 0).flatten())
    first = strongest_scores(problem.cam[:1], problem.labels[:1], size=size)
    rest = strongest_scores(problem.cam[1:], problem.labels[1:], size=size)
    assert_same(torch.cat([first, rest]), scores)
    flipped = strongest_scores(problem.cam.flip(1), problem.labels.flip(1), size=size)
    assert_same(flipped, scores)


@covers("strongest_scores", "dtypes")
def test_scores_are_at_least_float32():
    cam = torch.randn(2, 3, 4, 5, generator=generator(0))
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    expected = strongest_scores(cam.double(), labels)
    assert expected.dtype == torch.float64
    for dtype in (torch.float32, torch.bfloat16):
        found = strongest_scores(cam.to(dtype), labels.to(dtype))
        assert found.dtype == torch.float32
        assert_close(found, expected, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(strongest_scores(cam, labels), expected)


@covers("strongest_scores", "errors")
def test_scores_errors():
    cam, labels = torch.rand(2, 3, 4, 4), torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"cam must have shape \(B, K, h, w\), got \(3, 4, 4\)"):
        strongest_scores(cam[0], labels)
    with pytest.raises(TypeError, match="cam must be"):
        strongest_scores(cam.long(), labels)
    with pytest.raises(ValueError, match="cam must be finite"):
        strongest_scores(cam.log() * 0 / 0, labels)
    with pytest.raises(ValueError, match=r"labels must have shape \(B, K\) with B=2, K=3"):
        strongest_scores(cam, labels[:1])
    with pytest.raises(ValueError, match="size must be"):
        strongest_scores(cam, labels, size=(0, 3))
    with pytest.raises(ValueError, match="normalize must be one of 'minmax', got 'max'"):
        strongest_scores(cam, labels, normalize="max")


@covers("strongest_scores", "degenerate")
def test_scores_of_little():
    assert strongest_scores(torch.rand(2, 3, 4, 4), torch.zeros(2, 3)).shape == (0,)
    assert strongest_scores(torch.rand(0, 3, 4, 4), torch.zeros(0, 3)).shape == (0,)
    constant = strongest_scores(torch.full((1, 1, 1, 1), 3.0), torch.ones(1, 1))
    assert_same(constant, torch.zeros(1))
    below = strongest_scores(
        -torch.ones(1, 2, 1, 2), torch.tensor([[1, 0]]), relu=False, normalize=None
    )
    assert_same(below, -torch.ones(2))


@covers("otsu_threshold", "oracle")
@settings(max_examples=25)
@given(seeds, st.integers(1, 40), st.integers(2, 30))
def test_otsu_is_the_loop(seed, n, bins):
    scores = torch.rand(n, generator=generator(seed), dtype=torch.float64)
    found = otsu_threshold(scores, bins=bins)
    assert found == pytest.approx(otsu_oracle(scores.tolist(), bins), abs=1e-9)


def both(scores):
    return otsu_threshold(scores), mixture_threshold(scores)


@covers("otsu_threshold", "properties")
@covers("mixture_threshold", "properties")
def test_thresholds_part_two_heaps_and_move_with_the_scores():
    scores = heaps()
    for fit in (otsu_threshold, mixture_threshold):
        found = fit(scores)
        assert 0.35 < found < 0.6
        assert ((scores > found).double().mean() - 0.25).abs() < 0.01
        assert fit(scores.flip(0)) == found
        assert fit(3 * scores - 1) == pytest.approx(3 * found - 1, abs=0.01)
        assert fit(scores.repeat(2)) == pytest.approx(found, abs=0.01)
    # The mixture knows of weights: it expects few scores of a small heap.
    rare = heaps(share=0.95, deviations=(0.1, 0.1))
    assert mixture_threshold(rare) > 0.5 + 0.01


@covers("mixture_threshold", "oracle")
@pytest.mark.parametrize("share", [0.5, 0.75, 0.9])
def test_mixture_finds_the_crossing_of_the_densities(share):
    deviations = (0.08, 0.12)
    scores = heaps(20_000, share, deviations=deviations)
    expected = crossing_oracle((share, 1 - share), (0.2, 0.8), deviations)
    assert mixture_threshold(scores) == pytest.approx(expected, abs=0.02)
    assert mixture_threshold(scores, max_scores=2000) == pytest.approx(expected, abs=0.03)


@covers("mixture_threshold", "oracle")
def test_mixture_is_where_the_fitted_densities_cross():
    sklearn = pytest.importorskip("sklearn.mixture")
    scores = heaps(500)
    fit = sklearn.GaussianMixture(2, random_state=0).fit(scores.sort().values[:, None].numpy())
    order = fit.means_[:, 0].argsort()
    deviations = fit.covariances_[order, 0, 0] ** 0.5
    expected = crossing_oracle(fit.weights_[order], fit.means_[order, 0], deviations)
    assert mixture_threshold(scores) == pytest.approx(expected, abs=5e-3)


@covers("mixture_threshold", "properties")
def test_mixture_leaves_out_what_a_relu_made_zero():
    scores = heaps()[heaps() > 0.02]
    expected = mixture_threshold(scores)
    found = mixture_threshold(torch.cat([scores, scores.new_zeros(9000)]))
    assert found == pytest.approx(expected, abs=0.005)


@covers("otsu_threshold", "dtypes")
@covers("mixture_threshold", "dtypes")
def test_thresholds_are_numbers_whatever_the_dtype():
    expected = both(heaps(400))
    for dtype, off in ((torch.float32, 1e-4), (torch.bfloat16, 0.01)):
        found = both(heaps(400).to(dtype))
        assert all(type(x) is float for x in found)
        assert found == pytest.approx(expected, abs=off)


@covers("otsu_threshold", "errors")
@covers("mixture_threshold", "errors")
def test_threshold_errors(monkeypatch):
    scores = torch.rand(9)
    for fit in (otsu_threshold, mixture_threshold):
        with pytest.raises(ValueError, match=r"scores must have shape \(n,\)|\(n\)"):
            fit(scores[None])
        with pytest.raises(ValueError, match="scores must be finite"):
            fit(scores / 0)
        with pytest.raises(TypeError, match="scores must be"):
            fit(scores.long())
    with pytest.raises(ValueError, match="bins must be at least 2, got 1"):
        otsu_threshold(scores, bins=1)
    with pytest.raises(TypeError, match=r"bins must be an int, got 2\.5"):
        otsu_threshold(scores, bins=2.5)
    with pytest.raises(ValueError, match="max_scores must be at least 2, got 1"):
        mixture_threshold(scores, max_scores=1)
    with pytest.raises(TypeError, match="max_scores must be an int, got '9'"):
        mixture_threshold(scores, max_scores="9")
    monkeypatch.setitem(sys.modules, "sklearn.mixture", None)
    with pytest.raises(ImportError, match="mixture_threshold needs sklearn"):
        mixture_threshold(scores)


@covers("otsu_threshold", "degenerate")
@covers("mixture_threshold", "degenerate")
@pytest.mark.filterwarnings("error")
def test_thresholds_of_little():
    for fit in (otsu_threshold, mixture_threshold):
        assert fit(torch.zeros(0)) == 0.5
        assert fit(torch.tensor([0.25])) == 0.25
        assert fit(torch.full((7,), 0.25)) == 0.25
        assert 0.2 <= fit(torch.tensor([0.2, 0.6])) <= 0.6
        assert 0 <= fit(torch.tensor([0.0] * 50 + [1.0])) <= 1
        assert fit(torch.zeros(3, dtype=torch.float64)) == 0
