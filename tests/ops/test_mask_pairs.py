"""The numpy side of counting; tests/metrics holds it against loops, scipy and torchmetrics."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.boundary import region
from oracles.segmentation_scores import confusion

from wsss_blocks.metrics import hash_masks
from wsss_blocks.ops.mask_pairs import (
    border_width,
    boundary_counts,
    contour_band,
    mask_digest,
    pair_runs,
    pixel_counts,
    region_counts,
    target_digest,
)

DTYPES = (np.uint8, np.int16, np.uint16, np.int32, np.int64)
seeds = st.integers(0, 2**16)


def blocks(seed, *, classes=5, odd=(), dtype=np.uint8, scale=8):
    """A pair of masks with runs long enough to be counted as runs."""
    rng = np.random.default_rng(seed)
    h, w = rng.integers(1, 5, 2)
    ids = np.array([*range(classes), 255, *odd])
    return tuple(
        np.kron(rng.choice(ids[:n], (h, w)), np.ones((3, scale * 8), int)).astype(dtype)
        for n in (classes, len(ids))
    )


@given(seed=seeds)
def test_runs_say_what_the_masks_say(seed):
    pred, target = blocks(seed)
    runs = pair_runs(pred, target)
    np.testing.assert_array_equal(np.repeat(runs.pred, runs.lengths), pred.ravel())
    np.testing.assert_array_equal(np.repeat(runs.target, runs.lengths), target.ravel())
    np.testing.assert_array_equal(np.cumsum(runs.lengths) - runs.lengths, runs.starts)
    changed = (runs.pred[1:] != runs.pred[:-1]) | (runs.target[1:] != runs.target[:-1])
    assert changed.all()


def test_one_pixel_no_pixel_and_noise():
    one = np.array([[3]], np.uint8)
    runs = pair_runs(one, one)
    assert (runs.starts.tolist(), runs.lengths.tolist()) == ([0], [1])
    nothing = np.zeros((0, 4), np.uint8)
    assert pair_runs(nothing, nothing) is None
    assert pixel_counts(nothing, nothing, 2, ignored=255).counts.tolist() == [[0, 0], [0, 0]]
    noise = np.random.default_rng(0).integers(0, 9, (40, 40), dtype=np.uint8)
    assert pair_runs(noise, noise) is None


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=seeds)
def test_runs_and_pixels_equal_loops(dtype, seed):
    pred, target = blocks(seed, dtype=dtype)
    expected = confusion([(pred.tolist(), target.tolist())], 5, 255)
    for found in (
        region_counts(pair_runs(pred, target), 5, ignored=255),
        pixel_counts(pred, target, 5, ignored=255),
        pixel_counts(pred.T, target.T, 5, ignored=255),
        pixel_counts(pred.astype(np.int64), target, 5, ignored=255),
    ):
        assert found.counts.dtype == np.int64
        assert (found.counts.tolist(), found.invalid) == (expected, 0)


@given(seed=seeds)
def test_impossible_ids_are_counted_once(seed):
    pred, target = blocks(seed, odd=(9, 200))
    pred = np.where(pred == 2, 77, pred).astype(np.uint8)
    scored = target != 255
    wrong = int((scored & ((target > 4) | (pred > 4))).sum())
    for found in (
        region_counts(pair_runs(pred, target), 5, ignored=255),
        pixel_counts(pred, target, 5, ignored=255),
        boundary_counts(pred, target, 5, ignored=255, width=2),
        pixel_counts(pred.astype(np.int32), target.astype(np.int32), 5, ignored=255),
    ):
        assert found.invalid == wrong
    assert pixel_counts(pred, target, 5, ignored=255).counts.sum() == scored.sum() - wrong


@pytest.mark.parametrize("dtype", DTYPES)
def test_boundaries_do_not_depend_on_the_integers(dtype):
    pred, target = blocks(4, dtype=dtype, scale=2)
    expected = boundary_counts(pred.astype(int), target.astype(int), 5, ignored=255, width=3)
    found = boundary_counts(pred, target, 5, ignored=255, width=3)
    np.testing.assert_array_equal(found.counts, expected.counts)
    noise = np.random.default_rng(1).integers(0, 5, (2, 17, 19)).astype(dtype)
    found = boundary_counts(*noise, 5, ignored=255, width=1)
    wide = boundary_counts(*noise.astype(int), 5, ignored=255, width=1)
    np.testing.assert_array_equal(found.counts, wide.counts)


@given(seed=seeds, height=st.integers(1, 7), breadth=st.integers(1, 7), width=st.integers(1, 9))
def test_the_band_equals_erosion_in_numpy_and_torch(seed, height, breadth, width):
    mask = np.random.default_rng(seed).integers(0, 2, (height, breadth))
    mask[: height // 2] = 0
    found = contour_band(mask, width)
    assert found.dtype == np.bool_
    assert found.tolist() == region(mask.tolist(), width)
    in_torch = contour_band(torch.from_numpy(mask)[None], width, like=torch)
    assert in_torch[0].tolist() == found.tolist()


@given(seed=seeds)
def test_digests_tell_pixels_and_nothing_else(seed):
    pred, target = blocks(seed)
    runs = pair_runs(pred, target)
    digest = mask_digest(target)
    assert target_digest(runs, target.shape) == digest
    assert mask_digest(target.astype(np.int64)) == digest
    assert mask_digest(np.asfortranarray(target)) == digest
    other = target.copy()
    other[-1, -1] ^= 1
    assert mask_digest(other) != digest
    assert mask_digest(target.reshape(1, -1)) != digest or target.shape[0] == 1
    assert hash_masks([torch.from_numpy(target)]) == hash_masks([torch.from_numpy(target).long()])


def test_an_empty_mask_has_a_digest():
    assert mask_digest(np.zeros((0, 3), np.uint8)) != mask_digest(np.zeros((3, 0), np.uint8))


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [((375, 500), 0.02, 12), ((500, 375), 0.02, 12), ((1, 1), 0.02, 1), ((30, 40), 0.05, 2),
     ((300, 400), 0.5, 250)],
)  # fmt: skip
def test_width_of_the_border(size, ratio, expected):
    assert border_width(size, ratio) == expected
    assert border_width(size, ratio) == max(
        1, round(ratio * math.sqrt(size[0] ** 2 + size[1] ** 2))
    )


def test_counting_processes_load_no_torch():
    script = (
        "import sys, wsss_blocks.cli._mask_pairs as m, wsss_blocks.ops.mask_pairs\n"
        "print(sorted({'torch', 'PIL', 'scipy', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
