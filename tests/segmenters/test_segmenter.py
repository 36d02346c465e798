import copy
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contract import assert_close, assert_compiles, assert_same
from hypothesis import given
from hypothesis import strategies as st
from oracles import segmenters as oracle
from PIL import Image
from strategies import generator, seeds, sizes, small
from torch import nn

from wsss_blocks.data import Scenes, voc_palette
from wsss_blocks.decoders import multi_scale_logits
from wsss_blocks.metrics import EvaluationProtocol
from wsss_blocks.segmenters import SegmentationNetwork, Segmenter

PROTOCOL = EvaluationProtocol(
    dataset="toy", split="val", num_images=3, scales=(1.0,), flip=False, refiner="none",
    labels_used=False,
)  # fmt: skip


class Stripes(nn.Module):
    """Logits at half the image's grid that tell an image from its mirror image."""

    def __init__(self, classes, seed=0):
        super().__init__()
        g = generator(seed)
        self.weight = nn.Parameter(torch.randn(classes, 3, 3, 3, generator=g, dtype=torch.float64))

    def forward(self, images):
        return F.conv2d(images, self.weight, stride=2, padding=1)


def small_segmenter(seed=0, names=("cat", "dog"), **options):
    torch.manual_seed(seed)
    network = SegmentationNetwork("small-cnn", num_classes=len(names) + 1, hidden_dim=8)
    return Segmenter(network, names=names, **({"protocol": PROTOCOL} | options))


def striped(seed=0, **options):
    """Masks with all three classes, in float64."""
    return Segmenter(Stripes(3, seed), names=("cat", "dog"), **({"protocol": PROTOCOL} | options))


def random_image(seed=0, size=(20, 29)):
    return torch.rand(3, *size, generator=generator(seed))


@given(
    seeds,
    small,
    small,
    sizes(7),
    st.sampled_from([None, 1, 6]),
    st.sampled_from([(1.0,), (1.0, 1.5), (0.5, 2.0)]),
    st.booleans(),
    st.sampled_from(["max", "mean", "sum"]),
    st.sampled_from(["max", "mean", "sum"]),
)
def test_oracle(seed, batch, classes, size, side, scales, flip, flip_reduce, scale_reduce):
    views = {
        "scales": scales, "flip": flip, "flip_reduce": flip_reduce, "scale_reduce": scale_reduce,
    }  # fmt: skip
    network, names = Stripes(classes + 1, seed), [f"class {i}" for i in range(classes)]
    segmenter = Segmenter(network, names=names, protocol=replace(PROTOCOL, **views), size=side)
    images = torch.rand(batch, 3, *size, generator=generator(seed), dtype=torch.float64)
    with torch.no_grad():
        expected = oracle.segmenter_logits(network, images, side=side, **views)
        assert_close(segmenter(images), expected)
        found = segmenter.segment(images[0])
    assert torch.equal(found.mask, oracle.winners(segmenter(images)[0]))


def test_many_classes_win_like_argmax():
    names = [f"class {i}" for i in range(40)]
    segmenter = Segmenter(Stripes(41), names=names, protocol=PROTOCOL)
    image = torch.rand(3, 33, 21, generator=generator(1), dtype=torch.float64)
    mask = segmenter.segment(image).mask
    assert torch.equal(mask, segmenter(image[None])[0].argmax(0))
    assert len(mask.unique()) > 10


def test_ties_go_to_background_then_to_the_lowest_class():
    class Equal(nn.Module):
        def forward(self, images):
            logits = torch.zeros(len(images), 12, *images.shape[2:])
            logits[:, [5, 10], :, 0] = 1
            return logits

    names = [f"class {i}" for i in range(11)]
    found = Segmenter(Equal(), names=names, protocol=PROTOCOL).segment(random_image(size=(2, 2)))
    assert found.mask.tolist() == [[5, 0], [5, 0]]


def test_agrees_with_the_evaluation():
    # Fuse on the network's grid, upsample, argmax, as cli.evaluate_system.
    views = {"scales": (1.0, 1.5), "flip": True, "scale_reduce": "max"}
    segmenter = striped(protocol=replace(PROTOCOL, **views), size=24)
    image = random_image().double()
    with torch.no_grad():
        squeezed = F.interpolate(image[None], size=(24, 24), mode="bilinear")
        logits = multi_scale_logits(segmenter.network, squeezed, **views)
        expected = F.interpolate(logits, size=(20, 29), mode="bilinear").argmax(1)[0]
    assert torch.equal(segmenter.segment(image).mask, expected)
    assert len(expected.unique()) > 1


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 3), (96, 64)])
@pytest.mark.parametrize("side", [None, 32])
def test_any_image_size(size, side):
    found = small_segmenter(size=side).segment(random_image(size=size))
    assert found.mask.shape == size
    assert found.mask.dtype == torch.int64
    assert found.names == ("background", "cat", "dog")
    assert sum(found.present().values()) == pytest.approx(1)


@pytest.mark.parametrize("encoder", ["small-vit", "mobilenet"])
def test_other_encoders(encoder):
    network = SegmentationNetwork(encoder, num_classes=2, hidden_dim=4, neck_dim=4)
    found = Segmenter(network, names=("cat",), protocol=PROTOCOL).segment(random_image())
    assert found.mask.shape == (20, 29)


def pixels(seed=0, shape=(20, 29, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_every_kind_of_image_gives_one_mask(tmp_path):
    segmenter, array = striped(), pixels()
    image = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    path = tmp_path / "ein Bild ä猫.png"
    Image.fromarray(array).save(path)
    expected = segmenter.segment(image)
    read_only = array.copy()
    read_only.setflags(write=False)
    kinds = [path, str(path), Image.open(path), array, read_only, array[::-1][::-1], image.double()]
    for kind in kinds:
        found = segmenter.segment(kind)
        assert torch.equal(found.mask, expected.mask)
        assert_close(found.image, image, dtype=torch.float32)
    assert len(expected.mask.unique()) == 3
    found = segmenter.segment(image.requires_grad_())
    assert torch.equal(found.mask, expected.mask)
    assert not found.image.requires_grad


def test_grey_arrays_and_images():
    segmenter, grey = striped(), pixels(shape=(20, 29))
    expected = segmenter.segment(np.stack([grey] * 3, axis=2)).mask
    assert torch.equal(segmenter.segment(grey).mask, expected)
    assert torch.equal(segmenter.segment(Image.fromarray(grey)).mask, expected)
    deep = Image.fromarray(grey.astype(np.uint16) * 256 + 7)
    assert torch.equal(segmenter.segment(deep).mask, expected)


def test_transparent_palette_image_is_its_colours():
    picture = Image.fromarray(pixels()).quantize(16)
    picture.info["transparency"] = bytes([0, 128] * 8)
    colours = np.array(picture.convert("RGBA").convert("RGB"))
    segmenter = striped()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = segmenter.segment(picture)
    assert torch.equal(found.mask, segmenter.segment(colours).mask)


def test_pictures_are_turned_upright(tmp_path):
    array, exif = pixels(), Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.fromarray(array).save(tmp_path / "turned.png", exif=exif)
    found = striped().segment(tmp_path / "turned.png")
    assert found.mask.shape == (29, 20)
    from_pil = striped().segment(Image.open(tmp_path / "turned.png"))
    assert torch.equal(from_pil.mask, found.mask)
    assert torch.equal(from_pil.image, found.image)


def test_segment_keeps_modes_gradients_and_statistics():
    segmenter = small_segmenter().train()
    segmenter.network.encoder.stages[0].eval()
    modes = [module.training for module in segmenter.modules()]
    before = {k: v.clone() for k, v in segmenter.state_dict().items()}
    segmenter.segment(random_image())
    assert [module.training for module in segmenter.modules()] == modes
    for key, value in segmenter.state_dict().items():
        assert torch.equal(value, before[key]), key
    with pytest.raises(ValueError, match="RGB"):
        segmenter.train().segment(torch.full((3, 4, 4), 9.0))
    assert segmenter.training
    logits = segmenter(random_image()[None])
    assert logits.requires_grad


def test_segment_is_in_evaluation_mode_whatever_came_before():
    network = nn.Sequential(Stripes(3), nn.Dropout(1.0))  # all zero in training: background
    segmenter = Segmenter(network, names=("cat", "dog"), protocol=PROTOCOL)
    found = segmenter.train().segment(random_image())
    assert torch.equal(found.mask, striped().segment(random_image()).mask)
    assert len(found.present()) == 3


def test_modes_come_back_after_an_error():
    segmenter = Segmenter(nn.Conv2d(3, 9, 1), names=("cat",), protocol=PROTOCOL).train()
    with pytest.raises(ValueError, match=r"logits of the network must have shape .* with C=2"):
        segmenter.segment(random_image())
    assert segmenter.training


def test_dtypes():
    image = random_image()
    segmenter = small_segmenter().eval()
    expected = segmenter(image[None])
    assert expected.dtype == torch.float32
    double = small_segmenter().eval().double()
    assert_close(double(image[None].double()), expected, dtype=torch.float32)
    half = small_segmenter().eval().bfloat16()
    logits = half(image[None].bfloat16())
    assert logits.dtype == torch.float32
    scale = expected.abs().max()
    assert_close(logits / scale, expected / scale, dtype=torch.bfloat16)
    assert half.segment(image).mask.shape == (20, 29)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(segmenter(image[None])).all()


def test_compile():
    views = {"scales": (1.0, 1.5), "flip": True}
    segmenter = small_segmenter(protocol=replace(PROTOCOL, **views), size=16).eval()
    with torch.no_grad():
        assert_compiles(segmenter, torch.rand(2, 3, 20, 29))


def test_gradients_reach_the_network():
    network = Stripes(3)
    segmenter = Segmenter(network, names=("cat", "dog"), protocol=PROTOCOL, size=4)
    images = torch.rand(1, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(segmenter, (images,), fast_mode=True)


def test_copies_and_repr():
    segmenter, image = small_segmenter().eval(), random_image()[None]
    assert_same(copy.deepcopy(segmenter)(image), segmenter(image))
    assert_same(pickle.loads(pickle.dumps(segmenter))(image), segmenter(image))
    assert "2 classes, toy val, 3 images, scales 1, no flip" in repr(segmenter)
    assert all(key.startswith("network.") for key in segmenter.state_dict())


def test_colours():
    assert torch.equal(small_segmenter().palette, voc_palette()[:3])
    palette = torch.randint(0, 256, (9, 3), dtype=torch.uint8)
    found = small_segmenter(palette=palette).segment(random_image())
    assert torch.equal(found.palette, palette[:3])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"names": ()}, ValueError, "names must be 1 to 254 different words"),
        ({"names": "cat"}, ValueError, r"one name for each class .* \(2\), got 1"),
        ({"names": ("cat", "cat")}, ValueError, "different words"),
        ({"names": ("background", "cat")}, ValueError, "without background, got 2"),
        ({"names": ("cat", "")}, ValueError, "different words"),
        ({"names": tuple(map(str, range(255)))}, ValueError, "1 to 254"),
        ({"names": ("a", "b", "c")}, ValueError, r"\(2\), got 3"),
        ({"size": 0}, ValueError, "size must be None or a positive side, got 0"),
        ({"palette": torch.zeros(2, 3, dtype=torch.uint8)}, ValueError, "n >= 3"),
        ({"palette": torch.zeros(3, dtype=torch.uint8)}, ValueError, r"\(n, 3\)"),
        ({"palette": torch.zeros(3, 3)}, TypeError, "palette must be a uint8 tensor"),
        ({"protocol": replace(PROTOCOL, labels_used=True)}, ValueError, "image labels USED"),
        ({"protocol": replace(PROTOCOL, refiner="CRF")}, ValueError, "refiner CRF"),
        ({"protocol": replace(PROTOCOL, flip_reduce="min")}, ValueError, "flip_reduce must be"),
        ({"protocol": replace(PROTOCOL, scale_reduce="min")}, ValueError, "scale_reduce must be"),
    ],
)
def test_errors(options, error, message):
    network = SegmentationNetwork(num_classes=3, hidden_dim=4)
    with pytest.raises(error, match=message):
        Segmenter(network, **({"names": ("cat", "dog"), "protocol": PROTOCOL} | options))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ("gone.jpg", FileNotFoundError, r"no image at gone\.jpg"),
        (torch.rand(1, 3, 4, 4), ValueError, r"image must have shape \(3, H, W\)"),
        (torch.rand(4, 4, 3), ValueError, r"image must have shape \(3, H, W\)"),
        (torch.zeros(3, 0, 4), ValueError, r"image must have shape"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), TypeError, "image must be a floating-point"),
        (torch.full((3, 4, 4), 200.0), ValueError, r"image must be RGB in \[0, 1\], got 200"),
        (torch.full((3, 4, 4), torch.nan), ValueError, "got nan to nan"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, r"shape \(H, W, 3\) or \(H, W\), got \(4, 4"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"got \(0, 4, 3\)"),
        (np.zeros((0, 4), np.uint8), ValueError, r"image must have shape"),
        (np.zeros(4, np.uint8), ValueError, r"got \(4,\)"),
        (np.zeros((4, 4, 3)), TypeError, "must be a uint8 array .* got float64"),
        (Image.fromarray(np.zeros((4, 4), np.float32)), ValueError, "8 or 16 bits"),
        (None, TypeError, "image must be a path, a PIL image, .* got NoneType"),
        ([[0]], TypeError, "got list"),
    ],
)
def test_images_that_are_none(image, error, message):
    with pytest.raises(error, match=message):
        small_segmenter().segment(image)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(OSError, match=r"broken\.jpg"):
        small_segmenter().segment(tmp_path / "broken.jpg")
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, H, W\)"):
        small_segmenter()(torch.rand(3, 8, 8))


def test_one_class_and_constant_image():
    found = small_segmenter(names=("cat",)).segment(torch.zeros(3, 9, 9))
    assert found.mask.shape == (9, 9)
    assert set(found.present()) <= {"background", "cat"}


def test_a_scene(tmp_path):
    found = small_segmenter(names=Scenes("val").names).segment(Scenes("val")[0]["image"])
    found.save(tmp_path / "mask.png")
    found.save_figure(tmp_path / "figure.png")
    assert {p.name for p in tmp_path.iterdir()} == {"mask.png", "figure.png"}


@pytest.mark.cuda
def test_cuda_agrees_with_the_cpu():
    segmenter, image = small_segmenter().eval(), random_image(size=(64, 64))
    expected = segmenter(image[None])
    on_gpu = small_segmenter().eval().cuda()
    torch.testing.assert_close(on_gpu(image[None].cuda()).cpu(), expected, rtol=1e-2, atol=1e-2)
    found = on_gpu.segment(image)
    assert found.mask.device.type == found.image.device.type == "cpu"
