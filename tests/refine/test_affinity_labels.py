import pytest
import torch
from contract import assert_compiles, assert_same, covers
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.affinity import (
    affinity_labels_oracle,
    affinity_matrix_labels_oracle,
    half_disc_oracle,
)
from strategies import generator, random_mask, seeds, sizes, small

from wsss_blocks.refine import NeighbourAffinity, affinity_labels, affinity_matrix_labels

INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


def masks(seed=0, batch=2, size=(5, 4), classes=3):
    return random_mask((batch, *size), classes, generator(seed))


@covers("affinity_labels", "oracle")
@settings(max_examples=12)
@given(seeds, small, sizes(6), st.integers(2, 5), st.sampled_from([255, 1]))
def test_labels_are_the_loop(seed, batch, size, radius, ignore_index):
    mask = masks(seed, batch, size)
    labels = affinity_labels(mask, radius=radius, ignore_index=ignore_index)
    assert list(labels.offsets) == half_disc_oracle(radius)
    assert_same(labels[:3], affinity_labels_oracle(mask, radius, ignore_index))


@covers("affinity_matrix_labels", "oracle")
@settings(max_examples=12)
@given(seeds, small, sizes(4), st.sampled_from([None, 1, 2, 8]), st.sampled_from([255, 1]))
def test_matrix_labels_are_the_loop(seed, batch, size, radius, ignore_index):
    mask = masks(seed, batch, size)
    out = affinity_matrix_labels(mask, radius=radius, ignore_index=ignore_index)
    assert_same(out, affinity_matrix_labels_oracle(mask, radius, ignore_index))


@covers("affinity_labels", "properties")
@covers("affinity_matrix_labels", "properties")
def test_both_forms_agree():
    mask = masks(1, size=(6, 7))
    labels = affinity_labels(mask, radius=4)
    assert sum(kind.int() for kind in labels[:3]).max() == 1
    kinds = [
        NeighbourAffinity(kind.float(), labels.offsets).to_dense() - torch.eye(42)
        for kind in labels[:3]
    ]
    matrix = affinity_matrix_labels(mask, radius=3)
    assert_same(matrix, matrix.mT)
    near = sum(kinds) > 0
    assert near.any()
    assert_same(matrix[near] == 1, (kinds[0] + kinds[1])[near] > 0)
    assert (matrix[near] != 255).all()
    known = (mask != 255).flatten(1)
    whole = affinity_matrix_labels(mask)
    assert ((whole != 255).sum((1, 2)) == known.sum(1) * (known.sum(1) - 1)).all()


@covers("affinity_labels", "properties")
@covers("affinity_matrix_labels", "properties")
def test_only_equality_and_background_matter():
    mask = masks(2, classes=4)
    renamed = torch.tensor([0, 7, 2, 1])[mask.where(mask != 255, 0)].where(mask != 255, 255)
    assert_same(affinity_labels(renamed)[:3], affinity_labels(mask)[:3])
    assert_same(affinity_matrix_labels(renamed), affinity_matrix_labels(mask))
    turned = affinity_labels(mask.flip(-1))
    at = {offset: r for r, offset in enumerate(turned.offsets)}
    across = [at[(dy, -dx)] for dy, dx in turned.offsets if dy]
    down = [at[offset] for offset in turned.offsets if offset[0]]
    for kind, other in zip(turned[:3], affinity_labels(mask)[:3], strict=True):
        assert_same(kind[:, across], other[:, down].flip(-1))


@covers("affinity_labels", "dtypes")
@covers("affinity_matrix_labels", "dtypes")
@pytest.mark.parametrize("dtype", INTEGERS)
def test_any_integers(dtype):
    mask = masks(3)
    ignored = 255 if dtype != torch.int8 else 100
    typed = mask.where(mask != 255, ignored).to(dtype)
    labels = affinity_labels(typed, ignore_index=ignored)
    assert all(kind.dtype == torch.bool for kind in labels[:3])
    assert_same(labels[:3], affinity_labels(mask)[:3])
    matrix = affinity_matrix_labels(typed, ignore_index=ignored)
    assert matrix.dtype == torch.uint8
    assert_same(matrix, affinity_matrix_labels(mask))


@covers("affinity_labels", "dtypes")
@covers("affinity_matrix_labels", "dtypes")
def test_an_ignored_id_that_the_type_cannot_hold_occurs_nowhere():
    mask = torch.tensor([[[0, 255, 255]]], dtype=torch.uint8)
    labels = affinity_labels(mask, radius=2, ignore_index=-1)
    assert labels.foreground[0, 0, 0].tolist() == [False, True, False]
    assert labels.different[0, 0, 0].tolist() == [True, False, False]
    matrix = affinity_matrix_labels(mask, ignore_index=-1)
    assert matrix[0].tolist() == [[255, 0, 0], [0, 255, 1], [0, 1, 255]]


@covers("affinity_labels", "compile")
@covers("affinity_matrix_labels", "compile")
def test_compiles():
    mask = masks(4)
    assert_compiles(lambda m: affinity_labels(m, radius=3)[:3], mask)
    assert_compiles(lambda m: affinity_matrix_labels(m, radius=2), mask)


@covers("affinity_labels", "degenerate")
@covers("affinity_matrix_labels", "degenerate")
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 3)])
def test_degenerate(size):
    n = size[0] * size[1]
    ignored = torch.full((2, *size), 255)
    labels = affinity_labels(ignored)
    assert labels.background.shape == (2, 34, *size)
    assert not any(kind.any() for kind in labels[:3])
    assert (affinity_matrix_labels(ignored) == 255).all()
    background = torch.zeros(2, *size, dtype=torch.int64)
    labels = affinity_labels(background)
    assert labels.background.any() == (n > 1)
    assert not labels.foreground.any()
    assert not labels.different.any()
    matrix = affinity_matrix_labels(background)
    assert (matrix == 1).sum() == 2 * n * (n - 1)
    assert affinity_labels(ignored[:0]).background.shape == (0, 34, *size)
    assert affinity_matrix_labels(ignored[:0]).shape == (0, n, n)


@covers("affinity_labels", "errors")
@covers("affinity_matrix_labels", "errors")
@pytest.mark.parametrize("block", [affinity_labels, affinity_matrix_labels])
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"mask": torch.zeros(3, 3).long()}, ValueError, r"mask must have shape \(B, h, w\)"),
        ({"mask": torch.zeros(1, 3, 3)}, TypeError, "mask must be an integer tensor"),
        ({"mask": torch.zeros(1, 3, 3).bool()}, TypeError, "mask must be an integer tensor"),
        ({"radius": 0}, ValueError, "radius must be at least [12], got 0"),
        ({"radius": 1.5}, TypeError, "radius must be an int, got 1.5"),
        ({"ignore_index": None}, TypeError, "ignore_index must be an int, got None"),
    ],
)
def test_errors(block, change, error, match):
    call = {"mask": masks()} | change
    with pytest.raises(error, match=match):
        block(call.pop("mask"), **call)
