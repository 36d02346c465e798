import math

import hypothesis.strategies as st
import pytest
import torch
from contract import assert_close, assert_compiles, assert_same
from hypothesis import given
from oracles import zero_shot as oracle
from strategies import generator, seeds, small

from wsss_blocks.segmenters import class_threshold, select_classes

sigmas = st.sampled_from([None, -0.5, 0.0, 0.5, 1.0, 2.0])


def problem(seed, batch=2, classes=12, dtype=torch.float64):
    return torch.randn(batch, classes, generator=generator(seed), dtype=dtype)


@given(
    seeds, small, st.integers(1, 14), st.integers(1, 12), sigmas, st.integers(1, 7), st.booleans()
)
def test_oracle(seed, batch, classes, top, sigma, most, scored):
    scores = problem(seed, batch, classes)
    background = 0 if scored else None
    found = select_classes(scores, top=top, sigma=sigma, most=most, background=background)
    for row, taken in zip(scores.tolist(), found, strict=True):
        expected = oracle.selected(row, top=top, sigma=sigma, most=most, background=background)
        assert taken.nonzero().flatten().tolist() == sorted(expected)
    if sigma is not None:
        limits = [oracle.threshold(row, top, sigma) for row in scores.tolist()]
        assert_close(class_threshold(scores, top=top, sigma=sigma), limits)


def test_the_papers_case():
    # Ranks count the background, its score counts in mean and deviation, and it is never taken.
    scores = torch.tensor([[0.29, 0.30, 0.28, 0.11, 0.10, 0.10, 0.10, 0.10, 0.10, 0.10, 0.05]])
    assert select_classes(scores, sigma=0.5).nonzero()[:, 1].tolist() == [1, 2]
    assert select_classes(scores, sigma=0.5, most=2).nonzero()[:, 1].tolist() == [1]
    assert select_classes(scores, sigma=0.5, background=None).nonzero()[:, 1].tolist() == [0, 1, 2]
    assert select_classes(scores, sigma=0.5, background=2).nonzero()[:, 1].tolist() == [0, 1]
    assert select_classes(scores, sigma=None).nonzero()[:, 1].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(("top", "least"), [(10, 4), (30, 14)])
def test_how_many_can_pass(top, least):
    """With mu + sigma over 10 scores at most 4 pass, over 30 at most 14: the cap of 5 is idle."""
    for high in range(1, top):
        scores = torch.cat([torch.ones(1, high), torch.zeros(1, top - high)], 1).double()
        number = int(select_classes(scores, top=top, most=top, background=None).sum())
        assert number == (high if high <= least else 0)


def test_short_lists_cannot_stand_out():
    for count in (2, 3, 10):
        scores = torch.zeros(1, count, dtype=torch.float64)
        scores[0, 0] = 1
        limit = (count - 1) / math.sqrt(count)
        for sigma, taken in ((limit - 1e-9, 1), (limit + 1e-9, 0)):
            found = select_classes(scores, sigma=sigma, background=None)
            assert int(found.sum()) == taken


@given(seeds)
def test_properties(seed):
    scores = problem(seed)
    before = scores.clone()
    taken = select_classes(scores, background=3)
    assert_same(scores, before)
    order = torch.randperm(12, generator=generator(seed + 1))
    place = int((order == 3).nonzero())
    assert_same(select_classes(scores[:, order], background=place), taken[:, order])
    assert_same(select_classes(2 * scores + 5, background=3), taken)
    assert_same(select_classes(scores[1:], background=3), taken[1:])
    lower = select_classes(scores, sigma=0.2, background=3)
    assert bool((taken <= lower).all())
    assert_close(class_threshold(2 * scores + 5), 2 * class_threshold(scores) + 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    scores = problem(0).to(dtype)
    assert_same(select_classes(scores), select_classes(scores.float()))
    assert class_threshold(scores).dtype == torch.float32
    assert_close(class_threshold(scores), class_threshold(scores.float()))


def test_compile():
    assert_compiles(lambda x: (select_classes(x), class_threshold(x)), problem(0))


def test_degenerate():
    one = torch.tensor([[-0.3]])
    assert_same(select_classes(one, background=None), torch.tensor([[True]]))
    assert_same(select_classes(one), torch.tensor([[False]]))
    assert_close(class_threshold(one), [-0.3])
    # 0.1 has no exact float: a mean that rounds up must not lose equal scores.
    for value in (0.1, 0.3, -7.7):
        equal = torch.full((1, 11), value)
        found = select_classes(equal, background=None).nonzero()[:, 1].tolist()
        assert found == [0, 1, 2, 3, 4]
    halves = torch.tensor([[1.0] * 5 + [0.0] * 5])
    assert not select_classes(halves, background=None).any()
    few = torch.tensor([[0.1, 0.9, 0.1, 0.1]])
    assert select_classes(few).nonzero().tolist() == [[0, 1]]
    assert select_classes(torch.zeros(0, 4)).shape == (0, 4)


def test_errors():
    scores = problem(0)
    with pytest.raises(ValueError, match=r"scores must have shape \(B, C\), got \(12,\)"):
        select_classes(scores[0])
    with pytest.raises(TypeError, match="scores must be a floating-point tensor"):
        class_threshold(scores.long())
    with pytest.raises(ValueError, match="scores must be finite"):
        select_classes(scores.masked_fill(scores > 0, float("nan")))
    for option in ("top", "most"):
        with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
            select_classes(scores, **{option: 0})
        with pytest.raises(TypeError, match=f"{option} must be an int"):
            select_classes(scores, **{option: 2.5})
    for sigma in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="sigma must be finite"):
            select_classes(scores, sigma=sigma)
    with pytest.raises(ValueError, match=r"background must be a column of scores \(C=12\), got 12"):
        select_classes(scores, background=12)
    with pytest.raises(ValueError, match="background must be at least 0, got -1"):
        select_classes(scores, background=-1)
