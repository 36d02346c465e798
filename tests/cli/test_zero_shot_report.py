from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from contract import assert_close
from oracles import retrieval as oracle
from PIL import Image
from two_ranks import run_two_ranks

from wsss_blocks.backbones import TextBank
from wsss_blocks.cli import evaluate_zero_shot, score_retrieval
from wsss_blocks.data import DIGIT_NAMES, Scenes
from wsss_blocks.metrics import (
    EvaluationProtocol,
    SegmentationEvaluator,
    mean_average_precision,
    read_metrics,
    retrieval_chance,
)
from wsss_blocks.refine import NoRefiner
from wsss_blocks.segmenters import ZeroShotSegmenter, create_loda, zero_shot_bank

PROTOCOL = EvaluationProtocol(
    dataset="scenes", split="val", num_images=99, scales=(2.0,), flip=True, refiner="par",
    labels_used=True, ground_truth_hash="abc",
)  # fmt: skip
THRESHOLDS = [i / 50 for i in range(1, 50)]
OPTIONS = {"size": 64, "sigma": 0.5, "closing": 1, "upsampling": "bilinear"}


class Few:
    """Some scenes; with ``without``, samples lack what it names."""

    def __init__(self, split, size=4, *, without=()):
        self.scenes, self.without = Scenes(split, size=size, with_masks=True), without
        self.names, self.ids = self.scenes.names, self.scenes.ids

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        return {k: v for k, v in self.scenes[index].items() if k not in self.without}


class Blank(Few):
    """Masks of background."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return sample | {"mask": torch.zeros_like(sample["mask"])}


class Untouched(Few):
    def __getitem__(self, index):
        raise AssertionError("not to be read")


def model(seed=2):
    torch.manual_seed(seed)
    words = [*DIGIT_NAMES, "a", "an", "and", "background"]
    return create_loda(words=words, dim=24, image_norm=True).eval()


def segmenter(**options):
    made = model()
    bank = zero_shot_bank(made, DIGIT_NAMES, templates=["{}", "a {}"])
    return ZeroShotSegmenter(made, bank, **(OPTIONS | options))


def run(output, made=None, val=None, **options):
    made = segmenter() if made is None else made
    given = {"protocol": PROTOCOL, "train": Few("train"), "figure_images": 2} | options
    return evaluate_zero_shot(output, made, val or Few("val"), **given)


def miou(samples, mask_of):
    evaluator = SegmentationEvaluator(11)
    for i in range(len(samples)):
        sample = samples[i]
        evaluator.update(mask_of(sample)[None], sample["mask"][None])
    return evaluator.compute().miou


def chosen_mask(threshold):
    made = segmenter(threshold=threshold)
    return lambda sample: made.segment(sample["image"]).mask


def labelled_mask(threshold):
    """What a segmenter finds that knows no other classes than those of the image."""
    whole = segmenter()

    def mask_of(sample):
        ids = sample["labels"].nonzero().flatten()
        names = [DIGIT_NAMES[i] for i in ids]
        bank = TextBank(whole.bank.classes[ids], None, names=names, source="some")
        few = OPTIONS | {"sigma": None, "most": len(ids), "score_background": False}
        small = ZeroShotSegmenter(whole.model, bank, threshold=threshold, **few)
        return torch.cat([torch.zeros(1).long(), ids + 1])[small.segment(sample["image"]).mask]

    return mask_of


def test_numbers_are_those_of_a_loop_and_thresholds_those_of_training_images(tmp_path):
    results = run(tmp_path, seed=7, extra={"train_seconds": 1.5})
    saved = read_metrics(tmp_path / "metrics.json")
    best = {}
    for name, maker in (("zero_shot", chosen_mask), ("zero_shot_labels", labelled_mask)):
        curve = [miou(Few("train"), maker(t)) for t in THRESHOLDS]
        best[name] = THRESHOLDS[curve.index(max(curve))]
        of_val = miou(Few("val"), maker(best[name]))
        assert results[f"{name}_miou"] == pytest.approx(of_val, abs=1e-9)
        for key in (name, f"{name}_miou"):
            protocol = saved.protocol[key]
            assert protocol.threshold == pytest.approx(best[name])
            assert protocol.threshold_source == "masks of 4 training images"
            assert protocol.labels_used == (name == "zero_shot_labels")
            assert (protocol.dataset, protocol.num_images) == ("scenes", 4)
            assert (protocol.scales, protocol.flip, protocol.refiner) == ((1.0,), False, "none")
            assert (protocol.size_policy, protocol.ground_truth_hash) == ("64 square", "abc")
        assert saved.results[f"{name}/miou"] == pytest.approx(results[f"{name}_miou"], abs=1e-6)
    assert (saved.run["seed"], saved.run["train_seconds"]) == (7, 1.5)
    assert saved.run["evaluation_seconds"] > 0
    # The masks of validation images choose nothing.
    assert run(tmp_path / "b", val=Blank("val")) != results
    blank = read_metrics(tmp_path / "b" / "metrics.json").protocol
    assert {n: p.threshold for n, p in blank.items()} == {
        n: p.threshold for n, p in saved.protocol.items()
    }


def test_the_choice_of_classes_is_scored_by_cosines(tmp_path):
    results, made, val = run(tmp_path, train=None), segmenter(), Few("val")
    images = torch.stack([val[i]["image"] for i in range(4)])
    small = F.interpolate(images, (64, 64), mode="bilinear", antialias=True)
    with torch.no_grad():
        scores = F.normalize(made.model.encode_image(small)) @ made.bank.classes.T
    labels = torch.stack([val[i]["labels"] for i in range(4)])
    assert results["class_ap"] == pytest.approx(mean_average_precision(scores, labels))
    protocol = read_metrics(tmp_path / "metrics.json").protocol
    assert (protocol["class_ap"].threshold, protocol["zero_shot"].threshold) == (None, 0.5)
    assert protocol["zero_shot"].threshold_source == "preset"
    # A background that is not scored makes no difference to the names.
    plain = run(tmp_path / "b", segmenter(score_background=False), train=None)
    assert plain["class_ap"] == results["class_ap"]
    assert set(results) == {"zero_shot_miou", "zero_shot_labels_miou", "class_ap"}


def test_a_refiner_has_no_threshold(tmp_path):
    refined = segmenter(refiner=NoRefiner())
    results = run(tmp_path, refined, train=Untouched("train"))
    protocol = read_metrics(tmp_path / "metrics.json").protocol["zero_shot"]
    assert (protocol.threshold, protocol.threshold_source) == (None, None)
    assert protocol.refiner.startswith("binary NoRefiner")
    assert not (tmp_path / "figures" / "thresholds.png").exists()
    expected = miou(Few("val"), lambda sample: refined.segment(sample["image"]).mask)
    assert results["zero_shot_miou"] == pytest.approx(expected, abs=1e-9)


def test_data_without_image_labels_take_those_of_the_masks(tmp_path):
    expected = run(tmp_path / "a")
    found = run(
        tmp_path / "b", val=Few("val", without=("labels",)),
        train=Few("train", without=("labels",)),
    )  # fmt: skip
    assert found == expected


def test_figures(tmp_path):
    run(tmp_path, figure_images=2)
    sizes = {}
    for path in (tmp_path / "figures").iterdir():
        with Image.open(path) as figure:
            assert figure.format == "PNG"
            sizes[path.name] = figure.size
    assert set(sizes) == {"masks.png", "patches.png", "class_scores.png", "thresholds.png"}
    run(tmp_path / "more", figure_images=4)
    with Image.open(tmp_path / "more" / "figures" / "masks.png") as figure:
        assert figure.size[1] > sizes["masks.png"][1]
    run(tmp_path / "none", figure_images=0)
    assert {p.name for p in (tmp_path / "none" / "figures").iterdir()} == {
        "class_scores.png", "thresholds.png",
    }  # fmt: skip


def test_samples_without_a_mask_are_named(tmp_path):
    with pytest.raises(ValueError, match="samples must have a mask"):
        run(tmp_path, val=Few("val", without=("mask",)), train=None)


def test_retrieval_is_part_of_it(tmp_path):
    pairs = Few("val", 9)
    results = run(tmp_path, train=None, pairs=pairs, every_caption=False)
    made = segmenter()
    wanted = score_retrieval(made.model, pairs, size=64, every_caption=False)
    assert {name: results[name] for name in wanted} == wanted
    protocol = read_metrics(tmp_path / "metrics.json").protocol["image_to_text_r1"]
    assert (protocol.dataset, protocol.split, protocol.num_images) == ("captions", "held out", 9)
    assert (protocol.threshold, protocol.refiner) == (None, "none")


def by_hand(made, pairs, ks, *, size=None, first=False):
    """Encode images and captions one by one; equal captions are one."""
    image, text, owners, said = [], [], [], []
    with torch.no_grad():
        for i in range(len(pairs)):
            x = pairs[i]["image"][None]
            if size is not None:
                x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
            image.append(made.encode_image(x)[0].tolist())
            for caption in pairs[i]["captions"][: 1 if first else None]:
                text.append(made.encode_text(*made.tokenize([caption]))[0].tolist())
                owners.append(i)
                said.append(caption)
    groups = [said.index(caption) for caption in said]
    found = oracle.grouped_scores(image, text, owners, groups, ks)
    return (*found, torch.tensor(owners), torch.tensor(groups))


@pytest.mark.parametrize(("size", "first"), [(None, False), (48, True)])
def test_retrieval_equals_a_loop(size, first):
    made, pairs, ks = model(), Few("val", 9), (1, 3)
    options = {"size": size, "every_caption": not first, "ks": ks}
    found = score_retrieval(made, pairs, **options)
    to_text, to_image, owners, groups = by_hand(made, pairs, ks, size=size, first=first)
    assert len(groups.unique()) < len(groups)  # some captions are said of several images
    for k, text, image in zip(ks, to_text, to_image, strict=True):
        assert found[f"image_to_text_r{k}"] == pytest.approx(text)
        assert found[f"text_to_image_r{k}"] == pytest.approx(image)
    assert found["mean_recall"] == pytest.approx(sum([*to_text, *to_image]) / 4)
    chance = retrieval_chance(owners, images=9, ks=(1,), groups=groups)
    assert found["chance_image_to_text_r1"] == pytest.approx(chance.image_to_text[0])
    assert found["chance_text_to_image_r1"] == pytest.approx(chance.text_to_image[0])
    for batch_size in (1, 5, 1000):
        assert score_retrieval(made, pairs, batch_size=batch_size, **options) == found


def test_perfect_retrieval_stays_within_fractions():
    class Same(torch.nn.Module):
        """Images and captions are numbered alike."""

        def encode_image(self, images, normalize=True):
            return F.one_hot((images[:, 0, 0, 0] * 10).round().long(), 10).float()

        def tokenize(self, texts):
            return torch.tensor([[int(t)] for t in texts]), torch.ones(len(texts), 1).bool()

        def encode_text(self, ids, mask=None, normalize=True):
            return F.one_hot(ids[:, 0], 10).float()

    pairs = [{"image": torch.full((3, 2, 2), i / 10), "captions": [str(i)]} for i in range(7)]
    found = score_retrieval(Same(), pairs)
    assert_close(torch.tensor([found.pop(n) for n in list(found) if "chance" in n]), [1 / 7, 1 / 7])
    assert set(found.values()) == {1.0}


SCRIPT = """
import sys
from pathlib import Path

import torch.distributed as dist

sys.path[:0] = sys.argv[3:]
from test_zero_shot_report import Few, run

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
options = {"val": Few("val", 3), "pairs": Few("val", 5), "train": Few("train", 3),
           "figure_images": 1}
alone = run(folder / f"alone {rank}", **options)
store = f"file://{folder / 'store'}"
dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
read, take = [], Few.__getitem__
Few.__getitem__ = lambda self, index: read.append((self, index)) or take(self, index)
both = run(folder / "both", **options)
assert [i for few, i in read if few is options["pairs"]] == list(range(rank, 5, 2))
assert both.keys() == alone.keys()
for name, value in alone.items():
    assert abs(both[name] - value) < 1e-12, (name, both[name], value)
try:
    run(folder / "few", val=Few("val", 1), train=None)
except ValueError as error:
    assert "at least one for each of 2 processes" in str(error)
    print("equal")
dist.destroy_process_group()
"""


@pytest.mark.ddp
def test_two_processes_score_like_one(tmp_path):
    here = Path(__file__).parent
    run_two_ranks(SCRIPT, tmp_path, here, here.parent, timeout=180)
    first, both = (read_metrics(tmp_path / n / "metrics.json") for n in ("alone 0", "both"))
    assert first.results == both.results
    assert first.protocol == both.protocol
