import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.segmentation_scores import confusion, scores
from strategies import generator, random_mask, seeds, sizes, small
from torchmetrics.classification import MulticlassJaccardIndex

from wsss_blocks.metrics import SegmentationEvaluator
from wsss_blocks.ops.counting import _count_by_scatter, count
from wsss_blocks.ops.mask_pairs import pair_runs, pixel_counts, region_counts


def assert_scores(actual, expected):
    for name, value in expected.items():
        torch.testing.assert_close(
            torch.as_tensor(getattr(actual, name), dtype=torch.float64),
            torch.tensor(value, dtype=torch.float64),
            rtol=0,
            atol=1e-12,
            equal_nan=True,
        )


def masks(seed, shape, classes, *, ignore_index=255, some=None):
    g = generator(seed)
    used = classes if some is None else some
    pred = torch.randint(0, used, shape, generator=g)
    return pred, random_mask(shape, used, g, ignore_index=ignore_index)


@given(
    seed=seeds,
    batch=small,
    size=sizes(),
    classes=st.integers(1, 6),
    absent=st.sampled_from(["both", "target"]),
    dtypes=st.sampled_from(
        [(torch.uint8,) * 2, (torch.int64,) * 2, (torch.int64, torch.uint8), (torch.int32,) * 2]
    ),
)
def test_equals_loops(seed, batch, size, classes, absent, dtypes):
    evaluator = SegmentationEvaluator(classes + 2, absent=absent)
    pairs = []
    for step in range(2):
        pred, target = masks(seed + step, (batch, *size), classes + 2, some=classes)
        evaluator.update(pred.to(dtypes[0]), target.to(dtypes[1]))
        pairs += zip(pred.tolist(), target.tolist(), strict=True)
    table = confusion(pairs, classes + 2, 255)
    actual = evaluator.compute()
    assert actual.confusion.tolist() == table
    assert_scores(actual, scores(table, absent))
    if not math.isnan(actual.miou):
        assert actual.miou + actual.mfpr + actual.mfnr == pytest.approx(1)


@pytest.mark.parametrize("ignore_index", [255, -1, 300])
@pytest.mark.parametrize("classes", [2, 21, 255])
def test_equals_torchmetrics_over_all_pixels(classes, ignore_index):
    pred, target = masks(classes, (2, 40, 50), classes, ignore_index=ignore_index)
    ours = SegmentationEvaluator(classes, ignore_index=ignore_index)
    theirs = {
        average: MulticlassJaccardIndex(classes, ignore_index=ignore_index, average=average)
        for average in ("macro", "none")
    }
    for p, t in zip(pred, target, strict=True):
        ours.update(p, t)
        for metric in theirs.values():
            metric.update(p[None], t[None])
    actual = ours.compute()
    assert actual.miou == pytest.approx(float(theirs["macro"].compute()), abs=1e-6)
    torch.testing.assert_close(
        actual.iou.nan_to_num(0).float(), theirs["none"].compute(), rtol=0, atol=1e-6
    )


def test_absent_rule_decides_whether_a_false_class_counts():
    pred, target = torch.tensor([[0, 0, 1, 2]]), torch.tensor([[0, 0, 1, 1]])
    both, only_target = SegmentationEvaluator(4), SegmentationEvaluator(4, absent="target")
    for evaluator in (both, only_target):
        evaluator.update(pred, target)
    assert both.compute().miou == pytest.approx((1 + 0.5 + 0) / 3)
    assert only_target.compute().miou == pytest.approx((1 + 0.5) / 2)
    assert both.compute().iou.isnan().tolist() == [False, False, False, True]
    assert only_target.compute().iou.isnan().tolist() == [False, False, True, True]
    assert only_target.compute().precision[2] == 0


def test_is_one_matrix_over_images_and_not_a_mean_of_images():
    evaluator = SegmentationEvaluator(2)
    evaluator.update(torch.tensor([[1]]), torch.tensor([[1]]))
    evaluator.update(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[1, 1, 0]]))
    assert evaluator.compute().iou.tolist() == [1 / 3, 1 / 3]


@given(seed=seeds, classes=st.integers(2, 5))
def test_permuting_classes_permutes_the_scores(seed, classes):
    pred, target = masks(seed, (2, 5, 6), classes)
    order = torch.randperm(classes, generator=generator(seed))
    renamed = torch.cat([order, torch.zeros(255 - classes, dtype=torch.int64), torch.tensor([255])])
    one, other = SegmentationEvaluator(classes), SegmentationEvaluator(classes)
    one.update(pred, target)
    other.update(order[pred], renamed[target])
    torch.testing.assert_close(
        other.compute().iou[order], one.compute().iou, rtol=0, atol=0, equal_nan=True
    )
    assert one.compute().miou == pytest.approx(other.compute().miou, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_degenerate_images(dtype):
    evaluator = SegmentationEvaluator(3)
    evaluator.update(torch.zeros(1, 2, 2, dtype=dtype), torch.full((1, 2, 2), 255).to(dtype))
    nothing = evaluator.compute()
    assert math.isnan(nothing.miou)
    assert math.isnan(nothing.pixel_accuracy)
    assert nothing.iou.isnan().all()
    evaluator.update(torch.zeros(0, 4, 4, dtype=dtype), torch.zeros(0, 4, 4, dtype=dtype))
    evaluator.update(torch.zeros(1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype))
    assert evaluator.compute().miou == 1
    assert "nan" in evaluator.compute().table()


def test_merge_reset_and_state():
    parts = [SegmentationEvaluator(4) for _ in range(3)]
    whole = SegmentationEvaluator(4)
    for seed, part in enumerate(parts):
        pred, target = masks(seed, (2, 6, 7), 4)
        part.update(pred, target)
        whole.update(pred, target)
    first = parts[0].state_dict()
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    assert torch.equal(parts[0].compute().confusion, whole.compute().confusion)

    restored = SegmentationEvaluator(4)
    restored.load_state_dict(first)
    restored.merge(parts[1])
    restored.merge(parts[2])
    assert torch.equal(restored.compute().confusion, whole.compute().confusion)
    assert list(first) == ["counts", "invalid"]

    whole.reset()
    assert whole.compute().confusion.sum() == 0
    with pytest.raises(ValueError, match="other must have the settings"):
        whole.merge(SegmentationEvaluator(4, absent="target"))
    with pytest.raises(ValueError, match=r"counts must have shape \(5, 5\), got \(4, 4\)"):
        SegmentationEvaluator(5).load_state_dict(first)


def test_all_reduce_in_one_process_is_a_copy():
    evaluator = SegmentationEvaluator(2)
    evaluator.update(torch.tensor([[0, 1]]), torch.tensor([[0, 1]]))
    merged = evaluator.all_reduce()
    evaluator.update(torch.tensor([[0, 1]]), torch.tensor([[1, 1]]))
    assert merged.compute().confusion.tolist() == [[1, 0], [0, 1]]
    assert merged.to("cpu") is merged


def test_names_label_the_scores():
    evaluator = SegmentationEvaluator(2, names=["background", "cat"])
    evaluator.update(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 0]]))
    result = evaluator.compute()
    assert result.per_class() == {"background": 0.5, "cat": 0.5}
    assert result.summary() == {
        "miou": 0.5,
        "mfpr": 0.25,
        "mfnr": 0.25,
        "pixel_accuracy": pytest.approx(2 / 3),
    }
    assert "cat              50.00   50.00  100.00" in result.table()
    assert "pixel accuracy   66.67" in result.table()


def test_arguments_are_left_alone():
    pred, target = masks(0, (1, 4, 4), 3)
    before = pred.clone(), target.clone()
    SegmentationEvaluator(3).update(pred, target)
    assert torch.equal(pred, before[0])
    assert torch.equal(target, before[1])


@pytest.mark.parametrize(
    ("pred", "target", "message"),
    [
        ([[0, 255]], [[0, 1]], r"pred must hold ids in \[0, 3\) wherever the target is scored"),
        ([[0, 3]], [[0, 1]], "pred must hold ids"),
        ([[0, 1]], [[0, 3]], r"target must hold ids in \[0, 3\) or ignore_index=255, got 3"),
        ([[0, 1]], [[0, 254]], "got 254"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_impossible_ids_are_errors_and_count_nothing(pred, target, message, dtype):
    evaluator = SegmentationEvaluator(3)
    with pytest.raises(ValueError, match=message):
        evaluator.update(torch.tensor(pred, dtype=dtype), torch.tensor(target, dtype=dtype))
    assert evaluator.compute().confusion.sum() == 0


def test_negative_ids_are_errors():
    with pytest.raises(ValueError, match="got -1"):
        SegmentationEvaluator(3).update(torch.tensor([[0]]), torch.tensor([[-1]]))
    with pytest.raises(ValueError, match="got -2"):
        SegmentationEvaluator(3).update(torch.tensor([[-2]]), torch.tensor([[0]]))


def test_an_ignored_pixel_may_hold_any_prediction():
    evaluator = SegmentationEvaluator(3)
    evaluator.update(torch.tensor([[255, 7, 1]]), torch.tensor([[255, 255, 1]]))
    assert evaluator.compute().confusion.sum() == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_where_values_are_not_read_compute_reports_impossible_ids(monkeypatch, dtype):
    monkeypatch.setattr("wsss_blocks.metrics._counts.values_are_checked", lambda x: False)
    evaluator = SegmentationEvaluator(3)
    evaluator.update(torch.tensor([[0, 9, 255]]).to(dtype), torch.tensor([[0, 0, 7]]).to(dtype))
    with pytest.raises(ValueError, match="2 pixels held another one"):
        evaluator.compute()


@pytest.mark.parametrize(
    ("pred", "target", "error", "message"),
    [
        (torch.zeros(2, 2), torch.zeros(2, 2).long(), TypeError, "pred must be an integer"),
        (torch.zeros(2, 2).long(), torch.zeros(2, 2).bool(), TypeError, "target must be an int"),
        (torch.zeros(4).long(), torch.zeros(4).long(), ValueError, r"got \(4,\)"),
        (
            torch.zeros(1, 2, 2).long(),
            torch.zeros(2, 2).long(),
            ValueError,
            r"must both have shape .*, got \(1, 2, 2\) and \(2, 2\)",
        ),
        (
            torch.zeros(2, 2).long(),
            torch.zeros(2, 2, device="meta").long(),
            ValueError,
            "pred must be on the device of target",
        ),
    ],
)
def test_wrong_masks(pred, target, error, message):
    with pytest.raises(error, match=message):
        SegmentationEvaluator(3).update(pred, target)


def test_wrong_settings():
    with pytest.raises(ValueError, match=r"ignore_index must lie outside \[0, 21\), got 0"):
        SegmentationEvaluator(21, ignore_index=0)
    with pytest.raises(ValueError, match="num_classes must be >= 1"):
        SegmentationEvaluator(0)
    with pytest.raises(ValueError, match="absent must be one of"):
        SegmentationEvaluator(2, absent="none")
    with pytest.raises(ValueError, match="names must have 2 entries, got 1"):
        SegmentationEvaluator(2, names=["background"])


@given(seed=seeds, cells=st.integers(1, 2000), length=st.integers(0, 300))
def test_counting_without_a_sync_equals_bincount(seed, cells, length):
    index = torch.randint(0, cells, (length,), generator=generator(seed))
    expected = [0] * cells
    for i in index.tolist():
        expected[i] += 1
    assert count(index, cells).tolist() == expected
    assert _count_by_scatter(index.int(), cells).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_the_way_of_a_gpu_counts_the_same(monkeypatch, dtype):
    evaluator = "wsss_blocks.metrics.evaluator"
    pred, target = masks(1, (2, 9, 11), 5)
    on_cpu, other_way = SegmentationEvaluator(5), SegmentationEvaluator(5)
    on_cpu.update(pred.to(dtype), target.to(dtype))
    monkeypatch.setattr(f"{evaluator}.count", _count_by_scatter)
    monkeypatch.setattr(f"{evaluator}.on_host", lambda mask: False)
    monkeypatch.setattr(
        f"{evaluator}.largest_byte", lambda mask: 255 if mask.dtype == torch.uint8 else None
    )
    other_way.update(pred.to(dtype), target.to(dtype))
    assert torch.equal(other_way.counts, on_cpu.counts)


@given(seed=seeds, classes=st.integers(1, 6), ignored=st.sampled_from([255, -1, 7]))
def test_runs_are_counted_as_pixels_are(seed, classes, ignored):
    g = generator(seed)
    coarse = [torch.randint(-2, 9, (2, 2, 3), generator=g) for _ in range(2)]
    pred, target = (m.repeat_interleave(40, -1).repeat_interleave(3, -2) for m in coarse)
    target[target == -2] = ignored
    expected, invalid = [[0] * classes for _ in range(classes)], 0
    for p, t in zip(pred.flatten().tolist(), target.flatten().tolist(), strict=True):
        if t == ignored:
            continue
        if 0 <= t < classes and 0 <= p < classes:
            expected[t][p] += 1
        else:
            invalid += 1
    runs = pair_runs(pred.numpy(), target.numpy())
    assert runs is not None
    for found in (
        region_counts(runs, classes, ignored=ignored),
        pixel_counts(pred.numpy(), target.numpy(), classes, ignored=ignored),
    ):
        assert (found.counts.tolist(), found.invalid) == (expected, invalid)
    ours = SegmentationEvaluator(classes, ignore_index=ignored if ignored != 7 else 9)
    if ignored != 7:
        by_pixels = ours._count_pixels(pred, target)
        assert (by_pixels[0].tolist(), int(by_pixels[1])) == (expected, invalid)


@given(seed=seeds)
def test_bytes_are_counted_alike(seed):
    g = generator(seed)
    pred, target = (torch.randint(0, 9, (5, 7), generator=g).to(torch.uint8) for _ in range(2))
    wide = pixel_counts(pred.long().numpy(), target.long().numpy(), 6, ignored=7)
    found = pixel_counts(pred.numpy(), target.numpy(), 6, ignored=7)
    assert (found.counts.tolist(), found.invalid) == (wide.counts.tolist(), wide.invalid)


def test_noise_is_counted_by_pixels():
    noise = torch.randint(0, 9, (64, 64), generator=generator(0)).numpy()
    assert pair_runs(noise, noise) is None


def test_strides_do_not_matter():
    pred, target = masks(2, (4, 6, 5), 3)
    one, other = SegmentationEvaluator(3), SegmentationEvaluator(3)
    one.update(pred[:1].expand(4, -1, -1), target.transpose(1, 2).contiguous().transpose(1, 2))
    other.update(pred[:1].repeat(4, 1, 1), target)
    assert torch.equal(one.counts, other.counts)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_on_a_gpu_counts_the_same_without_a_sync(dtype):
    pred, target = masks(3, (4, 97, 131), 21)
    on_cpu, on_gpu = SegmentationEvaluator(21), SegmentationEvaluator(21)
    on_cpu.update(pred.to(dtype), target.to(dtype))
    arguments = pred.to(dtype).cuda(), target.to(dtype).cuda()
    on_gpu.update(*arguments)  # the first one moves the state to the GPU
    on_gpu.reset()
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu.update(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert on_gpu.counts.is_cuda
    assert torch.equal(on_gpu.compute().confusion, on_cpu.compute().confusion)
    on_gpu.update(arguments[0], arguments[1].fill_(200))
    with pytest.raises(ValueError, match="50828 pixels held another one"):
        on_gpu.compute()
