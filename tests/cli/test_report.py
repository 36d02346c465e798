import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from two_ranks import run_two_ranks

from wsss_blocks.cli import evaluate_system
from wsss_blocks.data import Scenes
from wsss_blocks.metrics import EvaluationProtocol, mean_average_precision, read_metrics
from wsss_blocks.refine import DenseCRF, NoRefiner


class Known:
    """Three scenes, and functions that know their masks by the image."""

    def __init__(self, split):
        self.scenes = Scenes(split, size=3, with_masks=True)
        self.names, self.ids = self.scenes.names, self.scenes.ids

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.scenes[index]

    def mask(self, images):
        for i in range(3):
            if torch.equal(self[i]["image"], images[0].cpu()):
                return self[i]["mask"][None]
        raise AssertionError("an image that is not of this split")

    def one_hot(self, images):
        return F.one_hot(self.mask(images), 11).permute(0, 3, 1, 2).float()


def run(tmp_path, **changes):
    val, train = Known("val"), Known("train")

    def class_maps(images, _):
        known = val if any(torch.equal(val[i]["image"], images[0]) for i in range(3)) else train
        return {"cam": known.one_hot(images)[:, 1:]}

    def pseudo_label(images, labels, box):
        known = val if any(torch.equal(val[i]["image"], images[0]) for i in range(3)) else train
        label = known.mask(images).clone()
        label[:, :48] = 255
        return label

    protocol = EvaluationProtocol(
        dataset="scenes", split="val", num_images=3, scales=(1,), flip=False, refiner="none",
        labels_used=False, threshold=0.25, threshold_source="preset",
    )  # fmt: skip
    options = {
        "class_maps": class_maps, "pseudo_label": pseudo_label, "logits": val.one_hot, "val": val,
        "train": train, "protocol": protocol, "refiner": NoRefiner(), "seed": 7,
        "extra": {"train_seconds": 1.5},
    }  # fmt: skip
    return evaluate_system(tmp_path, **(options | changes))


def test_a_system_that_knows_the_truth_scores_one(tmp_path):
    results = run(tmp_path)
    for name in ("cam_miou", "cam_par_miou", "pseudo_label_miou", "seg_miou"):
        assert results[name] == pytest.approx(1.0), name
    assert results["pseudo_label_decided"] == pytest.approx(0.5)


def test_each_number_says_how_it_was_made(tmp_path):
    run(tmp_path)
    recorded = read_metrics(tmp_path / "metrics.json")
    assert recorded.protocol["cam_miou"].labels_used
    assert recorded.protocol["cam_miou"].threshold_source == "masks of 3 training images"
    assert recorded.protocol["cam_par_miou"].refiner == "NoRefiner()"
    assert not recorded.protocol["seg_miou"].labels_used
    assert recorded.protocol["seg_miou"].threshold is None
    assert recorded.protocol["pseudo_label_miou"].split.startswith("train (first 3)")
    assert recorded.run["seed"] == 7
    assert recorded.run["train_seconds"] == 1.5
    assert recorded.run["peak_memory_mib"] > 10
    assert json.loads((tmp_path / "metrics.json").read_text())["unit"] == "per cent"
    for name in ("segmentation", "thresholds"):
        with Image.open(tmp_path / "figures" / f"{name}.png") as figure:
            assert min(figure.size) > 100


def test_without_training_masks_or_decoder(tmp_path):
    results = run(tmp_path, train=None, logits=None)
    assert set(results) == {"cam_miou", "cam_par_miou"}
    recorded = read_metrics(tmp_path / "metrics.json")
    assert recorded.protocol["cam_miou"].threshold_source == "preset"
    assert recorded.protocol["cam_miou"].threshold == pytest.approx(0.25)


def test_masks_that_need_a_whole_sample_are_scored_on_training_images(tmp_path):
    seen = []

    def upper_half(sample):
        seen.append(sample["id"])
        mask = sample["mask"].clone()
        mask[48:] = 255
        return mask

    masks = {"initial": upper_half, "mask": lambda sample: torch.zeros_like(sample["mask"])}
    results = run(tmp_path, pseudo_label=None, masks=masks, figure_images=1)
    assert {"cam_miou", "seg_miou", "initial_miou", "mask_miou", "mask_multi_miou"} < set(results)
    assert not [name for name in results if name.startswith("pseudo_label")]
    assert seen == [f"train_{i:05d}" for i in range(3)]
    assert results["initial_miou"] == 1.0
    assert results["initial_decided"] == pytest.approx(0.5)
    assert results["mask_decided"] == 1.0
    assert 0 < results["mask_miou"] < 0.5
    recorded = read_metrics(tmp_path / "metrics.json")
    protocol = recorded.protocol["initial_miou"]
    assert (protocol.labels_used, protocol.num_images) == (True, 3)
    assert protocol.split == "train (first 3), decided pixels"
    assert protocol.refiner == "NoRefiner()"
    several = sum(
        int(sample["labels"].sum()) > 1 for sample in map(Known("train").__getitem__, range(3))
    )
    assert recorded.protocol["mask_multi_miou"].num_images == several
    assert (tmp_path / "figures" / "segmentation.png").is_file()


def test_how_masks_from_elsewhere_were_refined_is_not_stated(tmp_path):
    options = {"masks": {"mask": lambda sample: sample["mask"]}, "refiner": None, "refine": "none"}
    run(tmp_path, pseudo_label=None, class_maps=None, figure_images=1, **options)
    assert read_metrics(tmp_path / "metrics.json").protocol["mask_miou"].refiner == "not stated"
    with pytest.raises(ValueError, match="refiner must be given for pseudo_label"):
        run(tmp_path, **options)
    with pytest.raises(ValueError, match="and for refined maps"):
        run(tmp_path, **(options | {"pseudo_label": None, "refine": "par"}))


def test_pseudo_labels_and_masks_are_scored_together(tmp_path):
    masks = {"mask": lambda sample: sample["mask"]}
    results = run(tmp_path, masks=masks, figure_images=1)
    assert results["pseudo_label_miou"] == results["mask_miou"] == 1.0
    assert (results["pseudo_label_decided"], results["mask_decided"]) == (0.5, 1.0)
    # without masks of training images there is nothing to compare them with
    assert "mask_miou" not in run(tmp_path, masks=masks, train=None, figure_images=1)


@pytest.mark.parametrize("refine", ["par", "crf"])
def test_class_maps_may_depend_on_the_labels(refine, tmp_path):
    seen, val, train = [], Known("val"), Known("train")

    def class_maps(images, labels):
        known = next(s for x in (val, train) for s in map(x.__getitem__, range(3))
                     if torch.equal(s["image"], images[0]))  # fmt: skip
        assert torch.equal(labels, known["labels"][None])
        seen.append(known["id"])
        return {"cam": labels[:, :, None, None] * torch.ones(1, 1, 4, 4)}

    run(tmp_path, class_maps=class_maps, refine=refine, figure_images=1)
    assert set(seen) == {*val.ids, *train.ids}


def test_a_given_crf_is_the_one_that_scores(tmp_path):
    crf = DenseCRF.preset("dhr")
    results = run(tmp_path, refine="crf", crf=crf, figure_images=1)
    assert "cam_par_miou" not in results
    protocols = read_metrics(tmp_path / "metrics.json").protocol
    for name in ("cam_crf_miou", "seg_crf_miou"):
        assert name in results
        assert protocols[name].refiner.startswith(str(crf))


def colour_scores(images):
    """What a poor classifier could say."""
    means = images.mean((2, 3))
    return {"token": means.repeat(1, 4)[:, :10], "patch": images.std((2, 3)).repeat(1, 4)[:, 2:]}


def test_classifiers_are_scored_by_average_precision(tmp_path):
    results = run(tmp_path, class_scores=colour_scores, figure_images=1)
    samples = [Known("val")[i] for i in range(3)]
    labels = torch.stack([s["labels"] for s in samples])
    rows = [colour_scores(s["image"][None]) for s in samples]
    recorded = read_metrics(tmp_path / "metrics.json")
    for name in ("token", "patch"):
        expected = mean_average_precision(torch.cat([row[name] for row in rows]), labels)
        assert results[f"{name}_ap"] == pytest.approx(expected)
        assert recorded.results[f"{name}_ap"] == pytest.approx(expected, abs=1e-5)
        protocol = recorded.protocol[f"{name}_ap"]
        assert not protocol.labels_used
        assert (protocol.threshold, protocol.refiner, protocol.num_images) == (None, "none", 3)
    assert {"cam_miou", "seg_miou"} < set(results)
    assert not [name for name in run(tmp_path, figure_images=1) if name.endswith("_ap")]


def test_a_perfect_classifier_scores_one_and_sees_squares(tmp_path):
    val, seen = Known("val"), []

    def class_scores(images):
        seen.append(images.shape)
        labels = next(s["labels"] for s in map(val.__getitem__, range(3)) if close(s, images))
        return {"token": (labels[None] - 0.5).requires_grad_()}

    def close(sample, images):
        small = F.interpolate(sample["image"][None], (40, 40), mode="bilinear")
        return torch.equal(small, images)

    maps = {"class_maps": lambda *_: {"cam": torch.rand(1, 10, 3, 3)}, "logits": None}
    label = {"pseudo_label": lambda *_: torch.zeros(1, 40, 40, dtype=torch.int64)}
    results = run(tmp_path, size=40, class_scores=class_scores, **maps, **label)
    assert seen == [(1, 3, 40, 40)] * 3
    assert results["token_ap"] == 1.0


SCRIPT = """
import sys
from pathlib import Path

import torch.distributed as dist

sys.path[:0] = sys.argv[3:]
from test_report import colour_scores, run

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
options = {"class_scores": colour_scores, "logits": None, "train": None, "figure_images": 1}
alone = run(folder / f"alone {rank}", **options)
store = f"file://{folder / 'store'}"
dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
both = run(folder / "both", **options)
for name in ("token_ap", "patch_ap"):
    assert abs(both[name] - alone[name]) < 1e-12, name
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_score_classifiers_like_one(tmp_path):
    here = Path(__file__).parent
    run_two_ranks(SCRIPT, tmp_path, here, here.parent, timeout=180)


def test_the_functions_see_squares_and_are_scored_at_full_size(tmp_path):
    seen = {"logits": set(), "maps": set(), "labels": set()}

    def logits(images):
        seen["logits"].add(images.shape[-2:])
        return torch.zeros(1, 11, 4, 4).index_fill_(1, torch.tensor([0]), 1.0)

    def class_maps(images, _):
        seen["maps"].add(images.shape[-2:])
        return {"cam": torch.rand(1, 10, 3, 3)}

    def pseudo_label(images, labels, box):
        seen["labels"].add(images.shape[-2:])
        return torch.zeros(1, 40, 40, dtype=torch.int64)

    results = run(
        tmp_path, size=40, logits=logits, class_maps=class_maps, pseudo_label=pseudo_label
    )
    # A segmenter squeezes the image itself.
    assert seen == {"logits": {(96, 96)}, "maps": {(40, 40)}, "labels": {(40, 40)}}
    assert 0 < results["seg_miou"] < 0.2


def test_without_masks_nothing_is_scored_but_the_figure_is_drawn(tmp_path, capsys):
    class NoMasks(Known):
        def __getitem__(self, index):
            sample = dict(self.scenes[index])
            del sample["mask"]
            return sample

        def mask(self, images):
            return Known.mask(Known("val"), images)

    val = NoMasks("val")
    results = run(tmp_path, val=val, train=NoMasks("train"), logits=val.one_hot)
    assert results == {}
    assert "no masks: nothing is scored" in capsys.readouterr().out
    assert (tmp_path / "figures" / "segmentation.png").is_file()
    assert not (tmp_path / "metrics.json").exists()
    # Masks of the training images alone choose nothing: the preset's threshold is used.
    results = run(tmp_path, train=NoMasks("train"))
    assert "pseudo_label_miou" not in results
    protocol = read_metrics(tmp_path / "metrics.json").protocol["cam_miou"]
    assert (protocol.threshold, protocol.threshold_source) == (0.25, "preset")
