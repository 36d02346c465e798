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
from oracles.refine import par_oracle, par_refiner_oracle, position_weights_oracle
from strategies import generator, random_labels, seeds, sizes, small
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wsss_blocks.refine import PixelAdaptiveRefine, pixel_adaptive_refine

FULL = (1, 2, 4, 8, 12, 24)
KERNELS = {
    "par": {"scale": 0.3, "position_weight": 0.01, "kernel": "par"},
    "pamr": {"scale": 0.1, "position_weight": 0.0, "kernel": "pamr"},
}
kernels = st.sampled_from(list(KERNELS.values()))


def options(kernel):
    return {
        "colour_scale": kernel["scale"],
        "position_weight": kernel["position_weight"],
        "kernel": kernel["kernel"],
    }


def problem(seed=0, batch=2, channels=3, size=(7, 6), low=None, dtype=torch.float64):
    g = generator(seed)
    images = torch.rand(batch, 3, *size, generator=g, dtype=torch.float64)
    maps = torch.rand(batch, channels, *(low or size), generator=g, dtype=torch.float64)
    return images.to(dtype), maps.to(dtype)


@covers("pixel_adaptive_refine", "oracle")
@settings(max_examples=15)
@given(seeds, small, sizes(6), sizes(5), kernels, st.sampled_from([(1,), (2, 3), FULL]))
def test_par_is_the_loop(seed, channels, size, low, kernel, dilations):
    images, maps = problem(seed, 1, channels, size, low)
    out = pixel_adaptive_refine(images, maps, dilations=dilations, iterations=2, **options(kernel))
    assert_close(out, par_oracle(images, maps, dilations=dilations, iterations=2, **kernel))


@covers("pixel_adaptive_refine", "oracle")
def test_constant_map_grows_by_the_sum_of_the_weights():
    images, _ = problem(size=(30, 26))
    out = pixel_adaptive_refine(images, torch.full((2, 1, 3, 3), 0.5, dtype=torch.float64))
    assert_close(out, torch.full((2, 1, 30, 26), 0.5 * 1.01**10, dtype=torch.float64))
    pamr = pixel_adaptive_refine(images, torch.ones_like(out), **options(KERNELS["pamr"]))
    assert_close(pamr, torch.ones_like(out))


@covers("pixel_adaptive_refine", "oracle")
def test_position_weights_of_the_default_rings():
    """On flat colour w = 1/48 + 0.01 p; the response to one lit pixel shows p (spec 3.5)."""
    side = 51
    maps = torch.zeros(1, 1, side, side, dtype=torch.float64)
    maps[..., 25, 25] = 1
    images = torch.full((1, 3, side, side), 0.4, dtype=torch.float64)
    one = {"iterations": 1}
    response = pixel_adaptive_refine(images, maps, position_weight=1.0, **one)[0, 0] - 1 / 48
    for y, x, weight in (
        (25, 24, 0.07645),
        (24, 26, 0.06826),
        (25, 27, 0.05441),
        (23, 23, 0.03458),
    ):
        assert response[y, x].item() == pytest.approx(weight, abs=5e-6)
    far = [response[25 + d * y, 25 + d * x] for d in FULL[2:] for y, x in _ring()]
    assert sum(far).item() == pytest.approx(0.0652, abs=5e-5)
    assert sum(position_weights_oracle(FULL)[16:]) == pytest.approx(0.0652, abs=5e-5)
    assert response[25, 25].item() == pytest.approx(-1 / 48)  # the centre has no weight


def _ring():
    return [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]


@covers("pixel_adaptive_refine", "properties")
@pytest.mark.parametrize("name", KERNELS)
def test_par_is_linear_flips_with_the_image_and_shares_weights(name):
    images, maps = problem(3, 2, 4)
    kwargs = {"dilations": (1, 3), "iterations": 3, **options(KERNELS[name])}
    out = pixel_adaptive_refine(images, maps, **kwargs)
    scaled = pixel_adaptive_refine(images, 2 * maps - 1, **kwargs)
    ones = pixel_adaptive_refine(images, torch.ones_like(maps), **kwargs)
    assert_close(scaled, 2 * out - ones)
    assert_close(pixel_adaptive_refine(images.flip(-1), maps.flip(-1), **kwargs), out.flip(-1))
    assert_close(pixel_adaptive_refine(images.mT, maps.mT, **kwargs), out.mT)
    assert_close(pixel_adaptive_refine(images[:, [2, 0, 1]], maps, **kwargs), out)
    bright = pixel_adaptive_refine(images * 255, maps, **kwargs)
    assert_close(bright, out, dtype=torch.float32)  # equal but for the 1e-8 beside sigma
    assert_close(pixel_adaptive_refine(images[:1], maps[:1], **kwargs), out[:1])
    sets = pixel_adaptive_refine(images, maps.unflatten(1, (2, 2)), **kwargs)
    assert_same(sets.flatten(1, 2), out)
    assert (out >= maps.amin() - 1e-12).all()


@covers("pixel_adaptive_refine", "properties")
def test_par_moves_mass_along_colour_edges():
    """A blurred step in the map becomes sharp where the image has a step."""
    images = torch.zeros(1, 3, 24, 24)
    images[..., 12:] = 1
    images += 0.02 * torch.rand(images.shape, generator=generator(0))
    step = torch.linspace(0, 1, 24).expand(1, 1, 24, 24)
    out = pixel_adaptive_refine(images, step, dilations=(1, 2, 4), iterations=20)
    before = step[..., 12] - step[..., 11]
    assert (out[..., 12] - out[..., 11] > 5 * before).all()


@covers("pixel_adaptive_refine", "gradcheck")
@pytest.mark.parametrize("name", KERNELS)
def test_par_gradients(name):
    images, maps = problem(5, 1, 2, (5, 4), (3, 3))
    kwargs = {"dilations": (1, 2), "iterations": 3, **options(KERNELS[name])}
    assert_gradcheck(
        lambda i, m: pixel_adaptive_refine(i, m, **kwargs),
        images.requires_grad_(),
        maps.requires_grad_(),
    )


@covers("pixel_adaptive_refine", "properties")
def test_par_gives_the_same_with_and_without_gradients():
    images, maps = problem(6)
    with torch.no_grad():
        fast = pixel_adaptive_refine(images, maps)
    assert_same(pixel_adaptive_refine(images.requires_grad_(), maps.requires_grad_()), fast)


class LiveBytes(TorchDispatchMode):
    """The most bytes that the results of all calls held at one time."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                reference = StorageWeakRef(tensor.untyped_storage())
                self.alive[reference.cdata] = reference, tensor.untyped_storage().nbytes()
        self.alive = {k: v for k, v in self.alive.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


@covers("pixel_adaptive_refine", "properties")
@pytest.mark.parametrize("name", KERNELS)
def test_par_holds_its_weights_once(name):
    """The weights are by far the largest thing: a second copy of them would be the peak."""
    images, maps = problem(12, 2, 2, (48, 48), dtype=torch.float32)
    with LiveBytes() as memory, torch.no_grad():
        pixel_adaptive_refine(images, maps, dilations=(1, 2, 3, 4), **options(KERNELS[name]))
    weights = 32 * 4 * 2 * 48 * 48
    assert weights < memory.peak < 1.75 * weights


@covers("pixel_adaptive_refine", "module")
@pytest.mark.parametrize("name", KERNELS)
def test_par_module(name):
    images, maps = problem(7)
    kwargs = {"dilations": (1, 2), "iterations": 2, **options(KERNELS[name])}
    module = PixelAdaptiveRefine(**kwargs, downsample=1, softmax=False)
    assert_module(module, pixel_adaptive_refine(images, maps, **kwargs), images, maps)
    assert "dilations=(1, 2)" in repr(module)


def test_pamr_preset_is_the_pamr_kernel():
    images, maps = problem(7)
    expected = pixel_adaptive_refine(images, maps, **options(KERNELS["pamr"]))
    assert_same(PixelAdaptiveRefine.pamr()(images, maps), expected)


@settings(max_examples=8)
@given(seeds, small, sizes(6), sizes(4), st.booleans(), st.integers(1, 3), kernels)
def test_refiner_is_the_recipe(seed, classes, size, low, softmax, downsample, kernel):
    images, maps = problem(seed, 2, classes + 1, size, low)
    labels = random_labels(2, classes, generator(seed))
    kwargs = {"dilations": (1, 2), "iterations": 2}
    recipe = {"downsample": downsample, "softmax": softmax}
    module = PixelAdaptiveRefine(**kwargs, **recipe, **options(kernel))
    expected = par_refiner_oracle(images, maps, labels, **kwargs, **recipe, **kernel)
    assert_close(module(images, maps, labels=labels), expected)


def test_running_on_present_channels_equals_running_on_all(monkeypatch):
    images, maps = problem(8, 3, 9, dtype=torch.float32)
    labels = torch.zeros(3, 8)
    labels[0, 2] = labels[1, 1] = labels[1, 7] = 1
    refiner = PixelAdaptiveRefine(iterations=3)
    compact = refiner(images, maps, labels=labels)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert_close(refiner(images, maps, labels=labels), compact)


@covers("pixel_adaptive_refine", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_par_dtypes(dtype):
    images, maps = problem(9, dtype=dtype)
    kwargs = {"dilations": (1, 2), "iterations": 3}
    out = pixel_adaptive_refine(images, maps, **kwargs)
    assert out.dtype == dtype
    assert_close(out, par_oracle(images.double(), maps.double(), **kwargs))
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(pixel_adaptive_refine(images, maps, **kwargs), out)
    mixed = pixel_adaptive_refine(images.float(), maps, **kwargs)
    assert mixed.dtype == dtype
    assert_close(mixed, out, dtype=torch.float32 if dtype == torch.float64 else dtype)


@covers("pixel_adaptive_refine", "compile")
def test_par_compiles():
    images, maps = problem(10, low=(3, 3), dtype=torch.float32)
    kwargs = {"dilations": (1,), "iterations": 2}
    assert_compiles(lambda i, m: pixel_adaptive_refine(i, m, **kwargs), images, maps)


@covers("pixel_adaptive_refine", "errors")
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"images": torch.rand(3, 8, 8)}, ValueError, r"images must have shape \(B, 3, H, W\)"),
        ({"maps": torch.rand(1, 8, 8)}, ValueError, r"maps must have shape \(B, C, h, w\)"),
        ({"maps": torch.rand(2, 2, 8, 8)}, ValueError, r"with B=1, got \(2, 2, 8, 8\)"),
        ({"maps": torch.full((1, 1, 2, 2), torch.inf)}, ValueError, "maps must be finite"),
        ({"images": torch.full((1, 3, 2, 2), torch.nan)}, ValueError, "images must be finite"),
        ({"maps": torch.ones(1, 1, 2, 2).int()}, TypeError, "maps must be a floating-point"),
        ({"images": torch.ones(1, 3, 2, 2).int()}, TypeError, "images must be a floating-point"),
        ({"dilations": ()}, ValueError, r"dilations must be one or more integers >= 1, got \(\)"),
        ({"dilations": (0, 1)}, ValueError, r"dilations .* got \(0, 1\)"),
        ({"iterations": -1}, ValueError, "iterations must be at least 0, got -1"),
        ({"colour_scale": 0.0}, ValueError, "colour_scale must be positive and finite"),
        ({"position_weight": -1.0}, ValueError, "position_weight must be finite and >= 0"),
        ({"kernel": "crf"}, ValueError, "kernel must be one of 'par', 'pamr', got 'crf'"),
    ],
)
def test_par_errors(change, error, match):
    call = {"images": torch.rand(1, 3, 8, 8), "maps": torch.rand(1, 2, 8, 8)} | change
    with pytest.raises(error, match=match):
        pixel_adaptive_refine(call.pop("images"), call.pop("maps"), **call)
    if not {"images", "maps"} & change.keys():
        with pytest.raises(error, match=match):
            PixelAdaptiveRefine(**change)


def test_downsample_must_be_positive():
    with pytest.raises(ValueError, match="downsample must be at least 1, got 0"):
        PixelAdaptiveRefine(downsample=0)


@covers("pixel_adaptive_refine", "degenerate")
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 5)])
def test_flat_colour_gives_uniform_weights(name, size):
    kernel = KERNELS[name]
    images = torch.full((1, 3, *size), 0.3, requires_grad=True)
    maps = torch.rand(1, 2, *size, generator=generator(0)).requires_grad_()
    out = pixel_adaptive_refine(images, maps, dilations=(1, 2), iterations=2, **options(kernel))
    expected = par_oracle(
        torch.full((1, 3, *size), 0.3).double(),
        maps.detach().double(),
        dilations=(1, 2),
        iterations=2,
        **kernel,
    )
    assert_close(out, expected)
    out.square().sum().backward()
    assert torch.isfinite(images.grad).all()
    assert torch.isfinite(maps.grad).all()


@covers("pixel_adaptive_refine", "degenerate")
def test_a_pixel_unlike_its_flat_surroundings_stays_finite():
    images = torch.zeros(1, 3, 9, 9)
    images[..., 4, 4] = 1
    maps = torch.zeros(1, 1, 9, 9)
    maps[..., :4] = 1
    out = pixel_adaptive_refine(images, maps, dilations=(1, 2), iterations=1, position_weight=0.0)
    assert torch.isfinite(out).all()
    assert_close(out[0, 0, 4, 4], torch.tensor(6 / 16))  # all neighbours count alike


@covers("pixel_adaptive_refine", "degenerate")
def test_no_iteration_only_resizes():
    images, maps = problem(11, low=(3, 2))
    expected = torch.nn.functional.interpolate(
        maps, size=(7, 6), mode="bilinear", align_corners=True
    )
    assert_same(pixel_adaptive_refine(images, maps, iterations=0), expected)
