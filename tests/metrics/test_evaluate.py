import pytest
import torch

from wsss_blocks.cam import cam_to_label
from wsss_blocks.metrics import (
    EvaluationProtocol,
    SegmentationEvaluator,
    evaluate_masks,
    score_maps,
    sweep_maps,
)


def samples(n, seed=0, classes=3):
    g = torch.Generator().manual_seed(seed)
    found = []
    for i in range(n):
        size = (8 + i, 12)
        labels = (torch.rand(classes, generator=g) < 0.6).float()
        mask = torch.randint(0, classes + 1, size, generator=g)
        mask[0] = 255
        found.append({"image": torch.rand(3, *size, generator=g), "labels": labels, "mask": mask})
    return found


def maps_fn(images, labels):
    return {"a": images[:, :, ::2, ::2], "b": images.square()}


def protocol(**changes):
    fields = {
        "dataset": "toy", "split": "val", "num_images": 4, "scales": (1,), "flip": False,
        "refiner": "none", "labels_used": True,
    }  # fmt: skip
    return EvaluationProtocol(**(fields | changes))


def direct(items, name, threshold):
    evaluator = SegmentationEvaluator(4)
    for s in items:
        cam, labels = maps_fn(s["image"][None], None)[name], s["labels"][None]
        label = cam_to_label(cam, labels, size=s["mask"].shape, threshold=threshold)
        evaluator.update(label, s["mask"][None])
    return evaluator.compute().miou


@pytest.mark.parametrize("name", ["a", "b"])
def test_threshold_comes_from_the_other_images(name):
    val, train = samples(4), samples(5, seed=1)
    scored = score_maps(maps_fn, val, protocol=protocol(), num_classes=4, chosen_on=train)
    threshold = scored.protocol[name].threshold
    assert scored.miou[name] == pytest.approx(direct(val, name, threshold), abs=1e-9)
    best = max(direct(train, name, t / 100) for t in range(100))
    assert direct(train, name, threshold) == pytest.approx(best, abs=1e-9)
    assert scored.protocol[name].threshold_source == "masks of 5 training images"
    thresholds, curve = scored.curves[name]
    assert len(thresholds) == len(curve) == 100


def test_preset_threshold_is_used_and_named():
    given = protocol(threshold=0.3, threshold_source="preset")
    scored = score_maps(maps_fn, samples(3), protocol=given, num_classes=4)
    assert scored.protocol["a"].threshold == pytest.approx(0.3)
    assert scored.protocol["a"].threshold_source == "preset"
    assert scored.miou["a"] == pytest.approx(direct(samples(3), "a", 0.3), abs=1e-9)
    with pytest.raises(ValueError, match="protocol must have a threshold"):
        score_maps(maps_fn, samples(3), protocol=protocol(), num_classes=4)


def test_undecided_pixels_are_not_scored():
    def predict(sample):
        predicted = sample["mask"].clamp_max(3)
        predicted[:, :6] = 255
        return predicted

    items = samples(3)
    evaluator = evaluate_masks(predict, items, num_classes=4)
    assert evaluator.compute().miou == pytest.approx(1.0)
    scored = sum(int((s["mask"][:, 6:] != 255).sum()) for s in items)
    assert int(evaluator.regions.counts.sum()) == scored


def test_no_samples_is_an_error():
    with pytest.raises(ValueError, match="at least one for each of 1 processes, got 0"):
        sweep_maps(maps_fn, [], num_classes=4)
    with pytest.raises(ValueError, match="at least one for each of 1 processes, got 0"):
        evaluate_masks(lambda s: s["mask"], [], num_classes=4)
