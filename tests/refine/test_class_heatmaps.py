import sys

import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_same, covers
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.dhr import class_heatmaps_oracle
from strategies import generator, seeds, sizes, small

from wsss_blocks.pooling import class_average_pool
from wsss_blocks.refine import class_heatmaps


def problem(seed=0, batch=2, classes=3, dim=4, size=(5, 6), dtype=torch.float64):
    g = generator(seed)
    features = torch.randn(batch, dim, *size, generator=g, dtype=torch.float64)
    centroids = torch.randn(batch, classes, dim, generator=g, dtype=torch.float64)
    return features.to(dtype), centroids.to(dtype)


@covers("class_heatmaps", "oracle", "degenerate")
@settings(max_examples=25)
@given(seeds, small, small, st.integers(1, 5), sizes(5), st.booleans(), st.booleans())
def test_heatmaps_are_the_loop(seed, batch, classes, dim, size, normalize, masked):
    features, centroids = problem(seed, batch, classes, dim, size)
    centroids[0, 0] = 0
    features[0, :, 0, 0] = 0
    valid = torch.rand(batch, *size, generator=generator(seed)) < 0.6 if masked else None
    out = class_heatmaps(features, centroids, normalize=normalize, valid=valid)
    assert_close(out, class_heatmaps_oracle(features, centroids, valid, normalize=normalize))


@covers("class_heatmaps", "properties")
def test_lengths_do_not_count_and_order_does_not_matter():
    features, centroids = problem(1)
    out = class_heatmaps(features, centroids)
    assert_close(out.amin((2, 3)), torch.zeros(2, 3))
    assert_close(out.amax((2, 3)), torch.ones(2, 3))
    lengths = 0.1 + torch.rand(2, 1, 5, 6, generator=generator(2), dtype=torch.float64)
    assert_close(class_heatmaps(7 * lengths * features, 3 * centroids), out)
    assert_close(class_heatmaps(features, centroids[:, [2, 0, 1]]), out[:, [2, 0, 1]])
    assert_close(class_heatmaps(features.flip(3), centroids), out.flip(3))
    valid = torch.rand(2, 5, 6, generator=generator(3)) < 0.7
    inside = class_heatmaps(features, centroids, valid=valid)
    odd = features.masked_fill(~valid[:, None], torch.nan)
    assert_same(class_heatmaps(odd, centroids, valid=valid), inside)


@covers("class_heatmaps", "properties")
def test_own_centroid_of_a_class_is_hot_where_the_class_is():
    mask = torch.zeros(1, 4, 4, dtype=torch.int64)
    mask[:, :2] = 1
    features = torch.stack([mask == 0, mask == 1], 1).double()
    pooled = class_average_pool(features, mask, num_classes=3)
    out = class_heatmaps(features, pooled.centroids)
    expected = torch.stack([mask == 0, mask == 1, torch.zeros_like(mask) > 0], 1)
    assert_close(out, expected.double())


@covers("class_heatmaps", "gradcheck")
@pytest.mark.parametrize("normalize", [False, True])
def test_heatmap_gradients(normalize):
    features, centroids = problem(4, size=(2, 3))
    valid = torch.ones(2, 2, 3, dtype=torch.bool)
    valid[0, 0, 1] = False
    assert_gradcheck(
        lambda f, c: class_heatmaps(f, c, normalize=normalize, valid=valid),
        features.requires_grad_(),
        centroids.requires_grad_(),
    )


@covers("class_heatmaps", "oracle", "gradcheck")
@pytest.mark.parametrize("dim", [1, 31, 35, 70])
def test_slabs_of_channels_make_no_difference(dim, monkeypatch):
    """Two channels at a time, and sums of sixteen times that; the last ones are short."""
    monkeypatch.setattr(sys.modules["wsss_blocks.refine.class_heatmaps"], "_SLAB", 12)
    features, centroids = problem(8, dim=dim, size=(2, 3))
    out = class_heatmaps(features, centroids, normalize=False)
    assert_close(out, class_heatmaps_oracle(features, centroids, None, normalize=False))
    narrow = class_heatmaps(features.bfloat16(), centroids, normalize=False)
    assert_close(narrow, out, dtype=torch.bfloat16)
    if dim == 35:
        assert_gradcheck(class_heatmaps, features.requires_grad_(), centroids.requires_grad_())


@covers("class_heatmaps", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_heatmap_dtypes(dtype, monkeypatch):
    features, centroids = problem(5, dtype=dtype)
    out = class_heatmaps(features, centroids)
    assert out.dtype == dtype
    expected = class_heatmaps_oracle(features.double(), centroids.double(), None, normalize=True)
    assert_close(out, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(class_heatmaps(features, centroids), out)
    assert class_heatmaps(features, centroids.double()).dtype == dtype
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # and without slabs
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(class_heatmaps(features, centroids), out)


@covers("class_heatmaps", "compile")
def test_heatmaps_compile():
    features, centroids = problem(6, dtype=torch.float32)
    valid = torch.rand(2, 5, 6, generator=generator(0)) < 0.7
    assert_compiles(lambda f, c, v: class_heatmaps(f, c, valid=v), features, centroids, valid)
    assert_compiles(lambda f, c: class_heatmaps(f, c, normalize=False), features, centroids)


@covers("class_heatmaps", "errors")
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"features": torch.rand(2, 4)}, ValueError, r"features must have shape \(B, D, h, w\)"),
        ({"features": torch.ones(2, 4, 5, 6).int()}, TypeError, "features must be a floating"),
        ({"features": torch.full((2, 4, 5, 6), torch.nan)}, ValueError, "features must be finite"),
        ({"centroids": torch.rand(2, 3, 5)}, ValueError, r"centroids must have shape .* D=4"),
        ({"centroids": torch.rand(1, 3, 4)}, ValueError, r"centroids must have shape .* B=2"),
        ({"centroids": torch.ones(2, 3, 4).int()}, TypeError, "centroids must be a floating"),
        ({"centroids": torch.full((2, 3, 4), torch.inf)}, ValueError, "centroids must be finite"),
        ({"centroids": torch.rand(2, 3, 4, device="meta")}, ValueError, "centroids must be on"),
        ({"valid": torch.ones(2, 6, 5).bool()}, ValueError, "valid must have shape"),
        ({"valid": torch.ones(2, 5, 6)}, TypeError, "valid must be a bool"),
        ({"valid": torch.ones(2, 5, 6, device="meta").bool()}, ValueError, "valid must be on"),
    ],
)
def test_heatmap_errors(change, error, match):
    call = {"features": torch.rand(2, 4, 5, 6), "centroids": torch.rand(2, 3, 4)} | change
    with pytest.raises(error, match=match):
        class_heatmaps(call.pop("features"), call.pop("centroids"), **call)


@covers("class_heatmaps", "degenerate")
@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_that_tell_no_cells_apart_are_zero(size, dtype):
    """Identical features make cosines that differ by rounding alone, absent classes none."""
    g = generator(7)
    features = torch.randn(2, 300, 1, 1, generator=g).expand(2, 300, *size).to(dtype).clone()
    features[1] *= torch.rand(1, *size, generator=g) + 0.1  # other lengths: more rounding
    centroids = torch.randn(2, 3, 300, generator=g).to(dtype)
    centroids[:, 1] = 0
    if dtype == torch.float32:
        assert_same(class_heatmaps(features, centroids), torch.zeros(2, 3, *size))
    out = class_heatmaps(features.requires_grad_(), centroids.requires_grad_())
    out.sum().backward()
    assert torch.isfinite(features.grad).all()
    assert torch.isfinite(centroids.grad).all()
    nowhere = torch.zeros(2, *size, dtype=torch.bool)
    none = class_heatmaps(features.detach(), centroids.detach(), valid=nowhere)
    assert_same(none, torch.zeros_like(none))
