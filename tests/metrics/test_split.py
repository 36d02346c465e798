import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.segmentation_scores import confusion as oracle_confusion
from oracles.segmentation_scores import scores as oracle_scores
from strategies import generator, random_mask, seeds
from torchmetrics.classification import MulticlassJaccardIndex
from two_ranks import run_two_ranks

from wsss_blocks.metrics import (
    BoundaryEvaluator,
    ImageBootstrap,
    SegmentationEvaluator,
    SplitEvaluator,
)


def split(seed, count, classes, *, ignored=255):
    """Names and pairs of masks of different sizes, with regions and ignored pixels."""
    g = generator(seed)
    for i in range(count):
        h, w = torch.randint(1, 14, (2,), generator=g).tolist()
        pred = torch.randint(0, classes, (1 + h // 3, 1 + w // 3), generator=g)
        pred = pred.repeat_interleave(3, 0).repeat_interleave(3, 1)[:h, :w]
        target = random_mask((h, w), classes, g, ignore_index=ignored)
        yield f"image {i}", pred, torch.where(torch.rand(h, w, generator=g) < 0.6, pred, target)


def scored(pairs, classes, **options):
    evaluator = SplitEvaluator(classes, **{"replicates": 20, **options})
    for name, pred, target in pairs:
        evaluator.update(name, pred, target)
    return evaluator


def assert_equal(a, b, *, images=True):
    assert torch.equal(a.regions.confusion, b.regions.confusion)
    torch.testing.assert_close(a.boundary.iou, b.boundary.iou, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(
        a.interval.replicates, b.interval.replicates, rtol=0, atol=0, equal_nan=True
    )
    assert (a.interval.low, a.interval.high) == (b.interval.low, b.interval.high)
    if images:
        assert [i.id for i in a.images] == [i.id for i in b.images]
        assert [i.miou for i in a.images] == pytest.approx(
            [i.miou for i in b.images], abs=0, nan_ok=True
        )


@settings(max_examples=10)
@given(
    seed=seeds,
    classes=st.integers(1, 4),
    absent=st.sampled_from(["both", "target"]),
    ignored=st.sampled_from([255, -1]),
)
def test_equals_the_three_used_alone(seed, classes, absent, ignored):
    pairs = list(split(seed, 6, classes, ignored=ignored))
    common = {"absent": absent, "ignore_index": ignored}
    found = scored(pairs, classes, **common).compute()
    regions, boundary = (
        kind(classes, **common) for kind in (SegmentationEvaluator, BoundaryEvaluator)
    )
    bootstrap = ImageBootstrap(classes, replicates=20, absent=absent)
    for name, pred, target in pairs:
        regions.update(pred, target)
        boundary.update(pred, target)
        alone = SegmentationEvaluator(classes, ignore_index=ignored)
        alone.update(pred, target)
        bootstrap.update([name], alone.counts[None])
    assert torch.equal(found.regions.confusion, regions.counts)
    assert found.summary() == pytest.approx(
        {**regions.compute().summary(), "boundary_iou": boundary.compute().mean},
        abs=1e-12,
        nan_ok=True,
    )
    assert found.boundary.iou.tolist() == pytest.approx(
        boundary.compute().iou.tolist(), abs=1e-12, nan_ok=True
    )
    assert found.interval.replicates.tolist() == pytest.approx(
        bootstrap.compute().replicates.tolist(), abs=1e-12, nan_ok=True
    )
    assert found.miou == pytest.approx(regions.compute().miou, nan_ok=True)


@settings(max_examples=10)
@given(seed=seeds, classes=st.integers(1, 4))
def test_the_score_of_an_image_is_that_of_its_own_matrix(seed, classes):
    pairs = list(split(seed, 5, classes))
    found = scored(pairs, classes, absent="target").compute().images
    assert [image.id for image in found] == [name for name, *_ in pairs]
    for image, (_, pred, target) in zip(found, pairs, strict=True):
        table = oracle_confusion([(pred.tolist(), target.tolist())], classes, 255)
        expected = oracle_scores(table, "both")["miou"]
        assert image.miou == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_a_false_class_costs_its_image_whatever_the_rule():
    evaluator = SplitEvaluator(3, absent="target", replicates=0)
    evaluator.update("a", torch.tensor([[0, 0, 1, 2]]), torch.tensor([[0, 0, 1, 1]]))
    found = evaluator.compute()
    assert found.miou == pytest.approx((1 + 1 / 2) / 2)
    assert found.images[0].miou == pytest.approx((1 + 1 / 2 + 0) / 3)


@pytest.mark.parametrize("blocks", [1, 25])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_equals_numpy_and_torchmetrics(dtype, blocks):
    classes, rng = 21, np.random.default_rng(blocks)
    evaluator = SplitEvaluator(classes, replicates=0)
    peer = MulticlassJaccardIndex(classes, ignore_index=255)
    expected = np.zeros((classes, classes), np.int64)
    for i in range(4):
        grid = (100 // blocks, 150 // blocks)
        target, pred = (
            np.kron(rng.integers(0, classes, grid), np.ones((blocks, blocks), int))
            for _ in range(2)
        )
        pred = np.where(rng.random(target.shape) < 0.5 if blocks == 1 else target > 6, target, pred)
        target[rng.random(target.shape) < 0.05] = 255
        if blocks > 1:
            target[:, -40:] = 255
        kept = target < classes
        expected += np.bincount(
            classes * target[kept] + pred[kept], minlength=classes * classes
        ).reshape(classes, classes)
        pred, target = (torch.from_numpy(m.astype(dtype)) for m in (pred, target))
        evaluator.update(f"{i}", pred, target)
        peer.update(pred.long()[None], target.long()[None])
    found = evaluator.compute()
    np.testing.assert_array_equal(found.regions.confusion.numpy(), expected)
    tp = np.diag(expected)
    union = expected.sum(0) + expected.sum(1) - tp
    assert found.miou == pytest.approx((tp / union)[union > 0].mean(), abs=1e-12)
    assert found.miou == pytest.approx(float(peer.compute()), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("ignored", [255, 7])
def test_what_undecided_pixels_mean(dtype, ignored):
    target = torch.tensor([[0, 0, 1, 1, ignored, 2]], dtype=dtype)
    pred = torch.tensor([[0, ignored, 1, ignored, ignored, 1]], dtype=dtype)

    def confusion(rule):
        evaluator = SplitEvaluator(3, undecided=rule, ignore_index=ignored, replicates=4)
        evaluator.update("a", pred, target)
        found = evaluator.compute()
        alone = BoundaryEvaluator(3, ignore_index=ignored)
        empty = pred == ignored
        if rule == "ignored":
            alone.update(pred, target.masked_fill(empty, ignored))
        else:
            alone.update(pred.masked_fill(empty, 0), target)
        assert torch.equal(evaluator.boundary.counts, alone.counts)
        return found.regions.confusion.tolist()

    assert confusion("ignored") == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert confusion("background") == [[2, 0, 0], [1, 1, 0], [0, 1, 0]]
    refused = SplitEvaluator(3, ignore_index=ignored)
    with pytest.raises(ValueError, match=f"pred must hold ids .*got {ignored}"):
        refused.update("a", pred, target)
    assert refused.compute().images == ()
    assert refused.compute().regions.confusion.sum() == 0


@pytest.mark.parametrize("rule", ["ignored", "background"])
@pytest.mark.parametrize("ignored", [-1, 300])
def test_bytes_cannot_hold_every_ignored_id(rule, ignored):
    pred, target = (torch.tensor([[0, 44, 255]], dtype=torch.uint8) for _ in range(2))
    evaluator = SplitEvaluator(256, undecided=rule, ignore_index=ignored, replicates=0)
    evaluator.update("a", pred, target)
    assert evaluator.compute().regions.confusion.nonzero().tolist() == [[0, 0], [44, 44], [255] * 2]


def test_arguments_are_left_alone():
    pred, target = torch.tensor([[0, 255]]), torch.tensor([[0, 1]])
    for rule in ("ignored", "background"):
        SplitEvaluator(2, undecided=rule).update("a", pred, target)
    assert (pred.tolist(), target.tolist()) == ([[0, 255]], [[0, 1]])


@pytest.mark.parametrize("count", [63, 64, 65, 130])
def test_any_number_of_images(count):
    g = generator(count)
    evaluator = SplitEvaluator(3, boundary=False, replicates=5)
    bootstrap = ImageBootstrap(3, replicates=5)
    for i in range(count):
        pred, target = torch.randint(0, 3, (2, 3, 4), generator=g)
        confusion, _ = evaluator.regions.count(pred, target)
        bootstrap.update([f"{i}"], confusion[None])
        if i % 20 == 7:
            evaluator.add([f"{i}"], confusion[None], None)
        else:
            evaluator.update(f"{i}", pred, target)
        if i == 10:
            assert len(evaluator.compute().images) == 11
    found = evaluator.compute()
    assert [image.id for image in found.images] == [f"{i}" for i in range(count)]
    assert torch.equal(evaluator.bootstrap.counts, bootstrap.counts)
    assert torch.equal(found.interval.replicates, bootstrap.compute().replicates)
    assert int(found.regions.confusion.sum()) == 12 * count


def test_merge_equals_one_pass():
    pairs = list(split(3, 70, 3))
    whole = scored(pairs, 3)
    first, second = scored(pairs[:30], 3), scored(pairs[30:], 3)
    untouched = copy.deepcopy(second.compute())
    first.merge(second)
    assert_equal(first.compute(), whole.compute())
    assert_equal(second.compute(), untouched)


def test_a_reduced_copy_stays_as_it_is():
    pairs = list(split(4, 6, 3))
    evaluator = scored(pairs[:3], 3)
    reduced = evaluator.all_reduce()
    before = reduced.compute()
    for name, pred, target in pairs[3:]:
        evaluator.update(name, pred, target)
    assert_equal(reduced.compute(), before)
    assert_equal(before, scored(pairs[:3], 3).compute())
    assert len(evaluator.compute().images) == 6


@pytest.mark.parametrize(
    "other",
    [
        {"boundary": False},
        {"replicates": 0},
        {"replicates": 30},
        {"undecided": "ignored"},
        {"absent": "target"},
        {"ignore_index": 254},
    ],
)
def test_different_evaluators_do_not_merge_at_all(other):
    pairs = list(split(5, 3, 3))
    one = scored(pairs, 3)
    before = one.compute()
    with pytest.raises(ValueError, match=r"other must have the settings .*, got"):
        one.merge(scored([], 3, **other))
    with pytest.raises(ValueError, match="other must have the settings"):
        one.merge(SplitEvaluator(4, replicates=20))
    assert_equal(one.compute(), before)


def test_without_boundary_and_bootstrap():
    found = scored(split(6, 3, 3), 3, boundary=False, replicates=0).compute()
    assert found.boundary is None
    assert found.interval is None
    assert set(found.summary()) == {"miou", "mfpr", "mfnr", "pixel_accuracy"}
    assert list(found.per_class()[0]) == ["class", "iou", "precision", "recall"]
    assert "boundary" not in found.table()
    assert "resamplings" not in found.table()


def test_the_table_reads_well():
    evaluator = SplitEvaluator(3, names=("background", "cat", "dog"), replicates=50)
    target = torch.tensor([[0, 0, 1, 1]] * 4)
    evaluator.update("a", target, target)
    evaluator.update("b", torch.tensor([[0, 0, 0, 1]] * 4), target)
    found = evaluator.compute()
    interval = (
        f"   ({100 * found.interval.low:.2f} to {100 * found.interval.high:.2f}: "
        "95% of 50 resamplings of the images)"
    )
    assert found.table().splitlines() == [
        "class                IoU precision    recall  boundary",
        "background         80.00     80.00    100.00     70.00",
        "cat                75.00    100.00     75.00     75.00",
        "dog                  nan       nan       nan       nan",
        "mIoU               77.50" + interval,
        "mFPR               10.00",
        "mFNR               12.50",
        "pixel accuracy     87.50",
        "boundary IoU       72.50",
    ]
    assert 0.5 < found.interval.low < 0.775 < found.interval.high <= 1
    rows = found.per_class()
    assert [row["class"] for row in rows] == ["background", "cat", "dog"]
    assert all(math.isnan(rows[2][k]) for k in ("iou", "precision", "recall", "boundary_iou"))


def test_degenerate_splits():
    empty = SplitEvaluator(2, replicates=4).compute()
    assert math.isnan(empty.miou)
    assert empty.images == ()
    assert "nan" in empty.table()
    evaluator = SplitEvaluator(2, replicates=4)
    evaluator.update("ignored", torch.zeros(2, 3).long(), torch.full((2, 3), 255))
    evaluator.update("pixel", torch.ones(1, 1).long(), torch.ones(1, 1).long())
    found = evaluator.compute()
    assert math.isnan(found.images[0].miou)
    assert found.images[1].miou == found.miou == 1
    assert found.interval.low == found.interval.high == 1
    one = SplitEvaluator(1, replicates=4)
    one.update("a", torch.zeros(3, 3).long(), torch.zeros(3, 3).long())
    assert one.compute().summary()["boundary_iou"] == 1


def test_where_values_are_not_read_compute_reports_impossible_ids(monkeypatch):
    monkeypatch.setattr("wsss_blocks.metrics._counts.values_are_checked", lambda x: False)
    evaluator = SplitEvaluator(2)
    evaluator.update("a", torch.tensor([[0, 9]]), torch.tensor([[0, 0]]))
    with pytest.raises(ValueError, match="1 pixels held another one"):
        evaluator.compute()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SplitEvaluator(2, undecided="no"), ValueError, "undecided must be one of"),
        (lambda: SplitEvaluator(2, replicates=1), ValueError, "replicates must be at least 2"),
        (lambda: SplitEvaluator(2, names=["a"]), ValueError, "names must have 2 entries"),
        (lambda: SplitEvaluator(2, ignore_index=1), ValueError, "ignore_index must lie outside"),
        (
            lambda: SplitEvaluator(2).update("a", torch.zeros(2, 2), torch.zeros(2, 2).long()),
            TypeError,
            "pred must be an integer",
        ),
        (
            lambda: SplitEvaluator(2).update("a", torch.zeros(2, 2).long(), torch.zeros(2).long()),
            ValueError,
            "must both have shape",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


SCRIPT = """
import sys
import torch
import torch.distributed as dist
from wsss_blocks.metrics import SplitEvaluator

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
g = torch.Generator().manual_seed(0)
masks = torch.randint(0, 4, (2, 70, 6, 7), generator=g)
mine, whole = SplitEvaluator(4, replicates=30), SplitEvaluator(4, replicates=30)
for i in range(70):
    whole.update(str(i), masks[0, i], masks[1, i])
    if (i < 3) == (rank == 0):  # uneven shards: three images, 67 images
        mine.update(str(i), masks[0, i], masks[1, i])
expected = whole.compute()
for _ in range(2):  # reducing twice must not count twice
    found = mine.all_reduce().compute()
    assert torch.equal(found.regions.confusion, expected.regions.confusion)
    assert torch.equal(found.boundary.iou, expected.boundary.iou)
    assert torch.equal(found.interval.replicates, expected.interval.replicates)
    assert found.images == expected.images
assert len(mine.compute().images) == (3 if rank == 0 else 67)
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_score_like_one(tmp_path: Path):
    run_two_ranks(SCRIPT, tmp_path / "store")
