import math
from pathlib import Path

import pytest
import torch
from oracles.segmentation_scores import confusion, scores
from strategies import generator, random_mask
from two_ranks import run_two_ranks

from wsss_blocks.cli import RunConfig, run_segmenter, score_train_masks, write_train_masks
from wsss_blocks.data import Scenes, WithPseudoMasks, read_mask
from wsss_blocks.metrics import EvaluationProtocol
from wsss_blocks.segmenters import SegmentationNetwork

LINE = EvaluationProtocol(
    dataset="pets", split="val", num_images=200, scales=(1.0,), flip=False, refiner="walk",
    labels_used=False, threshold=0.3, threshold_source="preset",
)  # fmt: skip


class Pets:
    """Images of different sizes; those with an odd index show both classes."""

    names, ids = ("cat", "dog"), [f"pet {i}" for i in range(5)]

    def __len__(self):
        return 5

    def __getitem__(self, index):
        labels = torch.tensor([1.0, float(index % 2)])
        mask = random_mask((3, 4 + index), 2 + index % 2, generator(index))
        return {"id": self.ids[index], "labels": labels, "mask": mask}


def guess(sample):
    """Ids that are sometimes right and sometimes undecided."""
    mask = random_mask(tuple(sample["mask"].shape), 3, generator(int(sample["id"][-1]) + 9))
    return mask.where(mask == 255, (mask + sample["mask"]) % 3).where(sample["mask"] != 255, 1)


def expected(chosen):
    pairs, labelled = [], 0
    for index in chosen:
        sample = Pets()[index]
        found, truth = guess(sample), sample["mask"]
        labelled += int((truth != 255).sum())
        pairs.append((found.tolist(), truth.masked_fill(found == 255, 255).tolist()))
    table = confusion(pairs, 3, 255)
    return scores(table, "both")["miou"], sum(map(sum, table)) / labelled


def test_scores_are_those_of_the_loops():
    results, _ = score_train_masks({"guess": guess}, Pets(), protocol=LINE)
    miou, decided = expected(range(5))
    assert results == {
        "guess_miou": pytest.approx(miou),
        "guess_decided": pytest.approx(decided),
        "guess_multi_miou": pytest.approx(expected([1, 3])[0]),
    }
    assert 0 < decided < 1


def test_each_number_says_how_it_was_made():
    right = {"guess": guess, "true": lambda sample: sample["mask"].byte()}
    results, protocols = score_train_masks(right, Pets(), protocol=LINE)
    assert results.keys() == protocols.keys()
    assert [results[f"true_{what}"] for what in ("miou", "decided", "multi_miou")] == [1.0] * 3
    for name, protocol in protocols.items():
        several = name.endswith("multi_miou")
        assert protocol.num_images == (2 if several else 5)
        assert protocol.split == "train (first 5), decided pixels" + (
            ", images of at least two classes" if several else ""
        )
        assert (protocol.labels_used, protocol.undecided) == (True, "ignored")
        assert (protocol.threshold, protocol.threshold_source) == (None, None)
        assert (protocol.refiner, protocol.dataset) == ("walk", "pets")
    assert score_train_masks({}, Pets(), protocol=LINE) == ({}, {})


class Part(Pets):
    def __init__(self, *indices):
        self.indices, self.ids = indices, [Pets.ids[i] for i in indices]

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        return Pets()[self.indices[index]]


def test_what_is_not_there_is_left_out_or_nan():
    results, _ = score_train_masks({"guess": guess}, Part(0, 2), protocol=LINE)
    assert set(results) == {"guess_miou", "guess_decided"}  # no image of two classes
    nothing = {"none": lambda sample: torch.full_like(sample["mask"], 255)}
    results, _ = score_train_masks(nothing, Pets(), protocol=LINE)
    assert results["none_decided"] == 0
    assert math.isnan(results["none_miou"])
    assert "none_multi_miou" not in results

    class Unlabelled(Part):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return sample | {"mask": torch.full_like(sample["mask"], 255)}

    results, _ = score_train_masks({"guess": guess}, Unlabelled(1), protocol=LINE)
    assert results["guess_decided"] == 0


@pytest.mark.parametrize("index", [0, 1])  # an image of one class, one of two
def test_masks_that_do_not_fit_are_named(index):
    for wrong, error, message in (
        (lambda s: s["mask"][:, :2], ValueError, r"pred.* have shape .*, got \(3, 2\)"),
        (lambda s: s["mask"].float(), TypeError, "pred.* must be an integer tensor"),
        (lambda s: torch.full_like(s["mask"], 3), ValueError, r"pred must hold ids in \[0, 3\)"),
    ):
        with pytest.raises(error, match=message):
            score_train_masks({"wrong": wrong}, Part(index), protocol=LINE)


def test_a_function_makes_the_masks_of_the_samples(tmp_path):
    scenes, seen = Scenes(size=3), []

    def made(sample):
        seen.append(sample["id"])
        first = int(sample["labels"].argmax()) + 1
        return torch.full(sample["image"].shape[1:], 255).index_fill_(0, torch.tensor([0]), first)

    folder = write_train_masks(made, scenes, str(tmp_path / "new" / "masks"))
    assert folder == tmp_path / "new" / "masks"
    assert seen == list(scenes.ids)
    assert sorted(p.name for p in folder.iterdir()) == [f"{name}.png" for name in scenes.ids]
    for i in range(3):
        sample = WithPseudoMasks(scenes, folder)[i]
        assert torch.equal(sample["pseudo_mask"].long(), made(sample).long())


def test_an_interrupted_run_goes_on(tmp_path):
    scenes, made = Scenes(size=4), []

    def interrupted(sample):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(sample["id"])
        return torch.ones(96, 96, dtype=torch.uint8)

    with pytest.raises(KeyboardInterrupt):
        write_train_masks(interrupted, scenes, tmp_path)
    again = []

    def zeros(sample):
        again.append(sample["id"])
        return torch.zeros(96, 96, dtype=torch.uint8)

    write_train_masks(zeros, scenes, tmp_path)
    assert made + again == list(scenes.ids)
    written = [read_mask(tmp_path / f"{name}.png").unique().tolist() for name in scenes.ids]
    assert written == [[1], [1], [0], [0]]
    with pytest.raises(TypeError, match="mask must hold integers"):
        write_train_masks(lambda sample: sample["image"][0], scenes, tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_a_segmenter_is_asked_among_the_classes_of_the_image(tmp_path):
    torch.manual_seed(0)
    scenes, network = Scenes(size=3), SegmentationNetwork(num_classes=11, hidden_dim=8)
    segmenter = run_segmenter(RunConfig(), network, scenes.names)
    folder = write_train_masks(segmenter, scenes, tmp_path / "masks")
    for i, name in enumerate(scenes.ids):
        image, labels = scenes[i]["image"], scenes[i]["labels"]
        with torch.no_grad():
            logits = segmenter(image[None])[0]
        allowed = [0, *(k + 1 for k in range(10) if labels[k] > 0)]
        expected = torch.tensor(allowed)[logits[allowed].argmax(0)]
        assert torch.equal(read_mask(folder / f"{name}.png").long(), expected)
    with pytest.raises(ValueError, match=r"source must know the classes .*'cat', 'dog'"):
        write_train_masks(segmenter, Pets(), tmp_path / "pets")
    assert not (tmp_path / "pets").exists()


SCRIPT = """
import sys
import torch.distributed as dist

sys.path[:0] = sys.argv[3:]
from test_train_masks import LINE, Part, Pets, guess
from wsss_blocks.cli import score_train_masks

alone = [score_train_masks({"g": guess}, data, protocol=LINE) for data in (Pets(), Part(0, 1))]
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
for data, expected in zip((Pets(), Part(0, 1)), alone, strict=True):
    assert score_train_masks({"g": guess}, data, protocol=LINE) == expected
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_score_like_one(tmp_path):
    here = Path(__file__).parent
    run_two_ranks(SCRIPT, tmp_path / "store", here, here.parent)
