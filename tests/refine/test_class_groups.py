import pytest
import torch
from contract import assert_compiles, assert_same, covers
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.dhr import groups_oracle
from strategies import generator, seeds, small

from wsss_blocks.refine import class_groups

modes = pytest.mark.parametrize("overlapping", [False, True])


def on_a_circle(*degrees):
    angle = torch.tensor([degrees], dtype=torch.float64) * torch.pi / 180
    return torch.stack([angle.cos(), angle.sin()], 2)


def everyone(centroids):
    return torch.ones(centroids.shape[:2], dtype=torch.bool)


def listed(groups):
    return [[torch.where(row)[0].tolist() for row in image if row.any()] for image in groups]


@covers("class_groups", "oracle", "degenerate")
@settings(max_examples=40)
@given(seeds, small, st.integers(1, 9), st.sampled_from([0.0, 0.5, 0.8, 1.0]), st.booleans())
def test_groups_are_a_search(seed, batch, classes, threshold, overlapping):
    g = generator(seed)
    centroids = torch.randn(batch, classes, 2, generator=g, dtype=torch.float64)
    centroids[0, 0] = 0
    present = torch.rand(batch, classes, generator=g) < 0.8
    call = {"threshold": threshold, "overlapping": overlapping}
    found = listed(class_groups(centroids, present, **call))
    for b in range(batch):
        there = torch.where(present[b])[0].tolist()
        expected = groups_oracle(centroids[b, present[b]].tolist(), **call)
        assert found[b] == [[there[i] for i in group] for group in expected]


@covers("class_groups", "oracle")
def test_official_rows_overlap_and_components_do_not():
    """Three alike: {0, 1, 2} and, officially, {1, 2} again (spec, B12)."""
    alike = on_a_circle(0, 10, 20, 120)
    assert listed(class_groups(alike, everyone(alike))) == [[[0, 1, 2]]]
    assert listed(class_groups(alike, everyone(alike), overlapping=True)) == [[[0, 1, 2], [1, 2]]]


@covers("class_groups", "properties")
@pytest.mark.parametrize("length", [2, 3, 5, 9, 33])
def test_ends_of_a_chain_are_in_one_component(length):
    """The longest path needs every squaring."""
    order = torch.randperm(length, generator=generator(length))
    chain = on_a_circle(*[5.0 * i for i in order.tolist()])
    groups = class_groups(chain, everyone(chain), threshold=0.995)
    assert listed(groups) == [[list(range(length))]]
    assert groups.sum() == length


@covers("class_groups", "properties")
def test_components_follow_a_permutation_and_lengths_do_not_count():
    g = generator(3)
    centroids = torch.randn(4, 6, 2, generator=g, dtype=torch.float64)
    present = torch.rand(4, 6, generator=g) < 0.8
    order = [4, 0, 5, 2, 1, 3]

    def together(groups):
        return groups.mT.float() @ groups.float()

    groups = class_groups(centroids, present)
    assert groups.sum(1).max() == 1  # nobody is in two
    moved = class_groups(centroids[:, order], present[:, order])
    assert_same(together(moved), together(groups)[:, order][:, :, order])
    lengths = torch.rand(4, 6, 1, generator=g, dtype=torch.float64) + 0.1
    assert_same(class_groups(lengths * centroids, present), groups)
    assert_same(class_groups(centroids[:1], present[:1]), groups[:1])


@covers("class_groups", "dtypes")
@modes
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_group_dtypes(overlapping, dtype):
    centroids = on_a_circle(0, 10, 20, 120, 135).to(dtype)
    groups = class_groups(centroids, everyone(centroids), overlapping=overlapping)
    assert groups.dtype == torch.bool
    expected = [[0, 1, 2], [1, 2], [3, 4]] if overlapping else [[0, 1, 2], [3, 4]]
    assert listed(groups) == [expected]
    with torch.autocast("cpu", torch.bfloat16):
        again = class_groups(centroids, everyone(centroids), overlapping=overlapping)
    assert_same(again, groups)


@covers("class_groups", "compile")
@modes
def test_groups_compile(overlapping):
    centroids = torch.randn(2, 5, 3, generator=generator(4))
    present = torch.rand(2, 5, generator=generator(5)) < 0.8
    assert_compiles(lambda c, p: class_groups(c, p, overlapping=overlapping), centroids, present)


@covers("class_groups", "errors")
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"centroids": torch.rand(2, 3)}, ValueError, r"centroids must have shape \(B, C, D\)"),
        ({"centroids": torch.ones(2, 3, 4).int()}, TypeError, "centroids must be a floating"),
        ({"centroids": torch.full((2, 3, 4), torch.nan)}, ValueError, "centroids must be finite"),
        ({"present": torch.ones(2, 4).bool()}, ValueError, r"present must have shape .* C=3"),
        ({"present": torch.ones(2, 3)}, TypeError, "present must be a bool tensor"),
        ({"present": torch.ones(2, 3, device="meta").bool()}, ValueError, "present must be on"),
        ({"threshold": 1.5}, ValueError, r"threshold must be in \[0, 1\], got 1.5"),
        ({"threshold": "high"}, TypeError, "threshold must be a number"),
    ],
)
def test_group_errors(change, error, match):
    call = {"centroids": torch.rand(2, 3, 4), "present": torch.ones(2, 3).bool()} | change
    with pytest.raises(error, match=match):
        class_groups(call.pop("centroids"), call.pop("present"), **call)


@covers("class_groups", "degenerate")
@modes
def test_nobody_is_in_a_group_of_one(overlapping):
    same = torch.ones(3, 4, 5)
    present = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()
    found = listed(class_groups(same, present, overlapping=overlapping))
    assert found == [[[0, 2, 3], *([[2, 3]] if overlapping else [])], [], []]
    one = class_groups(torch.ones(1, 1, 1), torch.ones(1, 1).bool(), overlapping=overlapping)
    assert not one.any()
    zero = class_groups(torch.zeros(1, 3, 2), torch.ones(1, 3).bool(), threshold=0.0)
    assert not zero.any()
