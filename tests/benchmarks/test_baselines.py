"""Each baseline computes what the block computes, or its time means nothing."""

import numpy as np
import pytest
import torch

from benchmarks.baselines import (
    cam_to_label_eager,
    class_average_broadcast,
    class_average_patch_loop,
    evaluator,
    par_onehot,
    similarity,
)
from wsss_blocks.cam import cam_to_label, similarity_cam
from wsss_blocks.metrics import SegmentationEvaluator
from wsss_blocks.pooling import class_average_pool
from wsss_blocks.refine import pixel_adaptive_refine


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def randint(high, *shape, seed=0):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", [cam_to_label_eager.published, cam_to_label_eager.lean])
@pytest.mark.parametrize("size", [(31, 29), (24, 28), (4, 5)])
def test_cam_to_label(form, size):
    cam, labels = rand(3, 5, 6, 7) - 0.4, torch.ones(3, 5)
    labels[1, 1:], labels[2] = 0, 0
    settings = {"size": size, "threshold": (0.35, 0.55)}
    label = form(cam, labels, **settings)
    assert label.dtype == torch.int64
    assert torch.equal(label, cam_to_label(cam, labels, **settings))
    assert {0, 1, 255} <= set(label[:2].unique().tolist())
    assert not label[2].any()


@pytest.mark.parametrize("form", [par_onehot.published, par_onehot.best])
@pytest.mark.parametrize("kernel", ["par", "pamr"])
@pytest.mark.parametrize("position_weight", [0.0, 0.01])
def test_par(form, kernel, position_weight):
    images, maps = rand(2, 3, 13, 17), rand(2, 4, 13, 17, seed=1)
    settings = {"dilations": (1, 3), "iterations": 3, "kernel": kernel}
    settings |= {"colour_scale": 0.2, "position_weight": position_weight}
    ours = pixel_adaptive_refine(images, maps, **settings)
    torch.testing.assert_close(form(images, maps, **settings), ours, atol=1e-5, rtol=0)
    assert (ours - maps).abs().max() > 0.1


@pytest.mark.parametrize(
    "form", [class_average_patch_loop.published, class_average_patch_loop.best]
)
def test_class_average_of_patches(form):
    features, mask = rand(2, 6, 4, 5), randint(3, 2, 8, 15)
    mask[0, :2, :3] = 255
    ours = class_average_pool(features, mask, num_classes=7, assign="majority").centroids
    torch.testing.assert_close(form(features, mask, num_classes=7), ours, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "form", [class_average_patch_loop.published, class_average_patch_loop.best]
)
def test_votes_of_a_patch(form):
    features = torch.tensor([[[[1.0, 2.0, 4.0, 8.0]]]])
    ignored_wins, tie = [[1, 255], [255, 255]], [[2, 1], [1, 2]]
    ignored_ties, one = [[0, 0], [255, 255]], [[1, 1], [1, 0]]
    mask = torch.from_numpy(np.concatenate([ignored_wins, tie, ignored_ties, one], 1))[None]
    means = form(features, mask, num_classes=3).flatten()
    assert means.tolist() == [4.0, 5.0, 0.0]


@pytest.mark.parametrize("name", class_average_broadcast.__all__)
def test_class_average_on_the_grid(name):
    features, mask = rand(2, 6, 4, 5), randint(5, 2, 4, 5)
    mask[0, 0] = 255
    ours = class_average_pool(features, mask, num_classes=7).centroids
    means = getattr(class_average_broadcast, name)(features, mask, num_classes=7)
    torch.testing.assert_close(means, ours, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", similarity.__all__)
def test_similarity(name):
    features, text = rand(2, 6, 4, 5) - 0.5, rand(3, 6, seed=1) - 0.5
    maps = getattr(similarity, name)(features, text)
    torch.testing.assert_close(maps, similarity_cam(features, text), atol=1e-6, rtol=0)


@pytest.mark.parametrize("form", [evaluator.published, evaluator.best])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_evaluator(form, dtype):
    pred, target = randint(6, 3, 9, 8).to(dtype), randint(6, 3, 9, 8, seed=1).to(dtype)
    target[0, :4] = 255
    before = pred.clone(), target.clone()
    ours = SegmentationEvaluator(6)
    ours.update(pred, target)
    table = form(pred, target, num_classes=6)
    assert torch.equal(table, ours.counts)
    assert table.sum() == 3 * 9 * 8 - 4 * 8
    assert torch.equal(before[0], pred)
    assert torch.equal(before[1], target)
