import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from strategies import generator, random_labels, seeds

from wsss_blocks.metrics import mean_average_precision


def oracle(scores, labels):
    """scikit-learn's average precision of each class that an image shows, averaged by hand."""
    found = [
        average_precision_score(labels[:, k].numpy(), scores[:, k].double().numpy())
        for k in range(labels.shape[1])
        if labels[:, k].any()
    ]
    return sum(found) / len(found) if found else math.nan


def problem(seed, images, classes, *, levels=None):
    g = generator(seed)
    scores = torch.randn(images, classes, generator=g)
    if levels:
        scores = torch.randint(levels, (images, classes), generator=g).float()
    return scores, random_labels(images, classes, g)


@given(seeds, st.integers(1, 12), st.integers(1, 4), st.sampled_from([None, 1, 2, 4]))
def test_equals_scikit_learn_with_and_without_ties(seed, images, classes, levels):
    scores, labels = problem(seed, images, classes, levels=levels)
    found = mean_average_precision(scores, labels)
    assert found == pytest.approx(oracle(scores, labels), abs=1e-12, nan_ok=True)


def test_an_example_by_hand():
    # Ranks of the images of the class: 1 and 3 of the first, 2 of the second.
    scores = torch.tensor([[0.9, 0.4], [0.8, 0.3], [0.1, 0.2]])
    labels = torch.tensor([[1, 0], [0, 1], [1, 0]])
    expected = ((1 / 1 + 2 / 3) / 2 + 1 / 2) / 2
    assert mean_average_precision(scores, labels) == pytest.approx(expected)
    tied = torch.full((3, 2), 0.5)
    assert mean_average_precision(tied, labels) == pytest.approx((2 / 3 + 1 / 3) / 2)


def test_classes_that_no_image_shows_take_no_part():
    scores, labels = problem(0, 9, 4)
    labels[:, 1] = 0
    assert labels.any(0).tolist() == [True, False, True, True]
    some = [0, 2, 3]
    assert mean_average_precision(scores, labels) == mean_average_precision(
        scores[:, some], labels[:, some]
    )


@given(seeds, st.sampled_from([None, 3]))
def test_only_the_order_of_the_scores_counts(seed, levels):
    scores, labels = problem(seed, 8, 3, levels=levels)
    expected = mean_average_precision(scores, labels)
    scores = scores.double()
    for changed in (scores.exp(), 3 * scores - 7, scores**3, scores.atan()):
        assert mean_average_precision(changed, labels) == pytest.approx(expected, nan_ok=True)


@given(seeds, st.sampled_from([None, 2]))
def test_the_order_of_images_and_classes_does_not_count(seed, levels):
    scores, labels = problem(seed, 9, 3, levels=levels)
    expected = mean_average_precision(scores, labels)
    images, classes = (torch.randperm(n, generator=generator(seed)) for n in (9, 3))
    changed = (x[images][:, classes] for x in (scores, labels))
    assert mean_average_precision(*changed) == pytest.approx(expected, nan_ok=True)


def test_perfect_and_worst_rankings():
    labels = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    assert mean_average_precision(labels, labels) == 1
    assert mean_average_precision(1 - labels, labels) == pytest.approx(0.5)
    assert mean_average_precision(torch.rand(4, 1), torch.ones(4, 1)) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_any_precision_and_labels_of_any_kind(dtype):
    scores, labels = problem(1, 12, 3)
    scores = scores.to(dtype).requires_grad_()
    expected = oracle(scores.detach(), labels)
    for kind in (torch.float32, torch.int64, torch.bool):
        found = mean_average_precision(scores, labels.to(kind))
        assert isinstance(found, float)
        assert found == pytest.approx(expected)


def test_without_images_or_positives_it_is_undefined():
    assert math.isnan(mean_average_precision(torch.rand(0, 3), torch.rand(0, 3)))
    assert math.isnan(mean_average_precision(torch.rand(4, 3), torch.zeros(4, 3)))
    assert mean_average_precision(torch.rand(1, 1), torch.ones(1, 1)) == 1


@pytest.mark.parametrize(
    ("scores", "labels", "error", "message"),
    [
        (torch.rand(4), torch.ones(4), ValueError, r"scores must have shape \(B, K\), got \(4,\)"),
        (torch.rand(4, 0), torch.ones(4, 0), ValueError, r"scores must have shape .*got \(4, 0\)"),
        (torch.rand(4, 2), torch.ones(3, 2), ValueError, "labels must have shape .* with B=4, K=2"),
        (torch.rand(4, 2), torch.ones(4, 3), ValueError, "is there a background column too many"),
        (torch.rand(4, 2), torch.full((4, 2), 2.0), ValueError, "labels must be multi-hot"),
        (torch.full((4, 2), torch.inf), torch.ones(4, 2), ValueError, "scores must be finite"),
        (torch.full((4, 2), torch.nan), torch.ones(4, 2), ValueError, "scores must be finite"),
        (torch.ones(4, 2).long(), torch.ones(4, 2), TypeError, "scores must be a floating-point"),
        ([[0.5]], torch.ones(1, 1), TypeError, "scores must be a torch.Tensor, got list"),
        (torch.rand(4, 2), torch.ones(4, 2, device="meta"), ValueError, "labels must be on cpu"),
    ],
)
def test_refuses(scores, labels, error, message):
    with pytest.raises(error, match=message):
        mean_average_precision(scores, labels)
