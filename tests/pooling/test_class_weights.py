import hypothesis.strategies as st
import pytest
import torch
from contract import assert_compiles, assert_module, assert_same, covers
from hypothesis import given
from oracles import pooling as oracle
from strategies import generator, random_mask, seeds, sizes

from wsss_blocks.pooling import PatchClassWeights, patch_class_weights

ASSIGN = ("area", "majority", "nearest")


def problem(seed, image, grid, batch=2, classes=3):
    g = generator(seed)
    mask = random_mask((batch, *image), classes, g)
    valid = torch.rand(batch, *grid, generator=g) < 0.8
    return mask, valid


@covers("patch_class_weights", "oracle")
@given(
    seeds,
    sizes(5),
    sizes(5),
    st.integers(1, 2),
    st.integers(1, 4),
    st.sampled_from(ASSIGN),
    st.booleans(),
)
def test_oracle(seed, image, grid, batch, classes, assign, masked):
    mask, valid = problem(seed, image, grid, batch, classes)
    valid = valid if masked else None
    actual = patch_class_weights(mask, size=grid, num_classes=classes, assign=assign, valid=valid)
    kept = None if valid is None else valid.tolist()
    expected = oracle.patch_class_weights(mask.tolist(), grid, classes, assign, kept)
    expected = torch.tensor(
        [[[[float(v) for v in row] for row in cls] for cls in image] for image in expected]
    )
    assert actual.shape == (batch, classes, *grid)
    torch.testing.assert_close(actual, expected, rtol=2e-7, atol=0)


@covers("patch_class_weights", "oracle")
def test_known_values():
    mask = torch.tensor([[[0, 0, 1], [0, 255, 1]]])
    area = patch_class_weights(mask, size=(1, 2), num_classes=2)
    torch.testing.assert_close(area[0, :, 0], torch.tensor([[5 / 6, 1 / 6], [0, 2 / 3]]))
    majority = patch_class_weights(mask, size=(1, 2), num_classes=2, assign="majority")
    assert majority[0, :, 0].tolist() == [[1, 0], [0, 1]]
    # The centre of a 2 x 2 window is the corner of its lower right pixel.
    corner = patch_class_weights(
        torch.tensor([[[0, 0], [0, 1]]]), size=(1, 1), num_classes=2, assign="nearest"
    )
    assert corner.flatten().tolist() == [0, 1]


@covers("patch_class_weights", "properties")
@given(seeds, sizes(9), sizes(9))
def test_fractions_conserve_area(seed, image, grid):
    mask, _ = problem(seed, image, grid)
    weights = patch_class_weights(mask, size=grid, num_classes=3)
    per_cell = image[0] * image[1] / (grid[0] * grid[1])
    for c in range(3):
        torch.testing.assert_close(
            weights[:, c].sum((1, 2)) * per_cell, (mask == c).sum((1, 2)).float()
        )
    whole = patch_class_weights(mask.clamp_max(2), size=grid, num_classes=3)
    torch.testing.assert_close(whole.sum(1), torch.ones(2, *grid))


@covers("patch_class_weights", "properties")
@pytest.mark.parametrize("assign", ASSIGN)
def test_symmetries(assign):
    mask, _ = problem(3, (7, 10), (4, 3), batch=3)

    def pool(x, size=(4, 3), classes=3):
        return patch_class_weights(x, size=size, num_classes=classes, assign=assign)

    weights = pool(mask)
    assert_same(pool(mask.flip(0)), weights.flip(0))
    assert_same(pool(mask.transpose(1, 2), size=(3, 4)), weights.transpose(2, 3))
    assert_same(pool(mask.to(torch.uint8)), weights)
    assert_same(pool(mask, classes=5)[:, :3], weights)
    if assign != "nearest":  # an even window has its centre on a pixel border
        assert_same(pool(mask.flip(2)), weights.flip(3))
    if assign != "majority":  # ties go to the lowest id
        order = torch.tensor([2, 0, 1])
        renamed = torch.where(mask == 255, 255, order[mask.clamp_max(2)])
        assert_same(pool(renamed)[:, order], weights)


@covers("patch_class_weights", "properties")
def test_same_size_and_refinement_are_exact():
    mask, _ = problem(0, (5, 6), (5, 6))
    one_hot = torch.stack([mask == c for c in range(3)], 1).float()
    for assign in ASSIGN:
        same = patch_class_weights(mask, size=(5, 6), num_classes=3, assign=assign)
        finer = patch_class_weights(mask, size=(15, 12), num_classes=3, assign=assign)
        assert_same(same, one_hot)
        assert_same(finer, one_hot.repeat_interleave(3, 2).repeat_interleave(2, 3))


@covers("patch_class_weights", "module")
@pytest.mark.parametrize("assign", ASSIGN)
def test_module(assign):
    mask, valid = problem(1, (7, 9), (3, 4))
    expected = patch_class_weights(mask, size=(3, 4), num_classes=3, assign=assign, valid=valid)
    module = PatchClassWeights(num_classes=3, assign=assign)
    assert_module(module, expected, mask, size=(3, 4), valid=valid)


@covers("patch_class_weights", "dtypes")
def test_dtypes():
    mask, valid = problem(2, (37, 41), (5, 4))
    mask[mask == 255] = 100
    expected = patch_class_weights(mask, size=(5, 4), num_classes=3, valid=valid, ignore_index=100)
    assert expected.dtype == torch.float32
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        actual = patch_class_weights(
            mask.to(dtype), size=(5, 4), num_classes=3, valid=valid, ignore_index=100
        )
        assert_same(actual, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(
            patch_class_weights(mask, size=(5, 4), num_classes=3, valid=valid, ignore_index=100),
            expected,
        )


@covers("patch_class_weights", "compile")
@pytest.mark.parametrize("assign", ASSIGN)
def test_compile(assign):
    mask, valid = problem(4, (9, 8), (3, 4))
    module = PatchClassWeights(num_classes=3, assign=assign)
    assert_compiles(lambda m, v: module(m, size=(3, 4), valid=v), mask, valid)


@covers("patch_class_weights", "errors")
def test_errors():
    mask = torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"mask must have shape \(B, H, W\), got \(4, 4\)"):
        patch_class_weights(mask[0], size=(2, 2), num_classes=2)
    with pytest.raises(TypeError, match="mask must be an integer tensor"):
        patch_class_weights(mask.float(), size=(2, 2), num_classes=2)
    with pytest.raises(ValueError, match=r"mask must hold ids in \[0, 2\)"):
        patch_class_weights(mask + 2, size=(2, 2), num_classes=2)
    with pytest.raises(ValueError, match="size must be two positive sides"):
        patch_class_weights(mask, size=(2, 0), num_classes=2)
    with pytest.raises(ValueError, match=r"valid must have shape \(B, h, w\) with B=1, h=2, w=3"):
        patch_class_weights(mask, size=(2, 3), num_classes=2, valid=mask == 0)
    with pytest.raises(TypeError, match="valid must be a bool tensor"):
        patch_class_weights(mask, size=(4, 4), num_classes=2, valid=mask)
    elsewhere = torch.ones(1, 4, 4, dtype=torch.bool, device="meta")
    with pytest.raises(ValueError, match="valid must be on the device of mask"):
        patch_class_weights(mask, size=(4, 4), num_classes=2, valid=elsewhere)
    with pytest.raises(ValueError, match="assign must be one of"):
        patch_class_weights(mask, size=(2, 2), num_classes=2, assign="mean")
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        PatchClassWeights(num_classes=0)
    with pytest.raises(ValueError, match="assign must be one of"):
        PatchClassWeights(num_classes=2, assign="mean")


@covers("patch_class_weights", "degenerate")
@pytest.mark.parametrize("assign", ASSIGN)
def test_degenerate(assign):
    ignored = torch.full((2, 5, 4), 255)
    empty = patch_class_weights(ignored, size=(2, 3), num_classes=3, assign=assign)
    assert_same(empty, torch.zeros(2, 3, 2, 3))
    one = patch_class_weights(ignored * 0, size=(1, 1), num_classes=1, assign=assign)
    assert_same(one, torch.ones(2, 1, 1, 1))
    pixel = patch_class_weights(ignored[:, :1, :1] * 0, size=(3, 2), num_classes=2, assign=assign)
    assert_same(pixel[:, 0], torch.ones(2, 3, 2))
    none = patch_class_weights(ignored[:0], size=(2, 3), num_classes=3, assign=assign)
    assert none.shape == (0, 3, 2, 3)
    nothing = torch.zeros(2, 2, 3, dtype=torch.bool)
    out = patch_class_weights(ignored * 0, size=(2, 3), num_classes=3, assign=assign, valid=nothing)
    assert_same(out, torch.zeros(2, 3, 2, 3))


@pytest.mark.parametrize("assign", ASSIGN)
@pytest.mark.parametrize("ignored", [0, 1, 2, 200])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("grid", [(3, 2), (4, 5)])
def test_any_id_may_be_the_ignored_one(assign, ignored, dtype, grid):
    mask, _ = problem(12, (6, 4), grid)
    call = {"size": grid, "num_classes": 3, "assign": assign}
    expected = patch_class_weights(mask.where(mask != ignored, 255), **call)
    mask = mask.where(mask != 255, ignored).to(dtype)
    assert_same(patch_class_weights(mask, ignore_index=ignored, **call), expected)


def test_ignored_pixels_never_outvote_a_class():
    mask = torch.tensor([[[255, 255, 255, 2]]])
    for assign, expected in (("area", 0.25), ("majority", 1.0)):
        weights = patch_class_weights(mask, size=(1, 1), num_classes=3, assign=assign)
        assert weights.flatten().tolist() == [0, 0, expected]


def test_ties_are_exact_on_grids_that_do_not_divide():
    # 0.1 + 0.2 style sums in floating point would let the higher id win some of these.
    for width in range(2, 40, 2):
        mask = torch.tensor([1, 0] * (width // 2)).view(1, 1, width)
        weights = patch_class_weights(mask, size=(3, 1), num_classes=2, assign="majority")
        assert_same(weights[:, 0], torch.ones(1, 3, 1))


def test_ids_out_of_range_are_ignored_where_values_are_not_checked(monkeypatch):
    monkeypatch.setattr("wsss_blocks._validate.values_are_checked", lambda x: False)
    mask = torch.tensor([[[0, 7, -3, 1]]])
    for assign in ASSIGN:
        weights = patch_class_weights(mask, size=(1, 4), num_classes=2, assign=assign)
        assert weights[0, :, 0].tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
