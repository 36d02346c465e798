import logging

import pytest
import torch
from contract import (
    assert_close,
    assert_compiles,
    assert_gradcheck,
    assert_module,
    assert_same,
    covers,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import crf as oracle
from strategies import generator, random_labels, seeds, sizes, small

from wsss_blocks.refine import DenseCRF, _crf_inference, dense_crf

METHODS = ("exact", "cells", "lattice")
WIDE = {"gaussian": (1.3, 2.0), "bilateral": (4.1, 90.0, 3.0)}  # colours of noise are far apart
every_method = pytest.mark.parametrize("method", METHODS)


def problem(seed=0, batch=2, channels=3, size=(7, 6), low=None, dtype=torch.float64):
    g = generator(seed)
    images = torch.rand(batch, 3, *size, generator=g, dtype=torch.float64)
    maps = torch.rand(batch, channels, *(low or size), generator=g, dtype=torch.float64)
    return images.to(dtype), (maps / maps.sum(1, keepdim=True)).to(dtype)


def expected(images, probs, method, iterations, boxes=None, **options):
    """The loops of the oracle, image by image; a lattice has only the pixels of the box."""
    found = []
    for b in range(len(images)):
        image, maps, box = images[b], probs[b], None if boxes is None else boxes[b].tolist()
        call = {"iterations": iterations, "method": method, **options}
        if method != "lattice" or box is None:
            found.append(oracle.dense_crf(image.tolist(), maps.tolist(), box=box, **call))
            continue
        whole = maps.clamp(1e-5, 1) / maps.clamp(1e-5, 1).sum(0)
        top, left, bottom, right = box
        inside = (slice(None), slice(top, bottom), slice(left, right))
        part = oracle.dense_crf(image[inside].tolist(), maps[inside].tolist(), **call)
        whole[inside] = torch.tensor(part, dtype=whole.dtype)
        found.append(whole.tolist())
    return torch.tensor(found, dtype=torch.float64)


@covers("dense_crf", "oracle")
@settings(max_examples=12)
@given(seeds, small, sizes(4), st.sampled_from(METHODS), st.integers(0, 3))
def test_crf_is_the_loop_over_pairs(seed, channels, size, method, iterations):
    images, probs = problem(seed, 1, channels, size)
    probs = probs.masked_fill(probs < 0.1, 0)
    out = dense_crf(images, probs, iterations=iterations, method=method, **WIDE)
    assert_close(out, expected(images, probs, method, iterations, **WIDE))


@covers("dense_crf", "oracle")
@every_method
def test_crf_within_boxes_is_the_loop_over_pairs(method):
    images, probs = problem(1, 3, 2, (5, 7))
    boxes = torch.tensor([[1, 2, 4, 6], [0, 0, 5, 7], [2, 0, 3, 1]])
    out = dense_crf(images, probs, box=boxes, iterations=2, method=method, **WIDE)
    assert_close(out, expected(images, probs, method, 2, boxes, **WIDE))


def pattern(height=12, width=16):
    """An image of whole colours and maps, by formula: no random generator to change."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([(x * 9 + y * y) % 256, (200 - 7 * y) % 256, (x * y * 3 + 40) % 256])
    image[:, :, width // 2 :] //= 3
    raw = torch.stack([1 + (x + 2 * y) % 5, 1 + (3 * x + y) % 4, 1 + (x * y) % 3]).double()
    return image, raw / raw.sum(0)


# pydensecrf2 1.1 on pattern(), ten iterations: classes 0 and 1 along row 5, every third column.
PYDENSECRF = {
    ((1.0, 3.0), (67.0, 3.0, 4.0)): [
        [0.024483, 0.994514, 0.062885, 0.999646, 0.998910, 0.086103],
        [0.971691, 0.004868, 0.934467, 0.000181, 0.000727, 0.907890],
    ],
    ((3.0, 3.0), (8.0, 40.0, 2.0)): [
        [0.972484, 0.995465, 0.987111, 0.998065, 0.994206, 0.958618],
        [0.018462, 0.003416, 0.010339, 0.000975, 0.003885, 0.031181],
    ],
}


def test_numbers_of_pydensecrf():
    image, probs = pattern()
    for (gaussian, bilateral), rows in PYDENSECRF.items():
        out = dense_crf(
            image[None].float() / 255,
            probs[None].float(),
            gaussian=gaussian,
            bilateral=bilateral,
            method="lattice",
        )
        torch.testing.assert_close(out[0, :2, 5, ::3], torch.tensor(rows), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["dhr", "deeplab", "irn", "mctformer", "simseg", "afa"])
def test_equals_pydensecrf(name):
    pydensecrf = pytest.importorskip("pydensecrf.densecrf")
    numpy = pytest.importorskip("numpy")
    image, probs = pattern(60, 84)
    refiner = DenseCRF.preset(name, method="lattice")
    out = refiner(image[None].float() / 255, probs[None].float())[0]
    peer = pydensecrf.DenseCRF2D(84, 60, 3)
    energy = -numpy.log(numpy.clip(probs.float().flatten(1).numpy(), 1e-5, 1))
    peer.setUnaryEnergy(numpy.ascontiguousarray(energy))
    (near, weight), (far, colour, strength) = refiner.gaussian, refiner.bilateral
    peer.addPairwiseGaussian(sxy=near, compat=weight)
    uint8 = numpy.ascontiguousarray(image.permute(1, 2, 0).byte().numpy())
    peer.addPairwiseBilateral(sxy=far, srgb=colour, rgbim=uint8, compat=strength)
    theirs = torch.from_numpy(numpy.array(peer.inference(refiner.iterations))).view(3, 60, 84)
    torch.testing.assert_close(out, theirs, rtol=0, atol=1e-4)
    assert (out - theirs).abs().mean() < 1e-5
    assert torch.equal(out.argmax(0), theirs.argmax(0))


@covers("dense_crf", "properties")
class TestProperties:
    @every_method
    def test_probabilities_sum_to_one_and_classes_may_be_permuted(self, method):
        images, probs = problem(2, channels=4)
        out = dense_crf(images, probs, method=method, **WIDE)
        assert (out >= 0).all()
        assert_close(out.sum(1), torch.ones(2, 7, 6).double())
        order = [2, 0, 3, 1]
        assert_close(dense_crf(images, probs[:, order], method=method, **WIDE), out[:, order])

    @every_method
    def test_sets_and_images_do_not_mix(self, method):
        images, probs = problem(3, channels=6)
        sets = probs.unflatten(1, (2, 3))
        out = dense_crf(images, sets, method=method, **WIDE)
        for b in range(2):
            for g in range(2):
                one = dense_crf(images[b : b + 1], sets[b : b + 1, g], method=method, **WIDE)
                assert_close(out[b, g], one[0])

    def test_a_mirrored_or_turned_image_gives_a_mirrored_or_turned_result(self):
        images, probs = problem(4)
        out = dense_crf(images, probs, method="exact", **WIDE)
        for turn in (lambda x: x.flip(-1), lambda x: x.transpose(-1, -2)):
            assert_close(dense_crf(turn(images), turn(probs), method="exact", **WIDE), turn(out))

    @every_method
    def test_a_class_that_all_pixels_favour_wins_everywhere(self, method):
        images, probs = problem(5)
        out = dense_crf(images, probs + torch.tensor([0, 1.0, 0]).view(3, 1, 1), method=method)
        assert (out.argmax(1) == 1).all()

    @every_method
    def test_a_kernel_of_no_weight_is_not_there(self, method):
        images, probs = problem(6)
        neither = {"gaussian": (1.0, 0.0), "bilateral": (5.0, 50.0, 0)}
        assert_close(dense_crf(images, probs, method=method, **neither), probs)
        only = {"gaussian": (1.3, 2.0), "bilateral": (5.0, 50.0, 0)}
        out = dense_crf(images, probs, method=method, **only)
        assert_close(out, dense_crf(images.flip(3), probs, method=method, **only))
        assert not torch.allclose(out, probs)

    def test_lattice_agrees_with_all_pairs(self):
        """On a smooth image, where the lattice has the corners it needs."""
        y, x = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 48), indexing="ij")
        images = torch.stack([x, y, (x + y) / 2])[None]
        _, probs = problem(7, 1, 3, (40, 48), low=(6, 7), dtype=torch.float32)
        options = {"gaussian": (3.0, 3.0), "bilateral": (20.0, 13.0, 4.0)}
        ours = dense_crf(images, probs, method="lattice", **options)
        exact = dense_crf(images, probs, method="exact", **options)
        assert (ours - exact).abs().mean() < 0.03
        assert (ours.argmax(1) == exact.argmax(1)).double().mean() > 0.97

    @every_method
    def test_colours_are_rounded_and_maps_resized(self, method):
        images, probs = problem(8, low=(3, 2))
        shift = images.mul(255).round().add(0.3) / 255
        resized = torch.nn.functional.interpolate(probs, size=(7, 6), mode="bilinear")
        out = dense_crf(images, probs, method=method, **WIDE)
        assert_same(dense_crf(shift, resized, method=method, **WIDE), out)

    @every_method
    def test_absent_channels_are_left_out(self, method):
        images, probs = problem(9, 3, 5)
        labels = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0.5]])
        out = dense_crf(images, probs, labels=labels, method=method, **WIDE)
        for b in range(3):
            kept = [0, *(k + 1 for k in range(4) if labels[b, k] > 0)]
            one = slice(b, b + 1)
            alone = dense_crf(images[one], probs[one, kept], method=method, **WIDE)
            assert_close(out[b, kept], alone[0])
            assert out[b].sum((1, 2)).count_nonzero() == len(kept)

    @pytest.mark.parametrize("method", ["exact", "lattice"])  # cells do not move with the crop
    def test_inside_a_box_is_the_cropped_image_and_outside_nothing_changes(self, method):
        images, probs = problem(10, 2, 3, (9, 11))
        boxes = torch.tensor([[2, 1, 8, 10], [0, 3, 9, 7]])
        out = dense_crf(images, 2 * probs.clamp(max=0.5), box=boxes, method=method, **WIDE)
        for b, (top, left, bottom, right) in enumerate(boxes.tolist()):
            part = (slice(b, b + 1), slice(None), slice(top, bottom), slice(left, right))
            crop = dense_crf(images[part], 2 * probs[part].clamp(max=0.5), method=method, **WIDE)
            assert_close(out[part], crop)
        maps = 2 * probs.clamp(max=0.5)
        outside = torch.ones(2, 1, 9, 11, dtype=torch.bool)
        for b, (top, left, bottom, right) in enumerate(boxes.tolist()):
            outside[b, :, top:bottom, left:right] = False
        normalised = maps / maps.sum(1, keepdim=True)
        assert_close(out[outside.expand_as(out)], normalised[outside.expand_as(out)])


@covers("dense_crf", "gradcheck")
@every_method
def test_crf_gradcheck(method):
    images, probs = problem(11, 1, 2, (4, 3), low=(2, 3))
    box = torch.tensor([[0, 1, 4, 3]])
    for extra in ({}, {"box": box}):
        options = {**WIDE, "iterations": 2, "method": method, **extra}
        assert_gradcheck(lambda p, o=options: dense_crf(images, p, **o), probs.requires_grad_())


@every_method
def test_images_get_no_gradient(method):
    images, probs = problem(12)
    out = dense_crf(images.requires_grad_(), probs, method=method)
    assert not out.requires_grad


@covers("dense_crf", "module")
@every_method
def test_module_is_the_function(method):
    images, probs = problem(13, dtype=torch.float32)
    labels = random_labels(2, 2, generator(1))
    options = {"iterations": 3, "method": method, **WIDE}
    out = dense_crf(images, probs, labels=labels, **options)
    assert_module(DenseCRF(**options), out, images, probs, labels=labels)


def test_presets_are_the_published_constants():
    assert repr(DenseCRF.preset("dhr")) == repr(DenseCRF())
    assert DenseCRF.preset("simseg").iterations == 3
    assert DenseCRF.preset("irn").bilateral == (50.0, 5.0, 10.0)
    assert DenseCRF.preset("mctformer").bilateral == (80.0, 13.0, 10.0)
    assert DenseCRF.preset("afa").bilateral == (64.0, 5.0, 4.0)
    deeplab = DenseCRF.preset("deeplab", method="exact")
    assert deeplab.gaussian == (1.0, 1.0)
    assert deeplab.bilateral == (121.0, 5.0, 4.0)
    assert deeplab.method == "exact"
    with pytest.raises(ValueError, match="name must be one of 'afa'"):
        DenseCRF.preset("pamr")


@covers("dense_crf", "dtypes")
@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_crf_dtypes(method, dtype):
    images, probs = problem(14, dtype=dtype)
    options = {"method": method, "iterations": 3, **WIDE}
    out = dense_crf(images, probs, **options)
    assert out.dtype == dtype
    assert_close(out, dense_crf(images.double(), probs.double(), **options))
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(dense_crf(images, probs, **options), out)
    mixed = dense_crf(images.float(), probs, **options)
    assert mixed.dtype == dtype


@covers("dense_crf", "compile")
@pytest.mark.parametrize("method", ["exact", "cells"])
def test_crf_compiles(method):
    """A lattice has as many points as the image asks for, and breaks the graph."""
    images, probs = problem(15, dtype=torch.float32)
    labels = random_labels(2, 2, generator(3))
    box = torch.tensor([[1, 2, 7, 6], [0, 0, 5, 5]])

    def call(images, probs, labels, box):
        options = {"labels": labels, "box": box, "iterations": 2, "method": method}
        return dense_crf(images, probs, **options, **WIDE)

    assert_compiles(call, images, probs, labels, box)


def test_the_lattice_runs_beside_a_compiled_graph():
    images, probs = problem(23, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(lambda i, p: dense_crf(i, p + 0) * 2, backend="eager")
    assert_same(compiled(images, probs), dense_crf(images, probs) * 2)


@covers("dense_crf", "errors")
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"images": torch.rand(1, 8, 8)}, ValueError, r"images must have shape \(B, 3, H, W\)"),
        ({"images": torch.rand(1, 3, 8, 8) * 255}, ValueError, r"images must be RGB in \[0, 1\]"),
        ({"probs": torch.rand(1, 8, 8)}, ValueError, r"probs must have shape \(B, C, h, w\)"),
        ({"probs": torch.rand(2, 2, 3, 8, 8)}, ValueError, r"probs must .* B=1, got \(2, 2, 3"),
        ({"probs": torch.full((1, 3, 2, 2), torch.nan)}, ValueError, "probs must be finite"),
        ({"probs": -torch.rand(1, 3, 2, 2)}, ValueError, "probs must be >= 0"),
        ({"probs": torch.ones(1, 3, 2, 2).int()}, TypeError, "probs must be a floating-point"),
        ({"images": torch.ones(1, 3, 2, 2).int()}, TypeError, "images must be a floating-point"),
        ({"labels": torch.ones(1, 3)}, ValueError, "background column too many"),
        ({"box": torch.ones(1, 4)}, TypeError, "box must be an integer"),
        ({"box": torch.tensor([[0, 0, 9, 8]])}, ValueError, "box must hold top <= bottom"),
        ({"iterations": -1}, ValueError, "iterations must be at least 0, got -1"),
        ({"iterations": 2.5}, TypeError, "iterations must be an int"),
        ({"gaussian": (1.0,)}, ValueError, "gaussian must be a deviation and a weight"),
        ({"gaussian": (0.0, 1.0)}, ValueError, "a deviation of gaussian must be finite and at"),
        ({"gaussian": 3.0}, TypeError, "gaussian must be a sequence"),
        ({"bilateral": (1.0, 2.0)}, ValueError, "bilateral must be two deviations and a weight"),
        ({"bilateral": (1, -2, 1)}, ValueError, "a deviation of bilateral must be finite"),
        ({"bilateral": (1, 2, -1)}, ValueError, "the weight of bilateral must be finite and >= 0"),
        ({"bilateral": (1, 2, "x")}, TypeError, "the weight of bilateral must be a number"),
        ({"method": "fast"}, ValueError, "method must be one of 'auto', 'lattice'.* got 'fast'"),
        ({"bilateral": (1, 1e-3, 1)}, ValueError, "bilateral must have wider deviations to fit"),
        ({"gaussian": (1e-5, 1)}, ValueError, r"gaussian must have wider .*, got \(1e-05,\)"),
    ],
)
def test_crf_errors(change, error, match):
    call = {"images": torch.rand(1, 3, 8, 8), "probs": torch.rand(1, 3, 8, 8)} | change
    with pytest.raises(error, match=match):
        dense_crf(call.pop("images"), call.pop("probs"), **call)
    if change.keys() <= {"iterations", "gaussian", "method"} and "wider" not in match:
        with pytest.raises(error, match=match):
            DenseCRF(**change)


@covers("dense_crf", "degenerate")
@every_method
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 5)])
def test_flat_images_and_tiny_sizes(method, size):
    images = torch.full((1, 3, *size), 0.3)
    probs = torch.rand(1, 2, *size, generator=generator(0)).requires_grad_()
    out = dense_crf(images, probs, method=method)
    out[:, 0].sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(probs.grad).all()
    assert_close(out.sum(1), torch.ones(1, *size))


@covers("dense_crf", "degenerate")
@every_method
def test_empty_problems(method):
    options = {"method": method, "iterations": 2}
    images, probs = problem(16, 2, 3, dtype=torch.float32)
    nobody = torch.zeros(2, 2)
    out = dense_crf(images, probs, labels=nobody, **options)
    assert (out[:, 0] == 1).all()
    assert (out[:, 1:] == 0).all()
    zeros = dense_crf(images, torch.zeros_like(probs), **options)
    assert_close(zeros, torch.full_like(zeros, 1 / 3))
    ones = dense_crf(images, probs[:, :1], **options)
    assert (ones == 1).all()
    empty = torch.tensor([[3, 2, 3, 6], [0, 0, 0, 0]])
    assert_close(dense_crf(images, probs, box=empty, **options), probs)
    assert dense_crf(images[:0], probs[:0], **options).shape == (0, 3, 7, 6)
    assert dense_crf(images[:0], probs[:0], box=empty[:0], **options).shape == (0, 3, 7, 6)


@covers("dense_crf", "degenerate")
@every_method
def test_scores_that_are_no_probabilities(method):
    images, probs = problem(17, dtype=torch.float32)
    large = dense_crf(images, probs * 1e30, method=method)
    assert_close(large, dense_crf(images, torch.ones_like(probs), method=method))


def test_the_method_is_logged(caplog):
    images, probs = problem(18)
    with caplog.at_level(logging.DEBUG, logger="wsss_blocks"):
        auto = dense_crf(images, probs)
        assert_same(dense_crf(images, probs, method="lattice"), auto)
    assert [r.getMessage() for r in caplog.records] == [
        "dense_crf: method 'lattice' for 7 x 6 pixels"
    ]


def test_a_position_lattice_made_in_inference_mode_serves_training():
    _crf_inference._position_lattice.cache_clear()
    images, probs = problem(19)
    with torch.inference_mode():
        expected = dense_crf(images, probs, method="lattice")
    out = dense_crf(images, probs.requires_grad_(), method="lattice")
    out.square().sum().backward()
    assert_same(out.detach(), expected.clone())
    assert torch.isfinite(probs.grad).all()


def test_few_position_lattices_are_kept():
    _crf_inference._position_lattice.cache_clear()
    for size in [(3, 4), (4, 3), (3, 4), (5, 5), (6, 2), (2, 6)]:
        images, probs = problem(20, 1, 2, size)
        dense_crf(images, probs, method="lattice", iterations=1)
    info = _crf_inference._position_lattice.cache_info()
    assert (info.hits, info.misses, info.currsize) == (1, 5, 4)


def test_inputs_are_left_alone():
    images, probs = problem(21)
    before = images.clone(), probs.clone()
    for method in METHODS:
        dense_crf(images, probs, method=method, box=torch.tensor([[1, 1, 4, 4]] * 2))
    assert_same((images, probs), before)


@pytest.mark.cuda
@every_method
def test_cuda_equals_cpu(method):
    images, probs = problem(22)
    out = dense_crf(images.cuda(), probs.cuda(), method=method, **WIDE)
    assert_close(out.cpu(), dense_crf(images, probs, method=method, **WIDE))
