"""A broken input is named by each loss, before it becomes a NaN without an origin."""

import functools

import pytest
import torch
from strategies import generator

from wsss_blocks.losses import (
    affinity_loss,
    affinity_matrix_loss,
    background_consistency_loss,
    balanced_segmentation_loss,
    cam_consistency_loss,
    class_token_contrast_loss,
    crop_token_contrast_loss,
    cross_contrastive_loss,
    dense_energy_loss,
    global_implicit_alignment_loss,
    image_text_contrastive_loss,
    multi_label_soft_margin_loss,
    patch_token_contrast_loss,
    segmentation_loss,
)
from wsss_blocks.refine import NeighbourAffinity, affinity_labels, affinity_matrix_labels


def random(*shape):
    return torch.randn(shape, generator=generator(0))


MASK = torch.tensor([[[0, 1, 2], [3, 255, 0]]] * 2)
PAIRS = affinity_labels(MASK, radius=2)


@functools.wraps(affinity_loss)
def loss_of_values(values):
    return affinity_loss(NeighbourAffinity(values, PAIRS.offsets), PAIRS)


LABELS = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
TEXTS = {"class_text": random(3, 5), "background_text": random(2, 5)}
CASES = {
    loss_of_values: {"affinity.values": random(2, 4, 2, 3).sigmoid()},
    affinity_matrix_loss: {
        "affinity": random(2, 6, 6).sigmoid(),
        "labels": affinity_matrix_labels(MASK),
    },
    balanced_segmentation_loss: {"logits": random(2, 4, 2, 3), "mask": MASK},
    segmentation_loss: {"logits": random(2, 4, 2, 3), "mask": MASK},
    dense_energy_loss: {"logits": random(2, 4, 2, 3), "images": random(2, 3, 4, 6).sigmoid()},
    patch_token_contrast_loss: {"features": random(2, 5, 2, 3), "mask": MASK},
    cross_contrastive_loss: {
        "features": random(2, 5, 2, 3),
        "mask": MASK,
        "labels": LABELS,
        **TEXTS,
    },
    global_implicit_alignment_loss: {"token": random(2, 5), "labels": LABELS, **TEXTS},
    image_text_contrastive_loss: {
        "image": random(2, 5),
        "text": random(2, 5),
        "logit_scale": torch.tensor(10.0),
    },
    multi_label_soft_margin_loss: {"logits": random(2, 3), "labels": LABELS},
    background_consistency_loss: {
        "foreground": random(2, 1, 2, 3),
        "background": random(2, 1, 2, 3),
    },
    cam_consistency_loss: {"cam": random(2, 3, 2, 3), "other": random(2, 3, 2, 3)},
    class_token_contrast_loss: {"tokens": random(2, 3, 5), "labels": LABELS},
    crop_token_contrast_loss: {
        "tokens": random(2, 3, 5),
        "targets": random(2, 2, 5),
        "positive": torch.tensor([[True, False, False], [True, True, False]]),
    },
}
FLOATS = [
    (loss, name)
    for loss, args in CASES.items()
    for name, x in args.items()
    if x.is_floating_point() and name != "labels"
]
WITH_LABELS = [
    loss
    for loss, args in CASES.items()
    if "labels" in args and loss is not affinity_matrix_loss  # of pairs
]


def call(loss, **changed):
    return loss(*{**CASES[loss], **changed}.values())


def named(x):
    return x if isinstance(x, str) else x.__name__


@pytest.mark.parametrize(("loss", "name"), FLOATS, ids=named)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_and_infinity_are_named(loss, name, dtype):
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = CASES[loss][name].to(dtype, copy=True)
        x[(-1,) * x.ndim] = bad
        with pytest.raises(ValueError, match=rf"^{name} must be finite, got 1 NaN or infinite"):
            call(loss, **{name: x})
    if name in ("images", "affinity", "affinity.values"):  # these have a range
        return
    # finite numbers whose sum is not are not refused
    assert call(loss, **{name: torch.full_like(x, torch.finfo(dtype).max / 4)}).isfinite()


@pytest.mark.parametrize("loss", WITH_LABELS, ids=named)
def test_labels_with_a_background_column_or_nan_are_named(loss):
    with_background = torch.cat([torch.ones(2, 1), LABELS], 1)
    with pytest.raises(ValueError, match=r"labels must .* got \(2, 4\): is there a background col"):
        call(loss, labels=with_background)
    with pytest.raises(ValueError, match="labels must be multi-hot with values in"):
        call(loss, labels=LABELS.where(LABELS > 0, float("nan")))


def test_every_loss_is_here():
    import wsss_blocks.losses

    public = {n for n in wsss_blocks.losses.__all__ if n.endswith("_loss")}
    assert {loss.__name__ for loss in CASES} == public


@pytest.mark.parametrize(
    "loss", [balanced_segmentation_loss, segmentation_loss, patch_token_contrast_loss], ids=named
)
def test_a_byte_mask_does_not_wrap_the_ignored_id_around(loss):
    args = CASES[loss]
    first = next(iter(args.values()))
    ids = args["mask"].clamp_max(3)
    expected = loss(first, ids, ignore_index=-1)
    assert loss(first, ids.to(torch.uint8), ignore_index=-1) == expected
    if loss is not patch_token_contrast_loss:
        with pytest.raises(ValueError, match=r"mask must hold ids in \[0, 4\) .* got 255"):
            loss(first, args["mask"].to(torch.uint8), ignore_index=-1)
    else:  # 255 is a label like any other
        expected = loss(first, args["mask"], ignore_index=-1)
        assert loss(first, args["mask"].to(torch.uint8), ignore_index=-1) == expected
