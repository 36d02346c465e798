import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.segmentation_scores import cam_label, confusion, scores
from strategies import cam_problems, generator, random_mask, seeds, sizes

from wsss_blocks.cam import cam_to_label
from wsss_blocks.metrics import SegmentationEvaluator, ThresholdSweep

# Odd values: no score of a random CAM lies within rounding of one of them.
THRESHOLDS = (0.0, 0.0731, 0.2113, 0.4177, 0.5939, 0.8713, 0.99)


@given(
    problem=cam_problems(limit=5),
    size=sizes(7),
    seed=seeds,
    absent=st.sampled_from(["both", "target"]),
    normalize=st.sampled_from(["minmax", None]),
)
def test_equals_one_evaluation_per_threshold(problem, size, seed, absent, normalize):
    k = problem.cam.shape[1]
    target = random_mask((len(problem.cam), *size), k + 1, generator(seed))
    sweep = ThresholdSweep(k + 1, thresholds=THRESHOLDS, absent=absent, normalize=normalize)
    sweep.update(problem.cam, problem.labels, target)
    result = sweep.compute()
    expected = []
    for threshold in THRESHOLDS:
        pairs = [
            (
                cam_label(
                    cam.tolist(), row.bool().tolist(), *size, threshold, normalize is not None
                ),
                truth.tolist(),
            )
            for cam, row, truth in zip(problem.cam, problem.labels, target, strict=True)
        ]
        expected.append(scores(confusion(pairs, k + 1, 255), absent))
    torch.testing.assert_close(
        result.curve,
        torch.tensor([e["miou"] for e in expected], dtype=torch.float64),
        rtol=0,
        atol=1e-12,
        equal_nan=True,
    )
    torch.testing.assert_close(
        result.iou,
        torch.tensor([e["iou"] for e in expected], dtype=torch.float64),
        rtol=0,
        atol=1e-12,
        equal_nan=True,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("normalize", ["minmax", None])
def test_equals_cam_to_label_and_the_evaluator(dtype, normalize):
    g = generator(1)
    k, size = 4, (37, 53)
    sweep = ThresholdSweep(k + 1, thresholds=THRESHOLDS, normalize=normalize)
    evaluators = [SegmentationEvaluator(k + 1) for _ in THRESHOLDS]
    for _ in range(2):
        cam = torch.randn(3, k, 7, 9, generator=g).to(dtype)
        labels = (torch.rand(3, k, generator=g) < 0.6).float()
        target = random_mask((3, *size), k + 1, g).to(torch.uint8)
        sweep.update(cam, labels, target)
        for threshold, evaluator in zip(THRESHOLDS, evaluators, strict=True):
            label = cam_to_label(cam, labels, size=size, threshold=threshold, normalize=normalize)
            evaluator.update(label, target)
    expected = torch.tensor([e.compute().miou for e in evaluators], dtype=torch.float64)
    torch.testing.assert_close(sweep.compute().curve, expected, rtol=0, atol=1e-12)


def test_images_of_different_sizes_come_one_by_one():
    g = generator(2)
    together, apart = ThresholdSweep(3), ThresholdSweep(3)
    cam, labels = torch.rand(2, 2, 4, 4, generator=g), torch.ones(2, 2)
    target = random_mask((2, 9, 9), 3, g)
    together.update(cam, labels, target)
    for i in range(2):
        apart.update(cam[i : i + 1], labels[i : i + 1], target[i : i + 1])
    assert torch.equal(together.compute().curve, apart.compute().curve)
    apart.update(cam[:1], labels[:1], random_mask((1, 5, 3), 3, g))


def test_best_is_the_lowest_threshold_with_the_highest_score():
    sweep = ThresholdSweep(2)
    cam = torch.tensor([[[[0.0, 0.3, 0.7, 1.0]]]])
    sweep.update(cam, torch.ones(1, 1), torch.tensor([[[0, 0, 1, 1]]]))
    result = sweep.compute()
    assert result.best == 1
    assert result.best_threshold == pytest.approx(0.3)
    assert result.curve[50] == 1
    assert result.curve[71] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert result.thresholds[30] == 0.3
    assert len(result.thresholds) == 100


def test_absent_classes_and_empty_rows_are_background():
    sweep = ThresholdSweep(3, thresholds=(0.0, 0.5))
    cam = torch.tensor([[[[0.0, 1.0]], [[5.0, 0.0]]]]).expand(2, -1, -1, -1)
    target = torch.tensor([[[0, 1]], [[0, 0]]])
    sweep.update(cam, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), target)
    assert sweep.compute().curve.tolist() == [1.0, 1.0]


def test_degenerate_batches():
    sweep = ThresholdSweep(2)
    assert math.isnan(sweep.compute().best)
    sweep.update(torch.rand(0, 1, 3, 3), torch.zeros(0, 1), torch.zeros(0, 5, 5).long())
    sweep.update(torch.ones(1, 1, 1, 1), torch.ones(1, 1), torch.full((1, 4, 4), 255))
    assert math.isnan(sweep.compute().best)
    assert sweep.compute().curve.isnan().all()
    sweep.update(torch.ones(1, 1, 1, 1), torch.ones(1, 1), torch.zeros(1, 4, 4).long())
    assert sweep.compute().best == 1


def test_merge_state_and_reset():
    g = generator(4)
    parts, whole = [ThresholdSweep(3), ThresholdSweep(3)], ThresholdSweep(3)
    for part in parts:
        batch = torch.rand(2, 2, 3, 3, generator=g), torch.ones(2, 2), random_mask((2, 6, 6), 3, g)
        part.update(*batch)
        whole.update(*batch)
    restored = ThresholdSweep(3)
    restored.load_state_dict(parts[0].state_dict())
    restored.merge(parts[1])
    assert torch.equal(restored.all_reduce().compute().curve, whole.compute().curve)
    restored.reset()
    assert restored.counts.sum() == 0
    with pytest.raises(ValueError, match="other must have the settings"):
        whole.merge(ThresholdSweep(3, thresholds=[t / 100 + 0.001 for t in range(100)]))


def test_where_values_are_not_read_compute_reports_impossible_ids(monkeypatch):
    monkeypatch.setattr("wsss_blocks.metrics._counts.values_are_checked", lambda x: False)
    sweep = ThresholdSweep(2)
    sweep.update(torch.rand(1, 1, 2, 2), torch.ones(1, 1), torch.tensor([[[0, 1, 2, 255]]]))
    with pytest.raises(ValueError, match="1 pixels held another one"):
        sweep.compute()


CAM, LABELS, TARGET = torch.rand(2, 3, 4, 4), torch.ones(2, 3), torch.zeros(2, 8, 8).long()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((CAM[0], LABELS, TARGET), ValueError, r"cam must have shape \(B, K, h, w\)"),
        ((CAM[:, :2], LABELS, TARGET), ValueError, "with K=3"),
        ((CAM.long(), LABELS, TARGET), TypeError, "cam must be a floating-point"),
        ((CAM / 0, LABELS, TARGET), ValueError, "cam must be finite"),
        ((CAM, LABELS[:1], TARGET), ValueError, "labels must have shape"),
        ((CAM, LABELS, TARGET[:1]), ValueError, r"target must have shape \(B, H, W\) with B=2"),
        ((CAM, LABELS, TARGET.float()), TypeError, "target must be an integer"),
        ((CAM, LABELS, TARGET + 4), ValueError, r"target must hold ids in \[0, 4\)"),
        ((CAM, LABELS, TARGET.to("meta")), ValueError, "target must be on the device of cam"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    sweep = ThresholdSweep(4)
    with pytest.raises(error, match=message):
        sweep.update(*arguments)
    assert sweep.counts.sum() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 1}, "num_classes must be >= 2"),
        ({"thresholds": ()}, "thresholds must be >= 0 and ascend"),
        ({"thresholds": (0.5, 0.5)}, "ascend"),
        ({"thresholds": (-0.1, 0.5)}, "thresholds must be >= 0"),
        ({"thresholds": (math.nan,)}, "thresholds must be >= 0"),
        ({"normalize": "max"}, "normalize must be 'minmax' or None"),
        ({"ignore_index": 1}, "ignore_index must lie outside"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ThresholdSweep(**{"num_classes": 3, **settings})


@pytest.mark.cuda
def test_on_a_gpu_counts_the_same_without_a_sync():
    g = generator(5)
    cam, labels = torch.randn(3, 5, 7, 7, generator=g), torch.ones(3, 5)
    target = random_mask((3, 64, 50), 6, g)
    on_cpu, on_gpu = (
        ThresholdSweep(6, thresholds=THRESHOLDS),
        ThresholdSweep(6, thresholds=THRESHOLDS),
    )
    on_cpu.update(cam, labels, target)
    arguments = cam.cuda(), labels.cuda(), target.cuda()
    on_gpu.update(*arguments)  # the first one moves the state to the GPU
    on_gpu.reset()
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu.update(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(on_gpu.compute().curve, on_cpu.compute().curve, rtol=0, atol=1e-4)
