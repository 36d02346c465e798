import dataclasses
import json

import pytest
import torch

from wsss_blocks.metrics import EvaluationProtocol, hash_masks

FACTS = {
    "dataset": "VOC 2012",
    "split": "val",
    "num_images": 1449,
    "scales": (1.0, 1.25, 1.5),
    "flip": True,
    "refiner": "CRF(iterations=10)",
    "labels_used": False,
}


def test_line_says_everything_that_moves_the_number():
    protocol = EvaluationProtocol(
        **FACTS,
        scale_reduce="max",
        flip_reduce="sum",
        size_policy="pad",
        threshold=0.45,
        threshold_source="sweep on train masks",
        text="stand-in",
        ground_truth_hash="0123456789abcdef",
    )
    assert protocol.describe() == (
        "VOC 2012 val, 1449 images, scales 1/1.25/1.5 (max), flip (sum), refiner "
        "CRF(iterations=10), image labels not used, threshold 0.45 from sweep on train masks, "
        "sizes pad, absent both, ignore 255, text: stand-in, masks 0123456789abcdef"
    )


def test_line_of_a_cam_shouts_that_labels_were_used():
    protocol = EvaluationProtocol(
        **{**FACTS, "labels_used": True, "flip": False, "scales": [1]},
        threshold=(0.25, 0.7),
        threshold_source="preset",
    )
    assert "image labels USED" in protocol.describe()
    assert "threshold 0.25/0.7 from preset" in protocol.describe()
    assert "scales 1, no flip" in protocol.describe()


def test_survives_json_and_is_frozen():
    protocol = EvaluationProtocol(**FACTS, threshold=(0.2, 0.6), threshold_source="preset")
    restored = EvaluationProtocol.from_dict(json.loads(json.dumps(protocol.to_dict())))
    assert restored == protocol
    assert hash(restored) == hash(protocol)
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocol.flip = False


@pytest.mark.parametrize("missing", sorted(FACTS))
def test_nothing_that_moves_the_number_has_a_default(missing):
    facts = {k: v for k, v in FACTS.items() if k != missing}
    with pytest.raises(TypeError, match=missing):
        EvaluationProtocol(**facts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": ""}, "dataset must not be empty"),
        ({"refiner": ""}, "refiner must not be empty"),
        ({"num_images": -1}, "num_images must be >= 0, got -1"),
        ({"scales": ()}, "scales must be positive"),
        ({"scales": (1.0, 0.0)}, "scales must be positive"),
        ({"absent_rule": "none"}, "absent_rule must be one of"),
        ({"threshold": 0.5}, "threshold and threshold_source go together"),
        ({"threshold_source": "preset"}, "threshold and threshold_source go together"),
    ],
)
def test_impossible_values(change, message):
    with pytest.raises(ValueError, match=message):
        EvaluationProtocol(**{**FACTS, **change})


def test_hash_sees_pixels_sizes_and_order_but_not_the_container():
    one = torch.tensor([[0, 1, 2], [255, 0, 0]])
    other = one.T.contiguous()
    known = hash_masks([one, one + 0])
    assert len(known) == 16
    assert hash_masks(m for m in (one.to(torch.uint8), one.int())) == known
    assert hash_masks([torch.stack([one, one])]) == known
    assert len({known, hash_masks([one]), hash_masks([one, other]), hash_masks([other, one])}) == 4
    assert hash_masks([one.reshape(1, 6)]) != hash_masks([one])
    with pytest.raises(TypeError, match="masks must be an integer tensor"):
        hash_masks([one.float()])
