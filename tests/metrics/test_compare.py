import math
from dataclasses import replace

import numpy as np
import pytest

from wsss_blocks.metrics import (
    EvaluationProtocol,
    RecordedMetrics,
    compare_metrics,
    read_metrics,
    write_metrics,
)

PROTOCOL = EvaluationProtocol(
    dataset="pets",
    split="val",
    num_images=3,
    scales=(1.0,),
    flip=False,
    refiner="none",
    labels_used=False,
)


def run(results, protocol=PROTOCOL, bootstrap=None):
    protocols = {name.split("/")[0]: protocol for name in results}
    return RecordedMetrics(
        results, protocols, {} if bootstrap is None else {"bootstrap": bootstrap}
    )


def test_shared_results_and_those_of_one_run():
    old = run({"seg/miou": 0.5, "seg/iou/cat": math.nan, "cam": 0.4})
    new = run({"seg/miou": 0.25, "seg/iou/cat": 0.5, "crf": 0.6})
    found = {d.name: d for d in compare_metrics(old, new)}
    assert list(found) == ["seg/miou", "seg/iou/cat", "cam", "crf"]
    assert found["seg/miou"].change == -0.25
    assert found["seg/miou"].interval is None
    assert math.isnan(found["seg/iou/cat"].change)
    assert (found["cam"].old, found["cam"].new, found["cam"].change) == (0.4, None, None)
    assert (found["crf"].old, found["crf"].new, found["crf"].change) == (None, 0.6, None)


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("flip", True, "flip False .old. and True .new."),
        ("scales", (1.0, 0.5), r"scales \[1.0\] .old. and \[1.0, 0.5\] .new."),
        ("num_images", 4, "num_images 3 .old. and 4 .new."),
        ("labels_used", True, "labels_used False"),
        ("ground_truth_hash", "ab12", "ground_truth_hash None .old. and 'ab12' .new."),
        ("text", "stand-in", "text None"),
        ("refiner", "CRF", "refiner 'none'"),
        ("absent_rule", "target", "absent_rule 'both'"),
    ],
)
def test_any_other_protocol_is_refused(field, value, shown):
    other = run({"seg/miou": 0.5}, replace(PROTOCOL, **{field: value}))
    with pytest.raises(ValueError, match=rf"same protocol to be compared, got\n  seg: {shown}"):
        compare_metrics(run({"seg/miou": 0.5}), other)


def test_protocols_of_results_that_are_not_shared_do_not_matter():
    old = RecordedMetrics({"seg": 0.5, "cam": 0.4}, {"seg": PROTOCOL, "cam": PROTOCOL}, {})
    other = replace(PROTOCOL, flip=True)
    new = RecordedMetrics({"seg": 0.5, "crf": 0.4}, {"seg": PROTOCOL, "crf": other}, {})
    assert [d.change for d in compare_metrics(old, new)] == [0.0, None, None]
    with pytest.raises(ValueError, match=r"must share a result, got \['cam'\] and \['crf'\]"):
        compare_metrics(run({"cam": 0.4}), run({"crf": 0.4}))
    with pytest.raises(TypeError, match="new must be what read_metrics returns"):
        compare_metrics(old, {"seg": 0.5})


def replicates(own_seed, shift=0.0, **more):
    noise = np.random.default_rng(0).normal(50, 5, 400)  # the images that were drawn
    own = np.random.default_rng(own_seed).normal(shift, 0.1, 400)
    return {"level": 0.9, "low": 0, "high": 0, "replicates": (noise + own).tolist(), **more}


@pytest.mark.parametrize("name", ["seg", "seg/miou"])
def test_paired_replicates_give_an_interval_of_the_change(name):
    boots = [{name: replicates(1, seed=7)}, {name: replicates(2, shift=1.0, seed=7)}]
    old, new = (
        run({"seg/miou": x, "seg/mfpr": 0.1}, bootstrap=b)
        for x, b in zip((0.5, 0.51), boots, strict=True)
    )
    miou, mfpr = compare_metrics(old, new)
    differences = sorted(
        b - a
        for a, b in zip(boots[0][name]["replicates"], boots[1][name]["replicates"], strict=True)
    )
    low, high = miou.interval
    assert miou.level == 0.9
    # 5% of 400 lie below, 5% above; each own interval is some 16 points wide.
    assert differences[18] <= 100 * low <= differences[21]
    assert differences[378] <= 100 * high <= differences[381]
    assert 0 < low < 0.01 < high < 0.02
    assert mfpr.interval is None


@pytest.mark.parametrize(
    "other",
    [
        None,
        {},
        {"seg": {"level": 0.9, "low": 0, "high": 0}},
        {"seg": replicates(2, seed=8)},
        {"seg": {**replicates(2, seed=7), "level": 0.95}},
        {"seg": {**replicates(2, seed=7), "replicates": [1.0, 2.0]}},
        {"seg": {**replicates(2, seed=7), "replicates": [None] * 400}},
    ],
)
def test_replicates_of_other_draws_give_none(other):
    old, new = (
        run({"seg": 0.5}, bootstrap={"seg": replicates(1, seed=7)}),
        run({"seg": 0.6}, bootstrap=other),
    )
    (found,) = compare_metrics(old, new)
    assert found.interval is None
    assert found.change == pytest.approx(0.1)


def test_files(tmp_path):
    for name, miou in (("a", 0.5), ("b", 0.625)):
        write_metrics(
            tmp_path / name, {"seg": miou}, PROTOCOL, extra={"bootstrap": {"seg": replicates(1)}}
        )
    (found,) = compare_metrics(read_metrics(tmp_path / "a"), read_metrics(tmp_path / "b"))
    assert (found.old, found.new, found.change) == (0.5, 0.625, 0.125)
    assert found.interval == (0, 0)
