import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from strategies import generator, seeds

from wsss_blocks.data import FolderDataset, WeakLabels
from wsss_blocks.metrics import topk_accuracy, zero_shot_accuracy


def loop(scores, labels, ks):
    """Sort the classes of each image; those that tie with the right one come before it."""
    hits = dict.fromkeys(ks, 0)
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda c: (-row[c], c == label))
        for k in ks:
            hits[k] += label in order[:k]
    return tuple(hits[k] / len(labels) for k in ks)


@given(seeds, st.integers(1, 12), st.integers(1, 7), st.sampled_from([None, 1, 3]))
def test_topk_equals_the_loop(seed, images, classes, levels):
    g = generator(seed)
    scores = torch.randn(images, classes, generator=g)
    if levels:
        scores = torch.randint(levels, scores.shape, generator=g).float()
    labels = torch.randint(classes, (images,), generator=g)
    ks = (1, 2, 5)
    assert topk_accuracy(scores, labels, ks=ks) == pytest.approx(loop(scores, labels, ks))


@given(seeds, st.integers(1, 12), st.integers(1, 7))
def test_zero_shot_is_topk_of_cosines(seed, images, classes):
    g = generator(seed)
    features, texts = (torch.randn(n, 5, generator=g).double() for n in (images, classes))
    labels = torch.randint(classes, (images,), generator=g)
    scores = torch.zeros(images, classes, dtype=torch.float64)
    for i in range(images):
        for c in range(classes):
            scores[i, c] = torch.cosine_similarity(features[i], texts[c], dim=0)
    found = zero_shot_accuracy(features, labels, texts)
    assert found == pytest.approx(loop(scores, labels, (1, 5)))
    assert zero_shot_accuracy(7 * features, labels.int(), texts / 3) == found


def test_collapsed_features_are_never_right():
    labels = torch.arange(6)
    assert zero_shot_accuracy(torch.ones(6, 3), labels, torch.ones(6, 3)) == (0.0, 0.0)
    assert zero_shot_accuracy(torch.zeros(6, 3), labels, torch.rand(6, 3)) == (0.0, 0.0)
    assert zero_shot_accuracy(torch.eye(6), labels, torch.eye(6)) == (1.0, 1.0)
    assert zero_shot_accuracy(torch.rand(2, 3), torch.zeros(2).long(), torch.rand(1, 3)) == (1, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype):
    g = generator(0)
    features, texts = (torch.randn(9, 4, generator=g).to(dtype) for _ in range(2))
    labels = torch.randint(9, (9,), generator=g)
    expected = zero_shot_accuracy(features.double(), labels, texts.double())
    assert zero_shot_accuracy(features, labels, texts) == expected


def test_a_folder_per_class(tmp_path):
    for name, shade in (("dark", 10), ("light", 240)):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (3, 2), (shade + i,) * 3).save(tmp_path / name / f"{i}.png")
    labels = WeakLabels.from_folders(tmp_path)
    samples = list(FolderDataset(tmp_path, labels))
    assert labels.names == ("dark", "light")
    shades = torch.stack([s["image"].mean() for s in samples])
    features = torch.stack([1 - shades, shades], 1)
    found = torch.stack([s["labels"].argmax() for s in samples])
    assert found.tolist() == [0, 0, 1, 1]
    assert zero_shot_accuracy(features, found, torch.eye(2), ks=(1,)) == (1.0,)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"features": torch.rand(3)}, ValueError, r"features must have shape \(N, D\)"),
        ({"classes": torch.rand(4, 3)}, ValueError, r"classes must have shape .*D=2"),
        ({"features": torch.ones(3, 2).long()}, TypeError, "features must be a floating-point"),
        ({"classes": torch.full((4, 2), torch.inf)}, ValueError, "classes must be finite"),
        ({"classes": torch.ones(4, 2, device="meta")}, ValueError, "classes must be on the device"),
        ({"labels": torch.zeros(2).long()}, ValueError, "labels must have shape .*N=3"),
        ({"labels": torch.zeros(3)}, TypeError, "labels must be an integer tensor"),
        ({"labels": torch.tensor([0, 4, 1])}, ValueError, r"labels must be in \[0, 4\), got 4"),
        ({"labels": torch.tensor([0, -1, 1])}, ValueError, r"labels must be in \[0, 4\), got -1"),
        ({"ks": (0,)}, ValueError, "ks must be at least 1"),
        ({"ks": 1}, TypeError, "ks must be a sequence"),
    ],
)
def test_refuses(changed, error, message):
    given = {"features": torch.rand(3, 2), "labels": torch.zeros(3).long()}
    given |= {"classes": torch.rand(4, 2)} | changed
    with pytest.raises(error, match=message):
        zero_shot_accuracy(**given)
