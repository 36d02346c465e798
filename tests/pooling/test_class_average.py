import hypothesis.strategies as st
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
from oracles import pooling as oracle
from strategies import generator, random_mask, seeds, sizes, small

from wsss_blocks.pooling import (
    ClassAveragePool,
    ClassCentroids,
    class_average_pool,
    patch_class_weights,
)


def problem(seed, image=(6, 7), grid=(3, 4), batch=2, dim=3, classes=4, dtype=torch.float64):
    g = generator(seed)
    features = torch.randn(batch, dim, *grid, generator=g, dtype=dtype)
    mask = random_mask((batch, *image), classes, g)
    valid = torch.rand(batch, *grid, generator=g) < 0.8
    return features, mask, valid


@covers("class_average_pool", "oracle")
@given(
    seeds,
    sizes(5),
    sizes(4),
    small,
    small,
    st.integers(1, 3),
    st.sampled_from(["area", "majority", "nearest"]),
    st.booleans(),
)
def test_oracle(seed, image, grid, batch, dim, classes, assign, masked):
    features, mask, valid = problem(seed, image, grid, batch, dim, classes)
    valid = valid if masked else None
    pooled = class_average_pool(features, mask, num_classes=classes, assign=assign, valid=valid)
    kept = None if valid is None else valid.tolist()
    weights = oracle.patch_class_weights(mask.tolist(), grid, classes, assign, kept)
    centroids, totals = oracle.class_average_pool(features.tolist(), weights)
    assert_close(pooled.centroids, torch.tensor(centroids, dtype=torch.float64))
    assert_close(pooled.weights, torch.tensor(totals, dtype=torch.float64))


@covers("class_average_pool", "oracle")
@given(seeds, sizes(4), small)
def test_oracle_of_given_weights(seed, grid, batch):
    features, _, valid = problem(seed, grid=grid, batch=batch)
    weights = torch.rand(batch, 4, *grid, generator=generator(seed + 1), dtype=torch.float64)
    weights[:, 1] = 0
    pooled = class_average_pool(features, weights, num_classes=4, valid=valid)
    kept = (weights * valid[:, None]).tolist()
    centroids, totals = oracle.class_average_pool(features.tolist(), kept)
    assert_close(pooled.centroids, torch.tensor(centroids, dtype=torch.float64))
    assert_close(pooled.weights, torch.tensor(totals, dtype=torch.float64))


@covers("class_average_pool", "degenerate")
def test_anything_may_stand_where_features_are_not_valid():
    features, mask, valid = problem(10)
    expected = class_average_pool(features, mask, num_classes=4, valid=valid)
    odd = features.masked_fill(~valid.unsqueeze(1), torch.nan)
    assert_same(class_average_pool(odd, mask, num_classes=4, valid=valid), expected)


@covers("class_average_pool", "oracle", "gradcheck")
@pytest.mark.parametrize("dim", [1, 4, 7])
def test_slabs_of_channels_make_no_difference(dim, monkeypatch):
    monkeypatch.setattr("wsss_blocks.pooling.class_average._SLAB", 24)
    features, mask, _ = problem(9, dim=dim)
    pooled = class_average_pool(features, mask, num_classes=4)
    weights = oracle.patch_class_weights(mask.tolist(), (3, 4), 4, "area", None)
    centroids, _ = oracle.class_average_pool(features.tolist(), weights)
    assert_close(pooled.centroids, torch.tensor(centroids, dtype=torch.float64))
    assert_gradcheck(
        lambda f: class_average_pool(f, mask, num_classes=4).centroids, features.requires_grad_()
    )


@covers("class_average_pool", "properties")
def test_weights_may_be_shared():
    features, mask, valid = problem(0, dtype=torch.float32)
    for assign in ("area", "majority", "nearest"):
        weights = patch_class_weights(mask, size=(3, 4), num_classes=4, assign=assign, valid=valid)
        direct = class_average_pool(features, mask, num_classes=4, assign=assign, valid=valid)
        assert_same(class_average_pool(features, weights, num_classes=4), direct)


@covers("class_average_pool", "properties")
def test_symmetries():
    features, mask, _ = problem(1)
    pooled = class_average_pool(features, mask, num_classes=4)
    flipped = class_average_pool(features.flip(2, 3), mask.flip(1, 2), num_classes=4)
    assert_close(flipped.centroids, pooled.centroids)
    batch = class_average_pool(features.flip(0), mask.flip(0), num_classes=4)
    assert_same(batch, [x.flip(0) for x in pooled])
    present = (pooled.weights > 0)[..., None]
    shifted = class_average_pool(3 * features + 2, mask, num_classes=4)
    assert_close(shifted.centroids, (3 * pooled.centroids + 2) * present)
    flat = features.flatten(2)
    assert bool((pooled.centroids <= flat.amax(2)[:, None]).logical_or(~present).all())
    weights = torch.rand(2, 4, 3, 4, dtype=torch.float64, generator=generator(5))
    assert_close(
        class_average_pool(features, 7 * weights, num_classes=4).centroids,
        class_average_pool(features, weights, num_classes=4).centroids,
    )


@covers("class_average_pool", "properties")
def test_area_keeps_the_class_that_majority_drops():
    mask = torch.zeros(1, 4, 4, dtype=torch.int64)
    mask[0, 0, 0] = 1
    features = torch.tensor([[[[5.0, 1.0], [1.0, 1.0]]]])
    area = class_average_pool(features, mask, num_classes=2)
    majority = class_average_pool(features, mask, num_classes=2, assign="majority")
    assert area.centroids[0, 1, 0] == 5
    assert area.weights.tolist() == [[3.75, 0.25]]
    assert majority.weights.tolist() == [[4, 0]]


@covers("class_average_pool", "gradcheck")
def test_gradcheck():
    features, mask, valid = problem(2)
    features.requires_grad_()
    for assign in ("area", "majority"):
        assert_gradcheck(
            lambda f, a=assign: (
                class_average_pool(f, mask, num_classes=4, assign=a, valid=valid).centroids
            ),
            features,
        )
    weights = torch.rand(2, 4, 3, 4, dtype=torch.float64, generator=generator(3)) + 0.1
    assert_gradcheck(
        lambda f, w: class_average_pool(f, w, num_classes=4, valid=valid),
        features,
        weights.requires_grad_(),
    )


@covers("class_average_pool", "module")
def test_module():
    features, mask, valid = problem(4)
    mask[mask == 255] = 3
    expected = class_average_pool(
        features, mask, num_classes=4, assign="majority", valid=valid, ignore_index=3
    )
    assert isinstance(expected, ClassCentroids)
    module = ClassAveragePool(num_classes=4, assign="majority", ignore_index=3)
    assert_module(module, expected, features, mask, valid=valid)


@covers("class_average_pool", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    features, mask, valid = problem(5, image=(40, 30))
    expected = class_average_pool(features, mask, num_classes=4, valid=valid)
    pooled = class_average_pool(features.to(dtype), mask, num_classes=4, valid=valid)
    assert pooled.centroids.dtype == dtype
    assert pooled.weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(pooled.centroids, expected.centroids)
    assert_close(pooled.weights, expected.weights)
    weights = patch_class_weights(mask, size=(3, 4), num_classes=4).to(dtype)
    given = class_average_pool(features.to(dtype), weights, num_classes=4, valid=valid)
    assert given.centroids.dtype == dtype
    # Fractions come in float32 at best.
    rounded = torch.float32 if dtype == torch.float64 else dtype
    assert_close(given.centroids, expected.centroids, dtype=rounded)


@covers("class_average_pool", "dtypes")
def test_autocast_keeps_float32():
    features, mask, _ = problem(6, dtype=torch.float32)
    expected = class_average_pool(features, mask, num_classes=4)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(class_average_pool(features, mask, num_classes=4), expected)


@covers("class_average_pool", "compile")
def test_compile():
    features, mask, valid = problem(7, dtype=torch.float32)
    weights = patch_class_weights(mask, size=(3, 4), num_classes=4)
    module = ClassAveragePool(num_classes=4)
    assert_compiles(lambda f, m, v: module(f, m, valid=v), features, mask, valid)
    assert_compiles(module, features, weights)


@covers("class_average_pool", "errors")
def test_errors():
    features, mask, valid = problem(8)
    with pytest.raises(ValueError, match=r"features must have shape \(B, D, h, w\)"):
        class_average_pool(features[0], mask, num_classes=4)
    with pytest.raises(TypeError, match="features must be a floating-point tensor"):
        class_average_pool(features.long(), mask, num_classes=4)
    with pytest.raises(ValueError, match=r"mask must have shape \(B, H, W\) with B=2, got \(1,"):
        class_average_pool(features, mask[:1], num_classes=4)
    with pytest.raises(ValueError, match=r"mask must have shape \(B, C, h, w\) with B=2, C=4"):
        class_average_pool(features, features, num_classes=4)
    with pytest.raises(ValueError, match="mask must be >= 0"):
        class_average_pool(features, -torch.ones(2, 4, 3, 4), num_classes=4)
    with pytest.raises(TypeError, match="mask must be an integer tensor"):
        class_average_pool(features, mask > 0, num_classes=4)
    with pytest.raises(ValueError, match=r"mask must hold ids in \[0, 2\)"):
        class_average_pool(features, mask, num_classes=2)
    with pytest.raises(ValueError, match="mask must be on the device of features"):
        class_average_pool(features, mask.to("meta"), num_classes=4)
    with pytest.raises(ValueError, match=r"valid must have shape \(B, h, w\) with B=2, h=3, w=4"):
        class_average_pool(features, mask, num_classes=4, valid=valid[:, 1:])
    with pytest.raises(TypeError, match="valid must be a bool tensor"):
        class_average_pool(features, mask, num_classes=4, valid=valid.float())
    with pytest.raises(ValueError, match="assign must be one of"):
        class_average_pool(features, mask, num_classes=4, assign="mode")
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        ClassAveragePool(num_classes=0)


@covers("class_average_pool", "degenerate")
def test_absent_classes_are_zero_without_gradient():
    features, mask, _ = problem(9)
    features.requires_grad_()
    weights = torch.zeros(2, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    for labels in (torch.full_like(mask, 255), weights):
        pooled = class_average_pool(features, labels, num_classes=4)
        assert_same(pooled.weights, torch.zeros(2, 4, dtype=torch.float64))
        assert_same(pooled.centroids, torch.zeros(2, 4, 3, dtype=torch.float64))
        pooled.centroids.sum().backward()
        assert_same(features.grad, torch.zeros_like(features))
    assert_same(weights.grad, torch.zeros_like(weights))


@covers("class_average_pool", "degenerate")
def test_smallest_problems():
    one = torch.full((1, 1, 1, 1), 2.0)
    pooled = class_average_pool(one, torch.zeros(1, 1, 1, dtype=torch.int64), num_classes=1)
    assert (pooled.centroids.item(), pooled.weights.item()) == (2.0, 1.0)
    none = class_average_pool(one[:0], torch.zeros(0, 3, 3, dtype=torch.int64), num_classes=2)
    assert none.centroids.shape == (0, 2, 1)
    tiny = class_average_pool(one, torch.full((1, 1, 1, 1), 1e-30), num_classes=1)
    assert_close(tiny.centroids, [[[2.0]]])
