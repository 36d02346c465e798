import pytest
import torch
import torch.nn.functional as F
from contract import assert_close, assert_compiles, assert_gradcheck, covers
from hypothesis import given
from hypothesis import strategies as st
from oracles import cam as oracle
from strategies import generator, random_labels, seeds, sizes, small
from torch import nn

from wsss_blocks.cam import multi_scale_cam

REDUCTIONS = ["max", "mean", "sum"]


def network(g, classes=2, stride=2):
    """A CAM model that tells an image from its mirror image."""
    weight = torch.randn(classes, 3, 3, 3, generator=g, dtype=torch.float64)
    return lambda x: F.conv2d(x, weight.to(x.dtype), stride=stride, padding=1)


def random_images(g, batch=2, size=(6, 8)):
    return torch.rand(batch, 3, *size, generator=g, dtype=torch.float64)


@covers("multi_scale_cam", "oracle")
@given(
    seeds,
    small,
    small,
    sizes(6),
    st.sampled_from([(1.0,), (1.0, 0.5, 1.5), (0.75, 2.0)]),
    st.booleans(),
    st.sampled_from(REDUCTIONS),
    st.booleans(),
    st.sampled_from(REDUCTIONS),
    st.one_of(st.none(), sizes(7)),
    st.booleans(),
)
def test_oracle(
    seed, batch, classes, image_size, scales, flip, flip_reduce, relu, scale_reduce, size, labelled
):
    g = generator(seed)
    cam_fn, images = network(g, classes), random_images(g, batch, image_size)
    labels = random_labels(batch, classes, g) if labelled else None
    options = {
        "scales": scales,
        "flip": flip,
        "flip_reduce": flip_reduce,
        "relu": relu,
        "scale_reduce": scale_reduce,
        "labels": labels,
        "size": size,
    }
    expected = oracle.multi_scale_cam(cam_fn, images, **options)
    assert_close(multi_scale_cam(cam_fn, images, **options), expected)


@covers("multi_scale_cam", "oracle")
def test_the_defaults_are_those_of_the_paper():
    g = generator(0)
    cam_fn, images = network(g), random_images(g)
    expected = oracle.multi_scale_cam(cam_fn, images, (1.0, 0.5, 1.5), True, "max", True, "sum")
    assert_close(multi_scale_cam(cam_fn, images), expected)


@covers("multi_scale_cam", "properties")
@pytest.mark.parametrize("flip_reduce", REDUCTIONS)
@pytest.mark.parametrize("scale_reduce", REDUCTIONS)
def test_mirrored_images_give_mirrored_maps(flip_reduce, scale_reduce):
    g = generator(1)
    cam_fn, images = network(g), random_images(g, size=(6, 7))
    options = {"flip_reduce": flip_reduce, "scale_reduce": scale_reduce, "size": (6, 7)}
    cam = multi_scale_cam(cam_fn, images, **options)
    assert_close(multi_scale_cam(cam_fn, images.flip(-1), **options), cam.flip(-1))
    alone = multi_scale_cam(cam_fn, images, flip=False, size=(6, 7))
    mirrored = multi_scale_cam(cam_fn, images.flip(-1), flip=False, size=(6, 7))
    assert not torch.allclose(mirrored, alone.flip(-1))


@covers("multi_scale_cam", "properties")
def test_one_forward_per_scale_with_both_views():
    seen = []

    def cam_fn(x):
        seen.append(x)
        return x[:, :1, ::2, ::2]

    images = random_images(generator(2))
    cam = multi_scale_cam(cam_fn, images)
    assert [tuple(x.shape) for x in seen] == [(4, 3, 6, 8), (4, 3, 3, 4), (4, 3, 9, 12)]
    assert torch.equal(seen[0], torch.cat([images, images.flip(-1)]))
    assert cam.shape == (2, 1, 5, 6)  # the grid of scale 1.5


@covers("multi_scale_cam", "properties")
def test_images_and_classes_are_independent_and_scale_carries_over():
    g = generator(3)
    cam_fn, images = network(g, 3), random_images(g)
    cam = multi_scale_cam(cam_fn, images)
    assert cam.min() >= 0
    assert_close(multi_scale_cam(cam_fn, images.flip(0)), cam.flip(0))
    assert_close(multi_scale_cam(lambda x: 4 * cam_fn(x), images), 4 * cam)
    assert_close(multi_scale_cam(lambda x: cam_fn(x).flip(1), images), cam.flip(1))
    labels = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    assert_close(multi_scale_cam(cam_fn, images, labels=labels), cam * labels[:, :, None, None])


@covers("multi_scale_cam", "properties")
def test_a_tuple_comes_back_as_a_tuple_each_on_its_own_grid():
    g = generator(4)
    final, auxiliary, images = network(g), network(g, 2, stride=1), random_images(g)
    both = multi_scale_cam(lambda x: (final(x), auxiliary(x)), images)
    assert isinstance(both, tuple)
    assert [tuple(c.shape) for c in both] == [(2, 2, 5, 6), (2, 2, 9, 12)]
    assert torch.equal(both[0], multi_scale_cam(final, images))
    assert torch.equal(both[1], multi_scale_cam(auxiliary, images))
    (single,) = multi_scale_cam(lambda x: (final(x),), images, size=(4, 4))
    assert single.shape == (2, 2, 4, 4)


@covers("multi_scale_cam", "gradcheck")
@pytest.mark.parametrize("flip_reduce", REDUCTIONS)
def test_gradcheck(flip_reduce):
    g = generator(5)
    cam_fn, images = network(g), random_images(g, 1, (4, 5)).requires_grad_()
    assert_gradcheck(lambda x: multi_scale_cam(cam_fn, x, flip_reduce=flip_reduce), images)
    with torch.no_grad():
        assert not multi_scale_cam(cam_fn, images).requires_grad


@covers("multi_scale_cam", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    g = generator(6)
    net, images = nn.Conv2d(3, 2, 3, stride=2, padding=1, dtype=dtype), random_images(g).to(dtype)
    with torch.no_grad():
        cam = multi_scale_cam(net, images)
        exact = multi_scale_cam(net.double(), images.double())
    assert cam.dtype == dtype
    assert_close(cam, exact, dtype=dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = multi_scale_cam(net.float(), images.float())
    assert mixed.dtype == torch.bfloat16
    assert_close(mixed, exact)


@covers("multi_scale_cam", "compile")
def test_compile():
    g = generator(7)
    cam_fn, images = network(g), random_images(g)
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert_compiles(
        lambda x, y: multi_scale_cam(cam_fn, x, labels=y, scales=(1.0, 0.7)), images, labels
    )


@covers("multi_scale_cam", "errors")
def test_errors():
    g = generator(8)
    cam_fn, images = network(g), random_images(g)
    with pytest.raises(ValueError, match=r"images must have shape \(B, C, H, W\), got \(3, 6, 8"):
        multi_scale_cam(cam_fn, images[0])
    with pytest.raises(TypeError, match="images must be a floating-point tensor"):
        multi_scale_cam(cam_fn, (255 * images).byte())
    with pytest.raises(ValueError, match="scales must name at least one scale"):
        multi_scale_cam(cam_fn, images, scales=())
    with pytest.raises(ValueError, match=r"scales must be positive and finite, got -1\.0"):
        multi_scale_cam(cam_fn, images, scales=(1.0, -1.0))
    with pytest.raises(ValueError, match="flip_reduce must be one of 'max', 'mean', 'sum'"):
        multi_scale_cam(cam_fn, images, flip_reduce="min")
    with pytest.raises(ValueError, match="scale_reduce must be one of"):
        multi_scale_cam(cam_fn, images, scale_reduce="min")
    with pytest.raises(ValueError, match=r"size must be None or two positive sides"):
        multi_scale_cam(cam_fn, images, size=(0, 4))
    with pytest.raises(ValueError, match=r"labels must have shape \(B, K\) with B=2, K=2"):
        multi_scale_cam(cam_fn, images, labels=torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"cam_fn must return maps .* B=4 .* got \(2, 2, 3, 4\)"):
        multi_scale_cam(lambda x: cam_fn(x)[:2], images)
    with pytest.raises(ValueError, match="cam_fn must return maps"):
        multi_scale_cam(lambda x: cam_fn(x).flatten(2), images)
    with pytest.raises(TypeError, match="cam_fn must return tensors, got NoneType"):
        multi_scale_cam(lambda x: None, images)


@covers("multi_scale_cam", "degenerate")
def test_degenerate():
    g = generator(9)
    cam_fn, images = network(g, 1), random_images(g, 1, (1, 1))
    cam = multi_scale_cam(cam_fn, images, scales=(0.1, 1.0))
    assert cam.shape == (1, 1, 1, 1)
    assert torch.isfinite(cam).all()
    assert not multi_scale_cam(cam_fn, images, labels=torch.zeros(1, 1)).any()
    assert not multi_scale_cam(lambda x: x[:, :1] * 0, random_images(g)).any()
    none = multi_scale_cam(cam_fn, images[:0], labels=torch.zeros(0, 1), size=(3, 3))
    assert none.shape == (0, 1, 3, 3)
