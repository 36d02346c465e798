import pytest
import torch
from contract import assert_close, assert_compiles, assert_module, assert_same, covers
from hypothesis import given
from hypothesis import strategies as st
from oracles import counts as oracle
from strategies import generator, random_labels, random_mask, seeds, sizes, small

from wsss_blocks import losses
from wsss_blocks.losses import (
    background_consistency_counts,
    background_consistency_loss,
    balanced_segmentation_counts,
    balanced_segmentation_loss,
    cam_consistency_counts,
    cam_consistency_loss,
    class_token_contrast_counts,
    class_token_contrast_loss,
    cross_contrastive_counts,
    cross_contrastive_loss,
    global_implicit_alignment_counts,
    global_implicit_alignment_loss,
    multi_label_soft_margin_loss,
    patch_token_contrast_counts,
    patch_token_contrast_loss,
    segmentation_counts,
    segmentation_loss,
)

CLASSES, DIM = 3, 5
TEXT = torch.randn(CLASSES + 1, DIM, generator=generator(9), dtype=torch.float64)
TEXTS = TEXT[:CLASSES], TEXT[CLASSES:]


def cross(reading):
    return lambda x, mask, labels, **k: cross_contrastive_loss(
        x, mask, labels, *TEXTS, background_weight=0.5, **reading, **k
    )


def balanced(x, mask, labels, **options):
    return balanced_segmentation_loss(x[:, : CLASSES + 1], mask, **options)


def balanced_resized(x, mask, labels, **options):
    return balanced(x.mean((2, 3), keepdim=True), mask, labels, **options)


def plain(x, mask, labels, **options):
    return segmentation_loss(x[:, : CLASSES + 1], mask, **options)


def global_alignment(x, mask, labels, **options):
    return global_implicit_alignment_loss(x.mean((2, 3)), labels, *TEXTS, **options)


LOSSES = {
    "balanced_segmentation": balanced,
    "balanced_segmentation_resized": balanced_resized,
    "segmentation": plain,
    "segmentation_resized": lambda x, *a, **k: plain(x.mean((2, 3), keepdim=True), *a, **k),
    "patch_token_contrast": lambda x, mask, labels, **k: patch_token_contrast_loss(x, mask, **k),
    "cross_contrastive": cross({}),
    "cross_contrastive_classes": cross({"variant": "classes", "temperature": 0.5}),
    "cross_contrastive_denominator": cross({"variant": "denominator", "pool": "token"}),
    "global_implicit_alignment": global_alignment,
    "global_implicit_alignment_shifted": lambda *args, **k: global_alignment(
        *args, similarity="shifted", class_reduction="mean", **k
    ),
    "background_consistency": lambda x, mask, labels, **k: background_consistency_loss(
        x[:, :1], x[:, 1:2], labels=labels, **k
    ),
    "cam_consistency": lambda x, mask, labels, **k: cam_consistency_loss(
        x[:, :CLASSES], x[:, -CLASSES:], labels=labels, **k
    ),
    "class_token_contrast": lambda x, mask, labels, **k: class_token_contrast_loss(
        torch.stack([x.mean((2, 3)).roll(c, 1) for c in range(CLASSES)], 1), labels, **k
    ),
}


def counts_of(name, mask, labels):
    if name.startswith("balanced"):
        return balanced_segmentation_counts(mask)
    if name.startswith("segmentation"):
        return segmentation_counts(mask)
    if name.startswith("patch"):
        return patch_token_contrast_counts(mask)
    if name.startswith("cross"):
        return cross_contrastive_counts(mask, labels)
    if name.startswith("background"):
        return background_consistency_counts(labels)
    if name.startswith("cam"):
        return cam_consistency_counts(labels)
    if name.startswith("class_token"):
        return class_token_contrast_counts(labels)
    return global_implicit_alignment_counts(labels)


every_loss = pytest.mark.parametrize("name", LOSSES)


def batch(seed, kinds, size=(2, 3)):
    """Images whose pixels are of several ids, all ignored, all background, or of absent classes."""
    g = generator(seed)
    x = torch.randn(len(kinds), DIM, *size, generator=g, dtype=torch.float64)
    mask = random_mask((len(kinds), *size), CLASSES + 1, g)
    labels = random_labels(len(kinds), CLASSES, g)
    for b, kind in enumerate(kinds):
        if kind in ("ignored", "background"):
            mask[b] = 255 if kind == "ignored" else 0
        if kind == "unlabelled":
            labels[b] = 0.0
    return x, mask, labels


def value_and_gradient(loss, weight):
    (gradient,) = torch.autograd.grad(loss, weight)
    return torch.cat([loss.detach().view(1), gradient.flatten()])


def projection():
    """What the micro-batches share."""
    return torch.randn(DIM, DIM, generator=generator(8), dtype=torch.float64).requires_grad_()


def evaluate(name, x, mask, labels, **options):
    """Value and gradient of the loss of projected features."""
    weight = projection()
    x = torch.einsum("bdhw,de->behw", x, weight)
    return value_and_gradient(LOSSES[name](x, mask, labels, **options), weight)


KINDS = st.sampled_from(["mixed", "mixed", "ignored", "background", "unlabelled"])
# micro-batches of different sizes; one may have nothing to add, one may have no image
SPLITS = st.lists(st.lists(KINDS, max_size=3), min_size=1, max_size=4).filter(any)


@every_loss
@given(seeds, SPLITS, sizes(4))
def test_shares_add_up_to_the_whole(name, seed, split, size):
    whole = batch(seed, [kind for part in split for kind in part], size)
    parts = list(zip(*(x.split([len(p) for p in split]) for x in whole), strict=True))
    counts = sum(counts_of(name, *part[1:]) for part in parts)
    assert_same(counts, counts_of(name, *whole[1:]))
    total = sum(evaluate(name, *part, counts=counts) for part in parts)
    assert_close(total, evaluate(name, *whole))


@every_loss
def test_means_of_micro_batches_are_something_else(name):
    x, mask, labels = batch(3, ["mixed", "mixed", "mixed", "unlabelled"])
    mask[0], labels[:3] = torch.tensor([[0, 1, 1], [255, 255, 255]]), 1.0
    whole = evaluate(name, x, mask, labels)
    parts = list(zip(*(a.split([1, 3]) for a in (x, mask, labels)), strict=True))
    naive = sum(evaluate(name, *part) for part in parts) / 2
    assert (naive - whole).abs().max() > 1e-3
    counts = counts_of(name, mask, labels)
    assert_close(sum(evaluate(name, *part, counts=counts) for part in parts), whole)
    # the own counts are the default, and nothing is divided by less than one
    assert_same(evaluate(name, x, mask, labels, counts=counts), whole)
    assert_close(evaluate(name, x, mask, labels, counts=2 * counts), whole / 2)
    ones = evaluate(name, x, mask, labels, counts=torch.ones_like(counts))
    assert_same(evaluate(name, x, mask, labels, counts=torch.zeros_like(counts)), ones)


@given(seeds, SPLITS)
def test_soft_margin_adds_up_without_counts(seed, split):
    x, _, labels = batch(seed, [kind for part in split for kind in part])
    logits = x.mean((2, 3))[:, :CLASSES]
    parts = zip(*(a.split([len(p) for p in split]) for a in (logits, labels)), strict=True)
    shares = [multi_label_soft_margin_loss(*p, reduction="sum") / len(logits) for p in parts]
    assert_close(sum(shares), multi_label_soft_margin_loss(logits, labels))


def case(name):
    """A module, its function and their positional arguments."""
    x, mask, labels = batch(2, ["mixed"] * 3)
    return {
        "balanced_segmentation": ("BalancedSegmentationLoss", (x, mask)),
        "segmentation": ("SegmentationLoss", (x, mask)),
        "patch_token_contrast": ("PatchTokenContrastLoss", (x, mask)),
        "cross_contrastive": ("CrossContrastiveLoss", (x, mask, labels, *TEXTS)),
        "global_implicit_alignment": (
            "GlobalImplicitAlignmentLoss",
            (x.mean((2, 3)), labels, *TEXTS),
        ),
    }[name], counts_of(name, mask, labels)


every_function = pytest.mark.parametrize(
    "name",
    [
        "balanced_segmentation",
        "segmentation",
        "patch_token_contrast",
        "cross_contrastive",
        "global_implicit_alignment",
    ],
)


@every_function
def test_modules_and_compiled_losses_take_counts(name):
    (module, args), counts = case(name)
    loss = getattr(losses, f"{name}_loss")
    counts = 3 * counts
    expected = loss(*args, counts=counts)
    assert expected != loss(*args)
    assert_module(getattr(losses, module)(), expected, *args, counts=counts)
    assert_compiles(lambda *a: loss(*a[:-1], counts=a[-1]), *args, counts)


@every_function
def test_counts_of_any_dtype_leave_the_dtype_of_the_loss(name):
    (_, args), counts = case(name)
    loss = getattr(losses, f"{name}_loss")
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        cast = args[0].to(dtype), *args[1:]
        expected = loss(*cast)
        assert expected.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
        for given_as in (torch.int32, torch.float32, torch.float64):
            given = loss(*cast, counts=counts.to(given_as))
            assert given.dtype == expected.dtype
            assert_close(given, expected)
    # they are constants, also where they come from something trained
    trained = counts.double().requires_grad_()
    assert not loss(*args, counts=trained).requires_grad


@every_function
def test_counts_are_checked(name):
    (_, args), counts = case(name)
    loss = getattr(losses, f"{name}_loss")
    shape = r"\(2,\)" if counts.ndim else r"\(\)"
    with pytest.raises(ValueError, match=rf"counts must have shape {shape}, got \(3,\)"):
        loss(*args, counts=torch.ones(3))
    with pytest.raises(ValueError, match=r"counts must be on the device of .* got meta"):
        loss(*args, counts=counts.to("meta"))
    with pytest.raises(ValueError, match=r"counts must be >= 0, got a minimum of -1"):
        loss(*args, counts=0 * counts - 1)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"counts must be finite"):
            loss(*args, counts=counts * bad)
    with pytest.raises(TypeError, match="counts must be a tensor of real numbers"):
        loss(*args, counts=counts.to(torch.complex64))
    with pytest.raises(TypeError, match=r"counts must be a torch.Tensor, got int"):
        loss(*args, counts=3)


def test_only_a_mean_takes_counts():
    (_, args), counts = case("global_implicit_alignment")
    for reduction in ("sum", "none"):
        with pytest.raises(ValueError, match=rf'counts must be None .*"mean", got \'{reduction}\''):
            global_implicit_alignment_loss(*args, reduction=reduction, counts=counts)


IGNORED = st.sampled_from([255, 0, 1, -1])


@covers("balanced_segmentation_counts", "oracle", "dtypes")
@covers("segmentation_counts", "oracle", "dtypes")
@covers("patch_token_contrast_counts", "oracle", "dtypes")
@given(seeds, small, sizes(5), IGNORED, st.sampled_from([1, 3, 70]))
def test_pixels_and_pairs_are_counted(seed, images, size, ignore, num_ids):
    mask = random_mask((images, *size), num_ids, generator(seed), ignore % 256)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8):
        ids = mask.to(dtype)
        pixels = balanced_segmentation_counts(ids, ignore_index=ignore)
        known = segmentation_counts(ids, ignore_index=ignore)
        pairs = patch_token_contrast_counts(ids, ignore_index=ignore)
        assert pixels.dtype == known.dtype == pairs.dtype == torch.int64
        assert (known.shape, known) == ((), oracle.segmentation(mask, ignore))
        assert pixels.tolist() == oracle.balanced_segmentation(mask, ignore)
        assert pairs.tolist() == oracle.patch_token_contrast(mask, ignore)


@covers("cross_contrastive_counts", "oracle", "dtypes")
@covers("global_implicit_alignment_counts", "oracle", "dtypes")
@given(seeds, small, sizes(3), IGNORED, st.integers(1, 4))
def test_images_are_counted(seed, images, size, ignore, classes):
    g = generator(seed)
    mask = random_mask((images, *size), classes + 1, g)
    mask[mask == 255] = ignore
    labels = random_labels(images, classes, g)
    regions = oracle.cross_contrastive(mask, labels, ignore)
    rows = oracle.global_implicit_alignment(labels)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.uint8):
        y = labels.to(dtype)
        for ids in (mask, mask.int(), mask.short()):
            counted = cross_contrastive_counts(ids, y, ignore_index=ignore)
            assert (counted.dtype, counted.shape, counted) == (torch.int64, (), regions)
        counted = global_implicit_alignment_counts(y)
        assert (counted.dtype, counted.shape, counted) == (torch.int64, (), rows)
    # fractions are labels too
    assert global_implicit_alignment_counts(0.1 * labels) == rows
    assert cross_contrastive_counts(mask, 0.1 * labels, ignore_index=ignore) == regions


@covers("balanced_segmentation_counts", "properties")
@covers("segmentation_counts", "properties")
@covers("patch_token_contrast_counts", "properties")
@covers("cross_contrastive_counts", "properties")
@covers("global_implicit_alignment_counts", "properties")
@given(seeds, st.lists(KINDS, min_size=2, max_size=5))
def test_symmetries(seed, kinds):
    _, mask, labels = batch(seed, kinds)
    order = torch.randperm(6, generator=generator(seed))
    shuffled = mask.flatten(1)[:, order].view_as(mask)
    for name in LOSSES:
        counts = counts_of(name, mask, labels)
        assert_same(counts_of(name, shuffled, labels), counts)
        assert_same(counts_of(name, mask.flip(0), labels.flip(0)), counts)
        assert_same(counts_of(name, mask.repeat(3, 1, 1), labels.repeat(3, 1)), 3 * counts)
    known = (mask != 255).flatten(1).sum(1)
    assert balanced_segmentation_counts(mask).sum() == segmentation_counts(mask) == known.sum()
    assert patch_token_contrast_counts(mask).sum() == (known * (known - 1)).sum()
    # only equality of labels matters, so that ids need not be small, positive or in order
    renamed = torch.tensor([2**40, -7, 254, 3])[mask.clamp_max(3)].where(mask != 255, 255)
    assert_same(patch_token_contrast_counts(renamed), patch_token_contrast_counts(mask))


@covers("balanced_segmentation_counts", "degenerate")
@covers("segmentation_counts", "degenerate")
@covers("patch_token_contrast_counts", "degenerate")
@covers("cross_contrastive_counts", "degenerate")
@covers("global_implicit_alignment_counts", "degenerate")
@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
@pytest.mark.parametrize("classes", [1, 3])
def test_degenerate(size, classes):
    area = size[0] * size[1]
    pairs = area * (area - 1)
    for fill, pixels in ((255, [0, 0]), (0, [2 * area, 0]), (1, [0, 2 * area])):
        mask = torch.full((2, *size), fill)
        assert balanced_segmentation_counts(mask).tolist() == pixels
        assert segmentation_counts(mask) == sum(pixels)
        assert patch_token_contrast_counts(mask).tolist() == [2 * pairs * (fill != 255), 0]
        for labels in (torch.zeros(2, classes), torch.eye(2, classes)):
            contrasted = int(fill == 1 and bool(labels.any()))
            assert cross_contrastive_counts(mask, labels) == contrasted
    distinct = torch.arange(2 * area).view(2, *size)
    assert patch_token_contrast_counts(distinct).tolist() == [0, 2 * pairs]
    assert global_implicit_alignment_counts(torch.zeros(2, classes)) == 0
    no_image = torch.zeros(0, *size).long(), torch.zeros(0, classes)
    for name in LOSSES:
        assert (counts_of(name, *no_image) == 0).all()


@covers("balanced_segmentation_counts", "compile")
@covers("segmentation_counts", "compile")
@covers("patch_token_contrast_counts", "compile")
@covers("cross_contrastive_counts", "compile")
@covers("global_implicit_alignment_counts", "compile")
@every_function
def test_compile(name):
    _, mask, labels = batch(1, ["mixed", "ignored", "unlabelled"])
    assert_compiles(lambda m, y: counts_of(name, m, y), mask, labels)


@covers("balanced_segmentation_counts", "errors")
@covers("segmentation_counts", "errors")
@covers("patch_token_contrast_counts", "errors")
@covers("cross_contrastive_counts", "errors")
@pytest.mark.parametrize("name", ["balanced", "segmentation", "patch", "cross"])
def test_mask_errors(name):
    _, mask, labels = batch(1, ["mixed"] * 2)
    with pytest.raises(ValueError, match=r"mask must have shape \(B, [hH], [wW]\), got \(2, 6\)"):
        counts_of(name, mask.flatten(1), labels)
    for wrong in (mask.float(), mask > 0):
        with pytest.raises(TypeError, match=rf"mask must be an integer tensor, got {wrong.dtype}"):
            counts_of(name, wrong, labels)


@covers("cross_contrastive_counts", "errors")
@covers("global_implicit_alignment_counts", "errors")
def test_label_errors():
    _, mask, labels = batch(1, ["mixed"] * 2)
    for name in ("cross", "global"):
        with pytest.raises(ValueError, match=r"labels must have shape \(B, K\).* got \(2,\)"):
            counts_of(name, mask, labels[:, 0])
        for wrong in (labels + 1.5, labels - 1.5, labels * float("nan")):
            with pytest.raises(ValueError, match="labels must be multi-hot"):
                counts_of(name, mask, wrong)
    with pytest.raises(ValueError, match=r"labels must have shape \(B, K\) with B=2, got \(1, 3\)"):
        cross_contrastive_counts(mask, labels[:1])
    with pytest.raises(ValueError, match="labels must be on cpu, got meta"):
        cross_contrastive_counts(mask, labels.to("meta"))
    with pytest.raises(ValueError, match=r"mask must hold ids in \[0, 4\) .* got 4"):
        cross_contrastive_counts(torch.full_like(mask, 4), labels)
