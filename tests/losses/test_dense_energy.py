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
from oracles import dense_energy as oracle
from strategies import generator, seeds, sizes, small

from wsss_blocks.losses.dense_energy import DenseEnergyLoss, dense_energy_loss

METHODS = ("exact", "cells", "lattice")
every_method = pytest.mark.parametrize("method", METHODS)
WIDE = {"sigma_rgb": 90.0, "sigma_xy": 5.0, "weight": 0.25}  # colours of noise are far apart


def problem(seed=0, batch=2, classes=3, grid=(3, 2), size=(6, 7), dtype=torch.float64):
    g = generator(seed)
    logits = 2 * torch.randn(batch, classes, *grid, generator=g, dtype=torch.float64)
    images = torch.rand(batch, 3, *size, generator=g, dtype=torch.float64)
    mask = torch.randint(0, classes, (batch, *size), generator=g)
    mask[torch.rand(mask.shape, generator=g) < 0.4] = 255
    return logits.to(dtype), images.to(dtype), mask


def random_box(seed, batch, size):
    corners = torch.rand(batch, 2, 2, generator=generator(seed)).sort(1).values
    return (corners * torch.tensor(size) + 0.5).long().flatten(1)


def loop(logits, images, mask=None, box=None, scale=0.5, sigma_rgb=15.0, sigma_xy=100.0):
    """Energies and the gradients that reach the probabilities, image by image."""
    energies, gradients = [], []
    for b in range(len(images)):
        probs = oracle.soft_labels(logits[b].tolist(), images.shape[-2:], scale)
        m, x = (None if t is None else t[b].tolist() for t in (mask, box))
        e, g = oracle.energy(images[b].tolist(), probs, m, x, sigma_rgb, sigma_xy, scale)
        energies.append(e)
        gradients.append(g)
    return sum(energies) / len(energies), torch.tensor(gradients, dtype=torch.float64)


@covers("dense_energy_loss", "oracle")
@settings(max_examples=15)
@given(
    seeds, small, sizes(3), sizes(7), st.sampled_from([0.3, 0.5, 0.7, 1.0]), *[st.booleans()] * 2
)
def test_equals_the_loop_over_pairs(seed, classes, grid, size, scale, with_mask, with_box):
    logits, images, mask = problem(seed, 2, classes, grid, size)
    mask = mask if with_mask else None
    box = random_box(seed, 2, size) if with_box else None
    options = {"sigma_rgb": 90.0, "sigma_xy": 5.0, "scale": scale}
    loss = dense_energy_loss(
        logits, images, mask=mask, box=box, weight=0.25, method="exact", **options
    )
    assert_close(loss, 0.25 * loop(logits, images, mask, box, **options)[0])


@covers("dense_energy_loss", "oracle")
def test_defaults_are_the_constants_of_the_released_code():
    logits, images, mask = problem(1)
    loss = dense_energy_loss(logits, images, mask=mask, method="exact")
    assert_close(1e7 * loss, loop(logits, images, mask)[0])


@covers("dense_energy_loss", "oracle")
@pytest.mark.parametrize("scale", [0.4, 0.7, 0.95])
def test_the_nearest_pixels_of_an_odd_scale(scale):
    logits, images, mask = problem(14, size=(8, 7))
    box = torch.tensor([[0, 0, 8, 6], [3, 1, 7, 7]])
    options = {"sigma_rgb": 90.0, "sigma_xy": 5.0, "scale": scale}
    loss = dense_energy_loss(
        logits, images, mask=mask, box=box, weight=0.25, method="exact", **options
    )
    assert_close(loss, 0.25 * loop(logits, images, mask, box, **options)[0])


@covers("dense_energy_loss", "oracle", "properties")
@pytest.mark.parametrize("with_mask", [True, False])
def test_the_gradient_holds_the_gate_constant(with_mask):
    """That of the released code, -2 g A S; with a gate of 1 everywhere, the derivative."""
    probs, images, mask = problem(2, grid=(6, 7))
    logits = probs.softmax(1).log().requires_grad_()
    mask, box = (mask if with_mask else None), torch.tensor([[1, 0, 6, 5], [0, 2, 6, 7]])
    options = {"sigma_rgb": 90.0, "sigma_xy": 5.0, "scale": 1.0}
    loss = dense_energy_loss(
        logits, images, mask=mask, box=box, weight=0.25, method="exact", **options
    )
    (found,) = torch.autograd.grad(loss, logits)
    _, gradient = loop(logits, images, mask, box, **options)
    at = logits.detach().softmax(1)
    expected = at * (gradient - (at * gradient).sum(1, keepdim=True))
    assert_close(found, 0.25 / 2 * expected)


@covers("dense_energy_loss", "properties")
class TestProperties:
    @every_method
    def test_images_classes_and_masks(self, method):
        logits, images, mask = problem(3)
        options = {"method": method, **WIDE}
        loss = dense_energy_loss(logits, images, mask=mask, **options)
        assert loss < 0
        each = [
            dense_energy_loss(logits[b : b + 1], images[b : b + 1], mask=mask[b : b + 1], **options)
            for b in range(2)
        ]
        assert_close(sum(each) / 2, loss)
        order = [2, 0, 1]
        assert_close(dense_energy_loss(logits[:, order], images, mask=mask, **options), loss)
        assert_close(dense_energy_loss(logits + 3, images, mask=mask, **options), loss)
        # of the labels, only where there is one matters
        changed = mask.where(mask == 255, 0).to(torch.uint8)
        assert_close(dense_energy_loss(logits, images, mask=changed, **options), loss)
        unlabelled = torch.full_like(mask, 255)
        none = dense_energy_loss(logits, images, **options)
        assert_close(dense_energy_loss(logits, images, mask=unlabelled, **options), none)
        assert none < loss
        doubled = {**options, "weight": 2 * WIDE["weight"]}
        assert_close(dense_energy_loss(logits, images, mask=mask, **doubled), 2 * loss)

    @pytest.mark.parametrize("method", ["exact", "cells"])
    def test_padding_does_not_matter(self, method):
        logits, images, mask = problem(4, grid=(6, 7))
        box = torch.tensor([[0, 2, 4, 7], [1, 0, 6, 5]])
        options = {"box": box, "method": method, **WIDE}
        loss = dense_energy_loss(logits, images, mask=mask, **options)
        inside = torch.zeros(2, 1, 6, 7, dtype=torch.bool)
        inside[0, :, 0:4, 2:7] = inside[1, :, 1:6, 0:5] = True
        outside = dense_energy_loss(
            logits.where(inside, 7.0),
            images.where(inside, 0.3),
            mask=mask.where(inside[:, 0], 1),
            scale=1.0,
            **options,
        )
        assert_close(outside, dense_energy_loss(logits, images, mask=mask, scale=1.0, **options))
        assert dense_energy_loss(logits, images, mask=mask, method=method, **WIDE) < loss

    def test_labels_along_an_edge_cost_less(self):
        images = torch.zeros(1, 3, 20, 20)
        images[..., 10:] = 1
        right = 4 * torch.stack([1 - images[:, 0], images[:, 0]], 1)
        for method in METHODS:
            losses = [
                dense_energy_loss(right.roll(shift, dims=3), images, method=method)
                for shift in (0, 2, 4)
            ]
            assert losses[0] < losses[1] < losses[2]

    def test_methods_agree(self):
        """On a smooth image; a lattice holds about half of the weight, as the docstring says."""
        y, x = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 48), indexing="ij")
        images = torch.stack([x, y, (x + y) / 2])[None]
        logits = problem(5, 1, 4, (5, 6), dtype=torch.float32)[0]
        exact, cells, lattice = (
            dense_energy_loss(logits, images, method=m, scale=1.0, sigma_xy=30.0) for m in METHODS
        )
        assert_close(cells / exact, 1.0, dtype=torch.bfloat16)
        assert 0.4 < lattice / exact < 0.65


@covers("dense_energy_loss", "gradcheck")
@every_method
def test_gradient(method):
    """Where every pixel is unlabelled, the gate is 1 and the gradient the derivative."""
    logits, images, mask = problem(6)
    box = torch.tensor([[0, 0, 6, 7], [2, 1, 6, 6]])
    if method == "exact":
        call = {"mask": torch.full_like(mask, 255), "box": box, "method": method, **WIDE}
        assert_gradcheck(lambda x: dense_energy_loss(x, images, **call), logits.requires_grad_())
    else:  # their matrices are not symmetric: half the gradient follows the transposed product
        call = {"mask": mask, "box": box, **WIDE, "sigma_rgb": 500.0, "sigma_xy": 50.0}
        logits.requires_grad_()
        found, exact = (
            torch.autograd.grad(dense_energy_loss(logits, images, method=m, **call), logits)[0]
            for m in (method, "exact")
        )
        assert torch.cosine_similarity(found.flatten(), exact.flatten(), 0) > 0.99


@covers("dense_energy_loss", "module")
def test_module():
    logits, images, mask = problem(7)
    box = torch.tensor([[0, 0, 6, 7], [2, 1, 6, 6]])
    tensors = {"mask": mask, "box": box}
    expected = dense_energy_loss(logits, images, **tensors)
    assert_module(DenseEnergyLoss(), expected, logits, images, **tensors)
    options = {"scale": 1.0, "method": "cells", "ignore_index": 1, **WIDE}
    expected = dense_energy_loss(logits, images, **tensors, **options)
    module = DenseEnergyLoss(**options)
    assert_module(module, expected, logits, images, **tensors)
    assert "scale=1.0, method='cells', ignore_index=1" in repr(module)


@covers("dense_energy_loss", "dtypes")
@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(method, dtype):
    logits, images, mask = problem(8, dtype=dtype)
    options = {"method": method, **WIDE}
    exact = dense_energy_loss(logits.double(), images.double(), mask=mask, **options)
    logits.requires_grad_()
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = dense_energy_loss(logits, images, mask=mask.to(torch.uint8), **options)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(loss, exact, dtype=torch.float32)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()
    mixed = dense_energy_loss(logits, images.float(), mask=mask, **options)
    assert_close(mixed, exact, dtype=torch.float32)


@covers("dense_energy_loss", "compile")
@pytest.mark.parametrize("method", ["exact", "cells"])
def test_compiles(method):
    """A lattice has as many points as the image asks for, and breaks the graph."""
    logits, images, mask = problem(9, dtype=torch.float32)
    box = torch.tensor([[0, 0, 6, 7], [2, 1, 6, 6]])

    def call(logits, images, mask, box):
        return dense_energy_loss(logits, images, mask=mask, box=box, method=method, **WIDE)

    assert_compiles(call, logits, images, mask, box)


def test_the_lattice_runs_beside_a_compiled_graph():
    logits, images, _ = problem(10, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, i: dense_energy_loss(x + 0, i) * 2, backend="eager")
    assert_same(compiled(logits, images), dense_energy_loss(logits, images) * 2)


@covers("dense_energy_loss", "degenerate")
@every_method
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 3)])
def test_degenerate(method, size):
    images = torch.full((2, 3, *size), 0.3)
    logits = torch.randn(2, 3, 2, 2, generator=generator(0)).requires_grad_()
    boxes = torch.tensor([[0, 0, 0, 0], [*size, *size]]), None
    for mask in (torch.zeros(2, *size).long(), torch.full((2, *size), 255), None):
        for box in boxes:
            loss = dense_energy_loss(logits, images, mask=mask, box=box, method=method)
            (gradient,) = torch.autograd.grad(loss, logits)
            assert loss.isfinite()
            assert gradient.isfinite().all()
            if box is not None:  # nothing but padding
                assert loss == 0
                assert (gradient == 0).all()
    one = dense_energy_loss(torch.zeros(2, 1, 2, 2), images, method=method)
    assert one < 0
    sure = torch.zeros(2, 1, 2, 2)
    labelled = torch.zeros(2, *size).long()
    assert dense_energy_loss(sure, images, mask=labelled, method=method) == 0  # the gate is shut
    assert dense_energy_loss(logits[:0], images[:0], method=method) == 0


@covers("dense_energy_loss", "errors")
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"logits": torch.rand(3, 4, 4)}, ValueError, r"logits must have shape \(B, C, h, w\)"),
        ({"logits": torch.ones(1, 2, 4, 4).int()}, TypeError, "logits must be a floating-point"),
        ({"logits": torch.full((1, 2, 4, 4), torch.nan)}, ValueError, "logits must be finite"),
        ({"images": torch.rand(1, 8, 8)}, ValueError, r"images must have shape \(B, 3, H, W\)"),
        ({"images": torch.rand(2, 3, 8, 8)}, ValueError, "images must have shape .* with B=1"),
        ({"images": torch.rand(1, 3, 8, 8) * 255}, ValueError, r"images must be RGB in \[0, 1\]"),
        ({"images": torch.ones(1, 3, 8, 8).int()}, TypeError, "images must be a floating-point"),
        ({"images": torch.ones(1, 3, 8, 8, device="meta")}, ValueError, "images must be on the d"),
        ({"mask": torch.zeros(1, 4, 4).int()}, ValueError, "mask must have shape .* H=8, W=8"),
        ({"mask": torch.zeros(1, 8, 8)}, TypeError, "mask must be an integer tensor"),
        ({"mask": torch.zeros(1, 8, 8, device="meta").int()}, ValueError, "mask must be on the d"),
        ({"box": torch.ones(1, 4)}, TypeError, "box must be an integer"),
        ({"box": torch.ones(2, 4).int()}, ValueError, r"box must have shape \(B, 4\) with B=1"),
        ({"box": torch.tensor([[0, 0, 9, 8]])}, ValueError, "box must hold top <= bottom"),
        ({"weight": -1.0}, ValueError, "weight must be finite and >= 0, got -1.0"),
        ({"weight": "1"}, TypeError, "weight must be a number"),
        ({"sigma_rgb": 0.0}, ValueError, "sigma_rgb must be finite and at least 1e-6, got 0.0"),
        ({"sigma_xy": float("nan")}, ValueError, "sigma_xy must be finite and at least 1e-6"),
        ({"scale": 0.0}, ValueError, r"scale must be in \(0, 1\], got 0.0"),
        ({"scale": 1.5}, ValueError, r"scale must be in \(0, 1\], got 1.5"),
        ({"method": "fast"}, ValueError, "method must be one of 'auto', 'lattice'.* got 'fast'"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index must be an int"),
        ({"sigma_rgb": 1e-5}, ValueError, "sigma_rgb and sigma_xy must be larger to fit"),
    ],
)
def test_errors(change, error, match):
    call = {"logits": torch.rand(1, 2, 4, 4), "images": torch.rand(1, 3, 8, 8)} | change
    with pytest.raises(error, match=match):
        dense_energy_loss(call.pop("logits"), call.pop("images"), **call)
    options = {"weight", "sigma_rgb", "sigma_xy", "scale", "method", "ignore_index"}
    if change.keys() <= options and "larger" not in match:
        with pytest.raises(error, match=match):
            DenseEnergyLoss(**change)


def test_the_method_is_logged(caplog):
    logits, images, _ = problem(11)
    with caplog.at_level(logging.DEBUG, logger="wsss_blocks"):
        auto = dense_energy_loss(logits, images)
        assert_same(dense_energy_loss(logits, images, method="lattice"), auto)
    assert [r.getMessage() for r in caplog.records] == [
        "dense_energy_loss: method 'lattice' for 3 x 3 pixels"
    ]


def test_inputs_are_left_alone_and_images_get_no_gradient():
    logits, images, mask = problem(12)
    before = logits.clone(), images.clone(), mask.clone()
    box = torch.tensor([[1, 1, 4, 4]] * 2)
    for method in METHODS:
        loss = dense_energy_loss(
            logits.requires_grad_(), images.requires_grad_(), mask=mask, box=box, method=method
        )
        assert torch.autograd.grad(loss, images, allow_unused=True) == (None,)
    assert_same((logits, images, mask), before)


def test_descent_sharpens_labels_towards_the_image():
    """Soft labels whose edge is blurred, on an image with an edge."""
    images = torch.zeros(1, 3, 16, 16)
    images[..., 9:] = 1
    ramp = torch.linspace(1, -1, 16).expand(1, 1, 16, 16)
    logits = torch.cat([ramp, -ramp], 1).clone().requires_grad_()
    for _ in range(30):
        loss = dense_energy_loss(logits, images, weight=1e-2, scale=1.0, method="exact")
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - 2 * gradient).detach().requires_grad_()
    label = logits.argmax(1)
    assert torch.equal(label, (images[:, 0] > 0).long())
    assert logits.softmax(1).amax(1).min() > 0.9


@pytest.mark.cuda
@every_method
def test_cuda_equals_cpu(method):
    logits, images, mask = problem(13, dtype=torch.float32)
    expected = dense_energy_loss(logits, images, mask=mask, method=method, **WIDE)
    on_gpu = (x.cuda() for x in (logits, images))
    assert_close(
        dense_energy_loss(*on_gpu, mask=mask.cuda(), method=method, **WIDE).cpu(), expected
    )
