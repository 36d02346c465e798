import pytest
import torch
import torch.nn.functional as F
from contract import assert_close, assert_compiles, assert_gradcheck, covers
from hypothesis import given
from hypothesis import strategies as st
from oracles import decoders as oracle
from strategies import generator, seeds, sizes, small
from torch import nn

from wsss_blocks.decoders import multi_scale_logits

REDUCTIONS = ["max", "mean", "sum"]


def network(g, classes=3, stride=2):
    """A segmentation model that tells an image from its mirror image."""
    weight = torch.randn(classes, 3, 3, 3, generator=g, dtype=torch.float64)
    return lambda x: F.conv2d(x, weight.to(x.dtype), stride=stride, padding=1)


def random_images(g, batch=2, size=(6, 8)):
    return torch.rand(batch, 3, *size, generator=g, dtype=torch.float64)


@covers("multi_scale_logits", "oracle")
@given(
    seeds,
    small,
    small,
    sizes(6),
    st.sampled_from([(1.0,), (1.0, 0.5, 1.5), (0.75, 2.0)]),
    st.booleans(),
    st.sampled_from(REDUCTIONS),
    st.sampled_from(REDUCTIONS),
    st.sampled_from([None, "softmax"]),
    st.one_of(st.none(), sizes(7)),
)
def test_oracle(
    seed, batch, classes, image_size, scales, flip, flip_reduce, scale_reduce, activation, size
):
    g = generator(seed)
    seg_fn, images = network(g, classes), random_images(g, batch, image_size)
    options = {
        "scales": scales,
        "flip": flip,
        "flip_reduce": flip_reduce,
        "scale_reduce": scale_reduce,
        "activation": activation,
        "size": size,
    }
    expected = oracle.multi_scale_logits(seg_fn, images, **options)
    assert_close(multi_scale_logits(seg_fn, images, **options), expected)


@covers("multi_scale_logits", "oracle")
@pytest.mark.parametrize(
    ("scales", "flip_reduce", "scale_reduce", "activation"),
    [
        ((1.0, 1.25, 1.5), "sum", "max", None),  # ToCo, VOC
        ((1.0, 1.25, 1.5), "max", "max", None),  # ToCo, COCO
        ((1.0, 0.5, 1.5, 2.0), "mean", "mean", "softmax"),  # DHR
    ],
)
def test_published_protocols(scales, flip_reduce, scale_reduce, activation):
    g = generator(0)
    seg_fn, images = network(g), random_images(g, 1)
    actual = multi_scale_logits(
        seg_fn,
        images,
        scales=scales,
        flip_reduce=flip_reduce,
        scale_reduce=scale_reduce,
        activation=activation,
        size=(6, 8),
    )
    expected = oracle.multi_scale_logits(
        seg_fn, images, scales, True, flip_reduce, scale_reduce, activation, (6, 8)
    )
    assert_close(actual, expected)


@covers("multi_scale_logits", "properties")
@pytest.mark.parametrize("flip_reduce", REDUCTIONS)
def test_mirrored_images_give_mirrored_logits(flip_reduce):
    g = generator(1)
    seg_fn, images = network(g), random_images(g, size=(6, 7))
    options = {"scales": (1.0, 0.5, 1.5), "size": (6, 7)}
    logits = multi_scale_logits(seg_fn, images, flip_reduce=flip_reduce, **options)
    mirrored = multi_scale_logits(seg_fn, images.flip(-1), flip_reduce=flip_reduce, **options)
    assert_close(mirrored, logits.flip(-1))
    alone = multi_scale_logits(seg_fn, images, flip=False, **options)
    assert not torch.allclose(alone, logits)


@covers("multi_scale_logits", "properties")
def test_averaged_probabilities_sum_to_one():
    g = generator(2)
    seg_fn, images = network(g), random_images(g)
    probs = multi_scale_logits(
        seg_fn, images, scales=(1.0, 0.5), activation="softmax", size=(12, 11)
    )
    assert_close(probs.sum(1), torch.ones(2, 12, 11))
    assert probs.min() >= 0


@covers("multi_scale_logits", "properties")
def test_one_view_is_the_plain_forward_and_classes_permute():
    g = generator(3)
    seg_fn, images = network(g), random_images(g)
    assert torch.equal(
        multi_scale_logits(seg_fn, images, scales=(1.0,), flip=False), seg_fn(images)
    )
    logits = multi_scale_logits(seg_fn, images, scales=(0.5, 1.5))
    assert logits.shape == (2, 3, 5, 6)  # the grid of scale 1.5
    permuted = multi_scale_logits(lambda x: seg_fn(x).flip(1), images, scales=(0.5, 1.5))
    assert_close(permuted, logits.flip(1))


@covers("multi_scale_logits", "gradcheck")
@pytest.mark.parametrize("scale_reduce", REDUCTIONS)
def test_gradcheck(scale_reduce):
    g = generator(4)
    seg_fn, images = network(g), random_images(g, 1, (4, 5)).requires_grad_()
    assert_gradcheck(
        lambda x: multi_scale_logits(
            seg_fn, x, scales=(1.0, 0.5), scale_reduce=scale_reduce, activation="softmax"
        ),
        images,
    )


@covers("multi_scale_logits", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    g = generator(5)
    net, images = nn.Conv2d(3, 2, 3, stride=2, padding=1, dtype=dtype), random_images(g).to(dtype)
    options = {"scales": (1.0, 0.5), "activation": "softmax"}
    with torch.no_grad():
        probs = multi_scale_logits(net, images, **options)
        exact = multi_scale_logits(net.double(), images.double(), **options)
    assert probs.dtype == dtype
    assert_close(probs, exact, dtype=dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = multi_scale_logits(net.float(), images.float(), **options)
    assert mixed.dtype == torch.bfloat16
    assert_close(mixed, exact)


@covers("multi_scale_logits", "compile")
def test_compile():
    g = generator(6)
    seg_fn, images = network(g), random_images(g)
    assert_compiles(
        lambda x: multi_scale_logits(seg_fn, x, scales=(1.0, 0.7), activation="softmax"), images
    )


@covers("multi_scale_logits", "errors")
def test_errors():
    g = generator(7)
    seg_fn, images = network(g), random_images(g)
    with pytest.raises(ValueError, match=r"images must have shape \(B, C, H, W\), got \(3, 6, 8"):
        multi_scale_logits(seg_fn, images[0], scales=(1.0,))
    with pytest.raises(TypeError, match="images must be a floating-point tensor"):
        multi_scale_logits(seg_fn, (255 * images).byte(), scales=(1.0,))
    with pytest.raises(ValueError, match="scales must name at least one scale"):
        multi_scale_logits(seg_fn, images, scales=())
    with pytest.raises(ValueError, match=r"scales must be positive and finite, got 0\.0"):
        multi_scale_logits(seg_fn, images, scales=(0.0,))
    with pytest.raises(ValueError, match="flip_reduce must be one of 'max', 'mean', 'sum'"):
        multi_scale_logits(seg_fn, images, scales=(1.0,), flip_reduce="min")
    with pytest.raises(ValueError, match="scale_reduce must be one of"):
        multi_scale_logits(seg_fn, images, scales=(1.0,), scale_reduce="min")
    with pytest.raises(ValueError, match="activation must be one of 'softmax', got 'sigmoid'"):
        multi_scale_logits(seg_fn, images, scales=(1.0,), activation="sigmoid")
    with pytest.raises(ValueError, match=r"size must be None or two positive sides"):
        multi_scale_logits(seg_fn, images, scales=(1.0,), size=(3,))
    with pytest.raises(ValueError, match=r"seg_fn must return maps .* B=4 .* got \(2, 3, 3, 4\)"):
        multi_scale_logits(lambda x: seg_fn(x)[:2], images, scales=(1.0,))
    with pytest.raises(TypeError, match="seg_fn must return a tensor, got tuple"):
        multi_scale_logits(lambda x: (seg_fn(x),), images, scales=(1.0,))


@covers("multi_scale_logits", "degenerate")
def test_degenerate():
    g = generator(8)
    seg_fn, images = network(g, 1), random_images(g, 1, (1, 1))
    logits = multi_scale_logits(seg_fn, images, scales=(0.1, 1.0))
    assert logits.shape == (1, 1, 1, 1)
    assert torch.isfinite(logits).all()
    probs = multi_scale_logits(seg_fn, images, scales=(1.0,), activation="softmax")
    assert probs.item() == 1.0
    none = multi_scale_logits(seg_fn, images[:0], scales=(1.0, 0.5), size=(3, 2))
    assert none.shape == (0, 1, 3, 2)
