import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import boundary as oracle
from PIL import Image
from scipy import ndimage
from strategies import generator, random_mask, seeds, sizes, small

from wsss_blocks.metrics import BoundaryEvaluator, boundary_region
from wsss_blocks.ops.counting import _count_by_scatter

RATIOS = st.sampled_from([0.02, 0.1, 0.3, 0.9])


def pair(seed, shape, classes, *, ignore_index=255):
    g = generator(seed)
    pred = torch.randint(0, classes, shape, generator=g)
    return pred, random_mask(shape, classes, g, ignore_index=ignore_index)


def coarse(seed, shape, classes, block):
    """Masks with regions: what boundaries are about."""
    h, w = shape[-2:]
    pred, target = pair(seed, (*shape[:-2], -(-h // block), -(-w // block)), classes)
    return tuple(
        m.repeat_interleave(block, -1).repeat_interleave(block, -2)[..., :h, :w]
        for m in (pred, target)
    )


def by_scipy(pred, target, classes, ratio=0.02, ignored=255):
    """``(3, C)`` counts with scipy's erosion: nothing of ours, nothing of the oracle's."""
    distance = max(1, round(ratio * math.hypot(*target.shape)))
    square = np.ones((3, 3), bool)

    def border(mask):
        return mask & ~ndimage.binary_erosion(mask, square, iterations=distance, border_value=0)

    rows = []
    for c in range(classes):
        near_target = border(target == c) & (target != ignored)
        near_pred = border(pred == c) & (target != ignored)
        rows.append([(near_target & near_pred).sum(), near_target.sum(), near_pred.sum()])
    return np.array(rows).T


@given(seed=seeds, batch=small, size=sizes(), ids=st.integers(1, 3), width=st.integers(1, 12))
def test_region_equals_erosion(seed, batch, size, ids, width):
    mask = random_mask((batch, *size), ids, generator(seed))
    mask[:, : size[0] // 2] = 0
    near = boundary_region(mask, width=width)
    assert (near.dtype, near.shape) == (torch.bool, mask.shape)
    assert near.tolist() == [oracle.region(m, width) for m in mask.tolist()]


def test_region_of_known_masks():
    mask = torch.zeros(1, 7, 9, dtype=torch.int64)
    mask[0, :, 5:] = 3
    rows = ["#########"] + 5 * ["#...##..#"] + ["#########"]
    shown = ["".join(".#"[int(v)] for v in row) for row in boundary_region(mask, width=1)[0]]
    assert shown == rows
    assert boundary_region(mask, width=4).all()
    assert boundary_region(mask[:, :1, :1], width=1).all()


@given(seed=seeds, width=st.integers(1, 6))
def test_region_follows_its_mask(seed, width):
    _, mask = coarse(seed, (2, 14, 11), 3, 4)
    near = boundary_region(mask, width=width)
    assert torch.equal(boundary_region(mask.flip(-1), width=width), near.flip(-1))
    assert torch.equal(boundary_region(mask.mT, width=width), near.mT)
    assert torch.equal(boundary_region(mask.flip(0), width=width), near.flip(0))
    assert torch.equal(boundary_region((mask + 7).to(torch.int16), width=width), near)
    assert bool((near <= boundary_region(mask, width=width + 1)).all())
    assert boundary_region(mask[:0], width=width).shape == (0, 14, 11)


@pytest.mark.parametrize(
    ("mask", "width", "error", "message"),
    [
        (torch.zeros(1, 2, 2), 1, TypeError, "mask must be an integer tensor"),
        (torch.zeros(2, 2).long(), 1, ValueError, r"mask must have shape \(B, H, W\), got \(2, 2"),
        (torch.zeros(1, 2, 2).long(), 0, ValueError, "width must be at least 1, got 0"),
        (torch.zeros(1, 2, 2).long(), 1.5, TypeError, "width must be an int, got 1.5"),
    ],
)
def test_region_refuses(mask, width, error, message):
    with pytest.raises(error, match=message):
        boundary_region(mask, width=width)


@given(
    seed=seeds,
    batch=small,
    size=sizes(),
    classes=st.integers(1, 4),
    ratio=RATIOS,
    absent=st.sampled_from(["both", "target"]),
    ignored=st.sampled_from([255, -1, 300]),
    dtype=st.sampled_from([torch.uint8, torch.int16, torch.int64]),
)
@example(0, 1, (1, 1), 1, 0.02, "both", 255, torch.uint8)
@example(1, 2, (1, 9), 3, 0.9, "target", 255, torch.uint8)
def test_equals_loops(seed, batch, size, classes, ratio, absent, ignored, dtype):
    if dtype == torch.uint8:
        ignored = 255
    evaluator = BoundaryEvaluator(classes + 1, ratio=ratio, ignore_index=ignored, absent=absent)
    pairs = []
    for step in range(2):
        pred, target = pair(seed + step, (batch, *size), classes, ignore_index=ignored)
        evaluator.update(pred.to(dtype), target.to(dtype))
        pairs += zip(pred.tolist(), target.tolist(), strict=True)
    table = oracle.counts(pairs, classes + 1, ignored, ratio)
    assert evaluator.counts.tolist() == table
    iou, mean = oracle.scores(table, absent)
    actual = evaluator.compute()
    assert actual.iou.tolist() == pytest.approx(iou, abs=1e-12, nan_ok=True)
    assert actual.mean == pytest.approx(mean, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("block", [1, 7, 23])
@pytest.mark.parametrize("on_host", [True, False])
def test_equals_scipy_on_realistic_masks(block, on_host, monkeypatch):
    if not on_host:
        monkeypatch.setattr("wsss_blocks.metrics.boundary.on_host", lambda mask: False)
    pred, target = coarse(block, (100, 140), 21, block)
    target[40:60, 30:34] = 255
    pred[20:80, 50:110] = target[20:80, 50:110] % 255
    evaluator = BoundaryEvaluator(21)
    evaluator.update(pred.to(torch.uint8), target.to(torch.uint8))
    np.testing.assert_array_equal(
        evaluator.counts.numpy(), by_scipy(pred.numpy(), target.numpy(), 21)
    )


@pytest.mark.real_data
def test_equals_scipy_on_real_masks(shared_data):
    folder = shared_data / "VOCdevkit" / "VOC2012" / "SegmentationClass"
    files = sorted(folder.glob("*.png"))[:20]
    assert len(files) == 20
    evaluator, expected = BoundaryEvaluator(21), np.zeros((3, 21), np.int64)
    for file in files:
        with Image.open(file) as image:
            target = np.array(image)
        pred = np.roll(target, (3, -4), (0, 1))
        pred[pred == 255] = 0
        evaluator.update(torch.from_numpy(pred), torch.from_numpy(target))
        ids = np.union1d(pred, target)
        for c in ids[ids != 255]:  # the others have no pixels
            expected[:, c] += by_scipy(pred == c, np.where(target == 255, 255, target == c), 2)[
                :, 1
            ]
    np.testing.assert_array_equal(evaluator.counts.numpy(), expected)
    assert 0.2 < evaluator.compute().mean < 0.9


@given(seed=seeds, batch=small, size=sizes(12), block=st.integers(1, 5), ratio=RATIOS)
def test_the_way_of_a_gpu_counts_the_same(seed, batch, size, block, ratio):
    pred, target = coarse(seed, (batch, *size), 4, block)
    on_cpu, other_way = (BoundaryEvaluator(4, ratio=ratio) for _ in range(2))
    on_cpu.update(pred, target)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsss_blocks.metrics.boundary.on_host", lambda mask: False)
        patch.setattr("wsss_blocks.metrics.boundary.count", _count_by_scatter)
        other_way.update(pred, target)
        other_way.update(pred[:, :1].to(torch.uint8), target[:, :1].to(torch.uint8))
    on_cpu.update(pred[:, :1].to(torch.uint8), target[:, :1].to(torch.uint8))
    assert torch.equal(on_cpu.counts, other_way.counts)


@pytest.mark.parametrize("on_host", [True, False])
def test_impossible_ids_are_counted_alike(on_host, monkeypatch):
    monkeypatch.setattr("wsss_blocks.metrics.boundary.on_host", lambda mask: on_host)
    pred = torch.tensor([[0, 9, 255, -1, 3, 2]])
    target = torch.tensor([[0, 0, 1, 2, 255, 7]])
    counts, invalid = BoundaryEvaluator(3).count(pred, target)
    assert int(invalid) == 4
    assert counts.tolist() == [[1, 0, 0]] * 3
    monkeypatch.setattr("wsss_blocks.metrics._counts.values_are_checked", lambda x: False)
    evaluator = BoundaryEvaluator(3)
    evaluator.update(pred, target)
    with pytest.raises(ValueError, match="4 pixels held another one"):
        evaluator.compute()


def test_absent_rule_decides_whether_a_false_class_counts():
    pred, target = torch.tensor([[0, 0, 1, 2]]), torch.tensor([[0, 0, 1, 1]])
    both, only_target = BoundaryEvaluator(4), BoundaryEvaluator(4, absent="target")
    for evaluator in (both, only_target):
        evaluator.update(pred, target)
    assert both.compute().mean == pytest.approx((1 + 0.5 + 0) / 3)
    assert only_target.compute().mean == pytest.approx((1 + 0.5) / 2)
    assert only_target.compute().iou.isnan().tolist() == [False, False, True, True]
    assert both.compute().per_class() == {
        "0": 1.0, "1": 0.5, "2": 0.0, "3": pytest.approx(math.nan, nan_ok=True)
    }  # fmt: skip


def test_only_what_is_near_a_contour_counts():
    target = torch.zeros(40, 40, dtype=torch.uint8)
    target[8:32, 8:32] = 1
    hole = target.clone()
    hole[19:21, 19:21] = 0  # the hole's rim is a contour of the prediction alone
    evaluator = BoundaryEvaluator(2)
    evaluator.update(hole, target)
    rim = 24 * 24 - 22 * 22
    assert evaluator.counts[:, 1].tolist() == [rim, rim, rim + 12]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_degenerate_images(dtype):
    evaluator = BoundaryEvaluator(3)
    ignored = torch.full((2, 4, 5), 255).to(dtype)
    evaluator.update(torch.zeros(2, 4, 5, dtype=dtype), ignored)
    evaluator.update(ignored, ignored)
    assert math.isnan(evaluator.compute().mean)
    assert evaluator.compute().iou.isnan().all()
    evaluator.update(torch.zeros(0, 4, 4, dtype=dtype), torch.zeros(0, 4, 4, dtype=dtype))
    evaluator.update(torch.zeros(1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype))
    assert evaluator.counts[:, 0].tolist() == [1, 1, 1]
    assert evaluator.compute().mean == 1
    one = BoundaryEvaluator(1)
    one.update(torch.zeros(9, 9, dtype=dtype), torch.zeros(9, 9, dtype=dtype))
    assert one.counts.tolist() == [[32], [32], [32]]


def test_merge_reset_state_and_all_reduce():
    parts, whole = [BoundaryEvaluator(4) for _ in range(3)], BoundaryEvaluator(4)
    for seed, part in enumerate(parts):
        masks = coarse(seed, (2, 16, 17), 4, 4)
        part.update(*masks)
        whole.update(*masks)
    saved = parts[0].state_dict()
    kept = parts[0].all_reduce()
    before = kept.counts.clone()
    for part in parts[1:]:
        parts[0].merge(part)
    assert torch.equal(parts[0].counts, whole.counts)
    assert torch.equal(kept.counts, before)
    restored = BoundaryEvaluator(4)
    restored.load_state_dict(saved)
    assert torch.equal(restored.counts, before)
    assert torch.equal(copy.deepcopy(whole).compute().iou, whole.compute().iou)
    whole.reset()
    assert whole.counts.sum() == 0
    for other in (BoundaryEvaluator(4, ratio=0.03), BoundaryEvaluator(4, absent="target")):
        with pytest.raises(ValueError, match="other must have the settings"):
            whole.merge(other)
    with pytest.raises(ValueError, match=r"counts must have shape \(3, 5\), got \(3, 4\)"):
        BoundaryEvaluator(5).load_state_dict(saved)


def test_arguments_are_left_alone():
    pred, target = coarse(0, (1, 8, 8), 3, 3)
    before = pred.clone(), target.clone()
    BoundaryEvaluator(3).update(pred, target)
    boundary_region(target, width=2)
    assert torch.equal(pred, before[0])
    assert torch.equal(target, before[1])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"ratio": 0.0}, ValueError, r"ratio must be in \(0, 1\), got 0.0"),
        ({"ratio": 1}, ValueError, "ratio must be in"),
        ({"ratio": "2%"}, TypeError, "ratio must be"),
        ({"ignore_index": 2}, ValueError, "ignore_index must lie outside"),
        ({"absent": "none"}, ValueError, "absent must be one of"),
        ({"names": ["a"]}, ValueError, "names must have 3 entries, got 1"),
    ],
)
def test_wrong_settings(settings, error, message):
    with pytest.raises(error, match=message):
        BoundaryEvaluator(3, **settings)


@pytest.mark.parametrize(
    ("pred", "target", "error", "message"),
    [
        (torch.zeros(2, 2), torch.zeros(2, 2).long(), TypeError, "pred must be an integer"),
        (torch.zeros(4).long(), torch.zeros(4).long(), ValueError, r"got \(4,\)"),
        (torch.zeros(2, 3).long(), torch.zeros(3, 2).long(), ValueError, "must both have shape"),
        (torch.tensor([[255]]), torch.tensor([[1]]), ValueError, "pred must hold ids .*got 255"),
        (torch.tensor([[1]]), torch.tensor([[4]]), ValueError, "target must hold ids .*got 4"),
    ],
)
def test_wrong_masks_count_nothing(pred, target, error, message):
    evaluator = BoundaryEvaluator(3)
    with pytest.raises(error, match=message):
        evaluator.update(pred, target)
    assert evaluator.counts.sum() == 0


@pytest.mark.cuda
def test_on_a_gpu_counts_the_same():
    pred, target = coarse(3, (4, 97, 131), 21, 9)
    on_cpu, on_gpu = BoundaryEvaluator(21), BoundaryEvaluator(21)
    on_cpu.update(pred, target)
    on_gpu.update(pred.cuda(), target.cuda())
    assert on_gpu.counts.is_cuda
    assert torch.equal(on_gpu.counts.cpu(), on_cpu.counts)
