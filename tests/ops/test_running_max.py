"""The plain-torch form of CAM to label against the eager chain, its memory and its syncs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import cam as oracle
from strategies import cam_problems, generator, seeds, sizes
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from wsss_blocks.ops import bilinear, reference, running_max

MODES = ("pair", "single", "power", "channel")


def arguments(cam, labels, size, mode, *, box=None, relu=True, minmax=True, ignore=255):
    """Arguments of the operation; with "channel" one map of `cam` is the background."""
    labels = labels[:, 1:] if mode == "channel" else labels
    row = torch.full((len(cam),), 0.4137, dtype=torch.promote_types(cam.dtype, torch.float32))
    low, high = {"pair": (row / 2, row), "single": (row, None)}.get(mode, (None, None))
    power = 1.7 if mode == "power" else None
    return (cam, labels, low, high, box, *size, power, relu, minmax, ignore, torch.int64)


def problem(seed, shape=(3, 5, 6, 7), present=0.6, dtype=torch.float64):
    g = generator(seed)
    cam = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
    return cam, (torch.rand(shape[:2], generator=g) < present).float()


@given(cam_problems(6), sizes(40), st.sampled_from(MODES), st.booleans(), st.booleans())
def test_equals_the_reference(p, size, mode, relu, minmax):
    if mode == "channel" and p.cam.shape[1] == 1:
        mode = "single"
    box = torch.tensor([[0, 0, size[0], size[1]]] * len(p.cam)) // torch.tensor([1, 1, 2, 1])
    given = arguments(p.cam, p.labels, size, mode, box=box, relu=relu, minmax=minmax)
    assert torch.equal(running_max.cam_to_label(*given), reference.cam_to_label(*given))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(448, 448), (375, 500), (14, 14), (9, 31)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_reference_in_single_precision(mode, size, dtype):
    cam, labels = problem(1, (4, 12, 28, 28), dtype=dtype)
    given = arguments(cam, labels, size, mode)
    differs = running_max.cam_to_label(*given) != reference.cam_to_label(*given)
    assert differs.double().mean() <= 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_with_as_many_slots_as_classes(mode, monkeypatch):
    """What a GPU without triton runs: the number of present classes is not looked at."""
    cam, labels = problem(2)
    labels[0] = 0
    given = arguments(cam, labels, (33, 20), mode, box=torch.tensor([[1, 2, 30, 20]] * 3))
    expected = running_max.cam_to_label(*given)
    assert torch.equal(expected, reference.cam_to_label(*given))
    monkeypatch.setattr(running_max, "_cheap_to_read", lambda x: False)
    assert torch.equal(running_max.cam_to_label(*given), expected)


def test_parts_of_a_batch_are_put_together(monkeypatch):
    cam, labels = problem(3, (7, 4, 5, 5))
    given = arguments(cam, labels, (20, 30), "pair", box=torch.tensor([[0, 3, 20, 30]] * 7))
    expected = running_max.cam_to_label(*given)
    for pixels in (1, 1200, 2000):
        monkeypatch.setattr(running_max, "_PIXELS_AT_ONCE", pixels)
        assert torch.equal(running_max.cam_to_label(*given), expected)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 120), st.integers(1, 120), seeds)
def test_extremes_over_the_samples_next_to_cell_borders_are_those_of_all(h, w, height, width, seed):
    maps = torch.randn(2, h, w, generator=generator(seed), dtype=torch.float64)
    every = [bilinear.axis(s, n, maps) for s, n in ((h, height), (w, width))]
    next_to = [bilinear.axis(s, n, maps, corners=True) for s, n in ((h, height), (w, width))]
    for source, size, axis in ((h, height, next_to[0]), (w, width, next_to[1])):
        assert axis is None if source == size else len(axis.cell) == 2 * (source + 1)
    dense, few = resized(maps, every), resized(maps, next_to)
    assert dense.shape == (2, height, width)
    torch.testing.assert_close(few.amin((1, 2)), dense.amin((1, 2)), rtol=0, atol=1e-14)
    torch.testing.assert_close(few.amax((1, 2)), dense.amax((1, 2)), rtol=0, atol=1e-14)
    expected = torch.stack(
        [torch.tensor(oracle.bilinear(m, (height, width))) for m in maps.tolist()]
    )
    torch.testing.assert_close(dense, expected.double(), rtol=0, atol=1e-5)


def resized(maps, axes):
    sides = [s if a is None else len(a.cell) for s, a in zip(maps.shape[1:], axes, strict=True)]
    out, step = maps.new_empty((2, len(maps), *sides))
    return bilinear.resize(maps, *axes, out=out, step=step)


@pytest.mark.parametrize("value", [0.1, -3.7, 1e30])
def test_a_constant_map_stays_exactly_constant(value):
    maps = torch.full((1, 7, 5), value)
    axes = [bilinear.axis(s, n, maps) for s, n in ((7, 131), (5, 17))]
    assert (resized(maps, axes) == maps[0, 0, 0]).all()


class Largest(TorchDispatchMode):
    """Remember the number of elements of the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // 4)
        return out


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("on_a_gpu", [False, True])
def test_no_tensor_of_all_classes_at_full_size(mode, on_a_gpu, monkeypatch):
    cam, labels = problem(4, (8, 40, 7, 7), dtype=torch.float32)
    if on_a_gpu:
        monkeypatch.setattr(running_max, "_cheap_to_read", lambda x: False)
    with Largest() as largest:
        running_max.cam_to_label(*arguments(cam, labels, (96, 96), mode))
    assert largest.elements <= 8 * 40 * 7 * 7 * 16 + 5 * 8 * 96 * 96 < 8 * 40 * 96 * 96 / 2


@pytest.mark.parametrize("mode", MODES)
def test_nothing_waits_for_a_gpu(mode):
    """Looking at a value of a fake tensor raises, as waiting for one would."""
    with FakeTensorMode():
        cam = torch.empty(2, 5, 7, 7, device="cuda")
        labels = torch.empty(2, 4 if mode == "channel" else 5, device="cuda")
        low, high = torch.empty(2, 2, device="cuda").unbind(1)
        options = {
            "pair": (low, high, None, 30, 40, None),
            "single": (low, None, None, 30, 40, None),
            "power": (None, None, torch.empty(2, 4, device="cuda").long(), 30, 40, 2.0),
            "channel": (None, None, None, 30, 40, None),
        }[mode]
        out = running_max.cam_to_label(cam, labels, *options, True, True, 255, torch.uint8)
    assert out.shape == (2, 30, 40)
    assert out.device.type == "cuda"
    assert out.dtype == torch.uint8


def test_a_label_too_large_for_a_float():
    cam, labels = problem(5)
    given = arguments(cam.float(), labels, (9, 9), "pair", ignore=2**24 + 1)
    assert torch.equal(running_max.cam_to_label(*given), reference.cam_to_label(*given))
    given = arguments(cam.float(), labels, (9, 9), "pair", ignore=2**40 + 1)
    out = running_max.cam_to_label(*given)
    assert (out == 2**40 + 1).any()
