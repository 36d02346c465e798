"""Every refiner of the package goes through the same script."""

import pytest
import torch
from contract import assert_close, assert_same

from wsss_blocks.backbones import Features, QueryKey
from wsss_blocks.refine import (
    AttentionAffinityRefine,
    DenseCRF,
    NoRefiner,
    PixelAdaptiveRefine,
    RandomWalk,
    TransportRefine,
    feature_affinity,
)


def alike_in_colour(images, features):
    return feature_affinity(4 * images, radius=3)


def alike_on_a_finer_grid(images, features):
    """As many cells as make the walk one of neighbours, not of a small matrix."""
    return alike_in_colour(torch.nn.functional.interpolate(images, scale_factor=3), features)


class AttentionOfColours(torch.nn.Module):
    """Attention that a transformer might have: cells look at cells of a like colour."""

    def forward(self, images, maps, *, labels=None, box=None, features=None):
        grid = min(4, images.shape[2]), min(3, images.shape[3])
        pooled = torch.nn.functional.adaptive_avg_pool2d(images.float(), grid)
        q = torch.nn.functional.pad(pooled.flatten(2).mT, (0, 0, 2, 0))[:, None]
        attention = {2: QueryKey(4 * q, q, 1.0)}
        features = Features(pooled, pooled.flatten(2).mT[:, :0], {}, {}, {}, attention)
        refiner = AttentionAffinityRefine()
        return refiner(images, maps, labels=labels, box=box, features=features)


REFINERS = {
    "none": NoRefiner,
    "par": lambda: PixelAdaptiveRefine(iterations=3),
    "par-full": lambda: PixelAdaptiveRefine(iterations=2, downsample=1, softmax=False),
    "pamr": PixelAdaptiveRefine.pamr,
    "transport": TransportRefine,
    "attention": AttentionOfColours,
    "walk": lambda: RandomWalk(alike_in_colour, steps=8),
    "walk-fine": lambda: RandomWalk(alike_on_a_finer_grid, steps=64),
    "crf-lattice": lambda: DenseCRF(iterations=3, method="lattice"),
    "crf-cells": lambda: DenseCRF(iterations=3, method="cells"),
    "crf-exact": lambda: DenseCRF(iterations=3, method="exact"),
}
B, G, K, SIZE = 3, 2, 4, (12, 9)


@pytest.fixture(params=REFINERS)
def refiner(request):
    return REFINERS[request.param]()


@pytest.fixture(params=[SIZE, (4, 3), (1, 1)], ids=["full", "low", "one"])
def problem(request):
    g = torch.Generator().manual_seed(3)
    images = torch.rand(B, 3, *SIZE, generator=g)
    maps = torch.rand(B, G, K + 1, *request.param, generator=g)
    labels = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]]).float()
    return images, maps, labels


def test_result_has_the_size_of_the_images_and_the_layout_of_the_maps(refiner, problem):
    images, maps, labels = problem
    assert refiner(images, maps, labels=labels).shape == (B, G, K + 1, *SIZE)
    assert refiner(images, maps[:, 0], labels=labels).shape == (B, K + 1, *SIZE)
    assert refiner(images, maps[:, 0]).shape == (B, K + 1, *SIZE)


def test_absent_channels_come_back_as_zero_and_present_ones_do_not(refiner, problem):
    images, maps, labels = problem
    out = refiner(images, maps, labels=labels)
    present = torch.cat([torch.ones(B, 1), labels], 1).bool()
    assert torch.equal(out.amax((1, 3, 4)) > 0, present)
    assert (out >= 0).all()


def test_absent_channels_do_not_influence_the_others(refiner, problem):
    images, maps, labels = problem
    absent = torch.cat([torch.zeros(B, 1), 1 - labels], 1).bool()[:, None, :, None, None]
    disturbed = torch.where(absent, 7.0, maps)
    assert_same(refiner(images, disturbed, labels=labels), refiner(images, maps, labels=labels))


def test_dropping_an_absent_channel_changes_nothing(refiner, problem):
    images, maps, labels = problem
    out = refiner(images, maps, labels=labels)
    smaller = refiner(images, maps[:, :, [0, 2, 3, 4]], labels=labels[:, 1:])
    assert_close(smaller, out[:, :, [0, 2, 3, 4]])


def test_map_sets_equal_separate_calls(refiner, problem):
    images, maps, labels = problem
    together = refiner(images, maps, labels=labels)
    apart = torch.stack([refiner(images, maps[:, g], labels=labels) for g in range(G)], 1)
    assert_close(together, apart)
    assert not torch.allclose(together[:, 0], together[:, 1])


def test_images_of_a_batch_are_independent(refiner, problem):
    images, maps, labels = problem
    together = refiner(images, maps, labels=labels)
    for b in range(B):
        one = slice(b, b + 1)
        assert_close(refiner(images[one], maps[one], labels=labels[one]), together[one])


def test_all_labels_present_equals_no_labels(refiner, problem):
    images, maps, _ = problem
    assert_close(refiner(images, maps, labels=torch.ones(B, K)), refiner(images, maps))


def test_no_label_at_all_leaves_background_only(refiner, problem):
    images, maps, _ = problem
    out = refiner(images, maps, labels=torch.zeros(B, K))
    assert (out[:, :, 0] > 0).all()
    assert (out[:, :, 1:] == 0).all()


def test_box_of_the_whole_image_changes_nothing(refiner, problem):
    images, maps, labels = problem
    box = torch.tensor([[0, 0, *SIZE]]).expand(B, 4)
    expected = refiner(images, maps, labels=labels)
    assert_same(refiner(images, maps, labels=labels, box=box), expected)
    smaller = torch.tensor([[1, 2, 9, 6]]).expand(B, 4)
    out = refiner(images, maps, labels=labels, box=smaller, features=None)
    assert out.shape == expected.shape
    assert torch.isfinite(out).all()


def test_classes_may_be_permuted(refiner, problem):
    images, maps, labels = problem
    order = [2, 0, 3, 1]
    channels = [0, 3, 1, 4, 2]
    out = refiner(images, maps[:, :, channels], labels=labels[:, order])
    assert_close(out, refiner(images, maps, labels=labels)[:, :, channels])


def test_gradients_are_finite_and_absent_channels_get_none(refiner, problem):
    images, maps, labels = problem
    maps = maps.clone().requires_grad_()
    out = refiner(images, maps, labels=labels)
    (out * torch.rand(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert torch.isfinite(maps.grad).all()
    assert (maps.grad[1, :, 1:] == 0).all()
    assert (maps.grad[0, :, 2] != 0).any()


def test_inputs_are_left_alone(refiner, problem):
    images, maps, labels = problem
    before = [x.clone() for x in problem]
    refiner(images, maps, labels=labels)
    assert_same(problem, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_result_has_the_dtype_of_the_maps(refiner, problem, dtype):
    images, maps, labels = problem
    out = refiner(images.to(dtype), maps.to(dtype), labels=labels)
    assert out.dtype == dtype
    assert_close(out, refiner(images.to(dtype).double(), maps.to(dtype).double(), labels=labels))


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3, 1, 5), (2, 3, 6, 6)])
def test_constant_images_and_tiny_sizes_stay_finite(refiner, shape):
    images = torch.full(shape, 0.3)
    maps = torch.rand(shape[0], 2, 2, 1, generator=torch.Generator().manual_seed(0))
    maps.requires_grad_()
    out = refiner(images, maps, labels=torch.ones(shape[0], 1))
    out.sum().backward()
    assert out.shape == (shape[0], 2, *shape[2:])
    assert torch.isfinite(out).all()
    assert torch.isfinite(maps.grad).all()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"images": torch.rand(3, 1, 4, 4)}, ValueError, r"images must have shape \(B, 3, H, W\)"),
        ({"maps": torch.rand(3, 5)}, ValueError, r"maps must have shape \(B, C, h, w\)"),
        ({"maps": torch.rand(2, 2, 5, 4, 3)}, ValueError, r"\(B, G, C, h, w\) with B=3, got \(2,"),
        ({"maps": -torch.rand(3, 5, 4, 3)}, ValueError, "maps must be >= 0"),
        ({"maps": torch.full((3, 5, 4, 3), torch.nan)}, ValueError, "maps must be finite"),
        ({"maps": torch.ones(3, 5, 4, 3).long()}, TypeError, "maps must be a floating-point"),
        ({"images": torch.ones(3, 3, 4, 4).long()}, TypeError, "images must be a floating-point"),
        ({"labels": torch.ones(3, 5)}, ValueError, "background column too many"),
        ({"labels": torch.full((3, 4), 2.0)}, ValueError, "labels must be multi-hot"),
        ({"box": torch.ones(3, 4)}, TypeError, "box must be an integer"),
        ({"box": torch.ones(2, 4).long()}, ValueError, r"box must have shape \(B, 4\)"),
    ],
)
def test_wrong_arguments_are_named(refiner, change, error, match):
    call = {"images": torch.rand(3, 3, 4, 4), "maps": torch.rand(3, 5, 4, 3)} | change
    with pytest.raises(error, match=match):
        refiner(call.pop("images"), call.pop("maps"), **call)


@pytest.mark.cuda
def test_cuda_equals_cpu_and_never_waits(refiner, problem):
    if getattr(refiner, "method", None) == "lattice":
        pytest.skip("for a CPU: it has as many points as the image asks for")
    images, maps, labels = problem
    on_gpu = [x.cuda() for x in problem]
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = refiner(on_gpu[0], on_gpu[1], labels=on_gpu[2])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(out.cpu(), refiner(images, maps, labels=labels))
