from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from wsss_blocks.cli.refined import score_behind_crf, score_refined_logits, score_refined_maps
from wsss_blocks.data import Scenes
from wsss_blocks.metrics import EvaluationProtocol
from wsss_blocks.refine import DenseCRF, NoRefiner
from wsss_blocks.segmenters import SegmentationNetwork, Segmenter

PLAIN = EvaluationProtocol(
    dataset="scenes", split="val", num_images=2, scales=(1.0,), flip=False, refiner="none",
    labels_used=False,
)  # fmt: skip
MAPS = replace(PLAIN, labels_used=True, threshold=0.3, threshold_source="preset")


@pytest.fixture
def val():
    return Scenes("val", size=2, with_masks=True)


def one_hot(val, images):
    index = next(i for i in range(2) if torch.equal(val[i]["image"], images[0]))
    return F.one_hot(val[index]["mask"][None], 11).permute(0, 3, 1, 2).float()


def test_what_is_right_before_the_crf_is_nearly_right_behind_it(val):
    found = score_behind_crf(
        lambda images, _: {"cam": one_hot(val, images)[:, 1:]},
        lambda images: 9 * one_hot(val, images),
        val,
        maps_protocols={"cam": MAPS},
        protocol=PLAIN,
    )
    assert set(found) == {"cam_crf_miou", "seg_crf_miou"}
    for scores, protocol in found.values():
        assert scores.miou > 0.8
        constants = "iterations=10, gaussian=(1.0, 1.0), bilateral=(121.0, 5.0, 4.0)"
        assert f"DenseCRF({constants}" in protocol.refiner
    assert found["cam_crf_miou"][1].threshold == 0.3
    assert found["cam_crf_miou"][1].labels_used
    assert not found["seg_crf_miou"][1].labels_used
    assert "probability of 0.05" in found["seg_crf_miou"][1].refiner


def test_a_given_crf_takes_the_place_of_deeplabs(val):
    crf = DenseCRF.preset("dhr")
    found = score_behind_crf(
        lambda images, _: {"cam": one_hot(val, images)[:, 1:]},
        lambda images: 9 * one_hot(val, images),
        val,
        maps_protocols={"cam": MAPS},
        protocol=PLAIN,
        crf=crf,
    )
    assert str(crf) != str(DenseCRF.preset("deeplab"))
    assert found["cam_crf_miou"][1].refiner == str(crf)
    assert found["seg_crf_miou"][1].refiner.startswith(str(crf))
    expected = score_refined_logits(
        lambda images: 9 * one_hot(val, images), crf, val, protocol=PLAIN
    )
    assert found["seg_crf_miou"][0].miou == expected[0].miou


class Heavy:
    """A refiner that moves everything one pixel to the right and notes what it was given."""

    def __init__(self):
        self.seen = []

    def __call__(self, images, maps, *, labels=None, box=None, features=None):
        self.seen.append((images.shape[-2:], maps, labels))
        return NoRefiner()(images, maps, labels=labels).roll(1, -1)


def test_the_threshold_is_the_score_of_the_background(val):
    refiner, plain = Heavy(), {}
    for level in (0.2, 0.6):
        protocols = {"cam": replace(MAPS, threshold=level)}
        scores, protocol = score_refined_maps(
            lambda x, _: {"cam": one_hot(val, x)[:, 1:]}, refiner, val, protocols=protocols
        )["cam"]
        size, maps, labels = refiner.seen[-1]
        assert maps[:, 0].unique().tolist() == pytest.approx([level])
        assert size == (96, 96)
        assert torch.equal(labels[0], val[1]["labels"])
        assert "Heavy" in protocol.refiner
        plain[level] = scores.miou
    assert plain[0.2] == plain[0.6] < 1


def test_unlikely_classes_are_left_out(val):
    refiner = Heavy()
    score_refined_logits(lambda x: 9 * one_hot(val, x), refiner, val, protocol=PLAIN)
    for sample, (_, maps, labels) in zip((val[0], val[1]), refiner.seen, strict=True):
        assert torch.equal(labels[0], sample["labels"])
        assert maps.sum(1).allclose(torch.ones(1, 96, 96))
    uniform = Heavy()
    score_refined_logits(lambda _: torch.zeros(1, 11, 4, 4), uniform, val, protocol=PLAIN)
    assert uniform.seen[0][2].all()


def test_several_views_are_compared_with_one(val):
    torch.manual_seed(0)
    network = SegmentationNetwork("small-cnn", num_classes=11, hidden_dim=8).eval()
    many = replace(PLAIN, scales=(1.0, 1.5), flip=True)
    segmenter = Segmenter(network, names=val.names, protocol=many)
    found = score_behind_crf(lambda *_: {}, segmenter, val, maps_protocols={}, protocol=many)
    assert set(found) == {"seg_crf_miou", "seg_raw_miou"}
    protocol = found["seg_raw_miou"][1]
    assert (protocol.scales, protocol.flip, protocol.refiner) == ((1.0,), False, "none")
    once = Segmenter(network, names=val.names, protocol=PLAIN)
    expected, _ = score_refined_logits(once, NoRefiner(), val, protocol=PLAIN)
    assert found["seg_raw_miou"][0].miou == expected.miou
    assert set(score_behind_crf(lambda *_: {}, once, val, maps_protocols={}, protocol=PLAIN)) == {
        "seg_crf_miou"
    }
