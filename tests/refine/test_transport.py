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
from oracles.transport_refine import (
    plan_oracle,
    transport_refine_oracle,
    transport_refiner_oracle,
)
from strategies import cam_problems, generator, random_labels, seeds, sizes, small

from wsss_blocks.refine import TransportRefine, add_background, transport_refine

MODES = {"fixed": {}, "official": {"official": True}}
modes = pytest.mark.parametrize("mode", MODES)


def blobs(seed=0, batch=2, classes=3, size=(9, 8), dtype=torch.float64):
    """Smooth overlapping maps around one centre per class, each with its own strength."""
    g = generator(seed)
    y, x = (torch.linspace(0, 1, s, dtype=torch.float64) for s in size)
    centre = torch.rand(2, batch, classes, 1, 1, generator=g, dtype=torch.float64)
    strength = 0.5 + 5 * torch.rand(batch, classes, 1, 1, generator=g, dtype=torch.float64)
    distance = (y[:, None] - centre[0]) ** 2 + (x - centre[1]) ** 2
    cam = strength * (torch.exp(-4 * distance) - 0.3)
    return cam.to(dtype), torch.ones(batch, classes)


@covers("transport_refine", "oracle", "degenerate")
@settings(max_examples=25)
@given(
    cam_problems(),
    seeds,
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.05, 0.1, 1.0]),
    st.sampled_from([1, 2, 20]),
    st.booleans(),
)
def test_transport_is_the_loop(problem, seed, guided, masked, reg, num_iters, official):
    cam, labels, g = problem.cam, problem.labels, generator(seed)
    guide = torch.randn(cam.shape, generator=g, dtype=torch.float64) if guided else None
    valid = torch.rand(cam[:, 0].shape, generator=g) < 0.6 if masked else None
    kwargs = {"guide": guide, "reg": reg, "num_iters": num_iters, "valid": valid}
    out = transport_refine(cam, labels, official=official, **kwargs)
    assert_close(out, transport_refine_oracle(cam, labels, official=official, **kwargs))


@settings(max_examples=15)
@given(seeds, small, sizes(4), sizes(6), st.booleans(), st.sampled_from([0.05, 0.5]))
def test_refiner_is_the_loop(seed, classes, low, size, boxed, reg):
    g = generator(seed)
    images = torch.rand(2, 3, *size, generator=g)
    maps = 1.5 * torch.rand(2, classes + 1, *low, generator=g, dtype=torch.float64)
    labels = random_labels(2, classes, g)
    box, valid = None, None
    if boxed:  # the cells of the first column and all rows of the map are in
        box = torch.tensor([[0, 0, size[0], (size[1] + 1) // 2]]).expand(2, 4)
        middle = [(x + 0.5) * size[1] / low[1] < (size[1] + 1) // 2 for x in range(low[1])]
        valid = torch.tensor(middle).expand(2, *low)
    out = TransportRefine(reg=reg, num_iters=3)(images.double(), maps, labels=labels, box=box)
    expected = transport_refiner_oracle(size, maps, labels, valid, reg=reg, num_iters=3)
    assert_close(out, expected)


@covers("transport_refine", "oracle")
def test_official_stop_depends_on_the_number_of_cells():
    """The released rule: 2 iterations on a fine grid, more on a coarse one (spec 1.4)."""
    coarse = torch.rand(1, 3, 4, 4, generator=generator(1), dtype=torch.float64)
    coarse = coarse / coarse.amax((2, 3), keepdim=True)
    labels, iterations, errors = torch.ones(1, 3), [], []
    for cam in (coarse, coarse.repeat_interleave(9, 2).repeat_interleave(9, 3)):
        planes = [{(i,): float(s) for i, s in enumerate(plane)} for plane in cam[0].flatten(1)]
        _, done = plan_oracle(planes, reg=0.1, num_iters=0, official=True)
        stopped = transport_refine(cam, labels, num_iters=done)
        assert_close(transport_refine(cam, labels, official=True), stopped)
        limit = transport_refine(cam, labels, num_iters=300)
        assert (transport_refine(cam, labels) - limit).abs().max() < 2e-3
        iterations.append(done)
        errors.append((stopped - limit).abs().max())
    assert iterations[0] > iterations[1] == 2
    assert errors[0] < errors[1] > 0.03
    assert_close(limit[..., ::9, ::9], transport_refine(coarse, labels, num_iters=300))


@covers("transport_refine", "oracle")
def test_official_makes_a_hundred_iterations_at_most():
    """Classes that want overlapping cells converge slowly."""
    wants = [[[1.0, 0, 1]], [[0, 0, 1]], [[1, 1, 0]]]
    guide = torch.tensor([wants], dtype=torch.float64)
    cells = [{(i,): float(s) for i, s in enumerate(plane)} for plane in guide[0, :, 0]]
    assert plan_oracle(cells, reg=0.05, num_iters=0, official=True)[1] == 100
    call = {"guide": guide, "reg": 0.05, "official": True}
    out = transport_refine(torch.ones_like(guide), torch.ones(1, 3), **call)
    assert_close(out, transport_refine_oracle(torch.ones_like(guide), torch.ones(1, 3), **call))


@covers("transport_refine", "oracle")
@modes
@pytest.mark.parametrize("range_", [1e-3, 2e-4, 3e-5, 3e-6])
def test_plans_that_hardly_vary(mode, range_):
    """Around both clips: 1e-3 of the largest entry, and 1e-5."""
    g = generator(17)
    guide = 1 - range_ * torch.rand(1, 2, 4, 5, generator=g, dtype=torch.float64)
    cam, labels = torch.ones_like(guide), torch.ones(1, 2)
    out = transport_refine(cam, labels, guide=guide, **MODES[mode])
    expected = transport_refine_oracle(cam, labels, guide=guide, **MODES[mode])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-7)


@covers("transport_refine", "properties")
@modes
def test_finished_problems_are_frozen_on_their_own(mode):
    """A batch of unlike problems gives what each gives alone, where they stop at their own time."""
    cam, _ = blobs(2, 4, 4, (3, 3))
    cam[1] = cam[1].abs() ** 0.1
    cam[2, :, 1:] = -1
    labels = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 1.0]])
    together = transport_refine(cam, labels, **MODES[mode])
    for b in range(4):
        one = slice(b, b + 1)
        assert_close(transport_refine(cam[one], labels[one], **MODES[mode]), together[one])


@covers("transport_refine", "properties")
@modes
@pytest.mark.parametrize("seed", range(3))
def test_transport_invariances(mode, seed):
    cam, labels = blobs(seed, 2, 4)
    labels[0, 2] = 0
    valid = torch.rand(2, 9, 8, generator=generator(seed)) < 0.8
    kwargs = {"valid": valid, **MODES[mode]}
    out = transport_refine(cam, labels, **kwargs)
    assert (out >= 0).all()
    assert (out <= 1).all()
    assert (out[0, 2] == 0).all()
    assert (out.movedim(1, -1)[~valid] == 0).all()
    strength = torch.tensor([0.5, 2.0, 7.0, 100.0], dtype=torch.float64).view(4, 1, 1)
    assert_close(transport_refine(strength * cam, labels, **kwargs), out)
    assert_close(transport_refine(cam.relu(), labels, **kwargs), out)
    assert_same(transport_refine(cam, labels, guide=cam, **kwargs), out)
    assert_close(transport_refine(cam, labels, guide=3 * cam, **kwargs), out)
    order = [2, 0, 3, 1]
    permuted = transport_refine(cam[:, order], labels[:, order], **kwargs)
    assert_close(permuted, out[:, order])
    flipped = transport_refine(cam.flip(-1), labels, valid=valid.flip(-1), **MODES[mode])
    assert_close(flipped, out.flip(-1))
    assert_close(transport_refine(cam.mT, labels, valid=valid.mT, **MODES[mode]), out.mT)
    padded = torch.nn.functional.pad(cam, (1, 2, 3, 0), value=1e9)
    inside = torch.nn.functional.pad(valid, (1, 2, 3, 0))
    larger = transport_refine(padded, labels, valid=inside, **MODES[mode])
    assert_close(larger[..., 3:, 1:-2], out)
    disturbed = cam.clone()
    disturbed[0, 2] = 5.0
    assert_same(transport_refine(disturbed, labels, **kwargs), out)


@covers("transport_refine", "properties")
def test_the_plan_of_the_guide_multiplies_and_not_the_guide():
    cam, labels = blobs(4)
    guide, _ = blobs(5)
    factor = transport_refine(torch.ones_like(cam), labels, guide=guide)
    top = cam.relu().amax((2, 3), keepdim=True)
    assert_close(transport_refine(cam, labels, guide=guide), cam.relu() / top * factor)
    assert not torch.allclose(factor, guide.relu() / guide.relu().amax((2, 3), keepdim=True))


@covers("transport_refine", "properties")
def test_contested_cells_go_to_the_class_that_has_nothing_else():
    """A strong class that covers a weak one loses the shared cells, and keeps its own."""
    cam = torch.zeros(1, 2, 1, 8)
    cam[0, 0] = torch.tensor([1, 1, 1, 1, 1, 1, 0.9, 0.9])
    cam[0, 1] = torch.tensor([0, 0, 0, 0, 0, 0, 0.1, 0.1])
    out = transport_refine(cam, torch.ones(1, 2))[0, :, 0]
    assert (out[0, :6] > 0.99).all()
    assert (out[0, 6:] < 0.01).all()
    assert (out[1, 6:] > 0.99).all()


@covers("transport_refine", "properties")
def test_running_on_present_channels_equals_running_on_all(monkeypatch):
    cam, _ = blobs(6, 3, 7, dtype=torch.float32)
    labels = torch.zeros(3, 7)
    labels[0, 2] = labels[1, 1] = labels[1, 5] = 1
    compact = transport_refine(cam, labels), transport_refine(cam, labels, official=True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert_close(transport_refine(cam, labels), compact[0])
    assert_close(transport_refine(cam, labels, official=True), compact[1])


@covers("transport_refine", "gradcheck")
@modes
def test_transport_gradients(mode):
    cam, labels = blobs(7, 2, 3, (3, 4))
    guide, _ = blobs(8, 2, 3, (3, 4))
    labels[0, 1] = 0
    kwargs = {"num_iters": 4, **MODES[mode]}
    assert_gradcheck(
        lambda c, g: transport_refine(c, labels, guide=g, **kwargs),
        cam.requires_grad_(),
        guide.requires_grad_(),
    )
    assert_gradcheck(lambda c: transport_refine(c, labels, **kwargs), cam)
    through_plan = torch.autograd.grad(transport_refine(cam, labels, guide=guide).sum(), guide)[0]
    assert (through_plan[1] != 0).any()


@covers("transport_refine", "module")
def test_refiner_is_the_function_on_scores_with_maximum_one():
    cam, labels = blobs(9, 2, 3)
    labels[0, 1] = 0
    maps = add_background(cam.relu() / cam.relu().amax((2, 3), keepdim=True), value=1.0)
    images = torch.rand(2, 3, 9, 8, dtype=torch.float64)
    everything = torch.cat([torch.ones(2, 1), labels], 1)
    expected = transport_refine(maps, everything, reg=0.2, num_iters=5)
    module = TransportRefine(reg=0.2, num_iters=5)
    assert_module(module, expected, images, maps, labels=labels)
    assert repr(module) == "TransportRefine(reg=0.2, num_iters=5)"
    box = torch.tensor([[0, 2, 9, 8], [1, 0, 5, 7]])
    valid = torch.zeros(2, 9, 8, dtype=torch.bool)
    valid[0, :, 2:] = valid[1, 1:5, :7] = True
    boxed = module(images, maps, labels=labels, box=box)
    sets = module(images, torch.stack([maps.flip(2), maps], 1), labels=labels, box=box)
    assert_close(sets[:, 1], boxed)
    for b in range(2):  # the maxima inside the boxes are not all 1: scores are taken as they are
        kept = everything[b] > 0
        inside = maps[b : b + 1, kept] * valid[b]
        oracle = transport_refiner_oracle(
            (9, 8), inside, None, valid[b : b + 1], reg=0.2, num_iters=5
        )
        assert_close(boxed[b : b + 1, kept], oracle)


def test_level_of_a_constant_background_counts():
    """A low and a high background share the cells differently: neither is blown up to one."""
    cam, labels = blobs(10, 1, 2, (8, 8))
    cam = cam.relu() / cam.relu().amax((2, 3), keepdim=True)
    images, refiner = torch.rand(1, 3, 8, 8).double(), TransportRefine()
    for value in (0.2, 0.6):
        out = refiner(images, add_background(cam, value=value), labels=labels)
        assert_close(out[:, 0].amax(), torch.tensor(value, dtype=torch.float64))
    taken = [
        (refiner(images, add_background(cam, value=v), labels=labels).argmax(1) == 0).sum()
        for v in (0.1, 0.3, 0.6, 0.9)
    ]
    assert taken == sorted(taken)
    assert taken[0] < taken[-1]


def test_scores_far_above_one_stay_finite():
    g = generator(11)
    maps = torch.rand(2, 3, 4, 5, generator=g) * torch.tensor([255.0, 1e30]).view(2, 1, 1, 1)
    maps.requires_grad_()
    out = TransportRefine()(torch.rand(2, 3, 6, 6), maps)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(maps.grad).all()


@covers("transport_refine", "dtypes")
@modes
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_transport_dtypes(mode, dtype):
    cam, labels = blobs(12, 2, 3, dtype=dtype)
    out = transport_refine(cam, labels, **MODES[mode])
    assert out.dtype == dtype
    assert_close(out, transport_refine_oracle(cam.double(), labels, **MODES[mode]))
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(transport_refine(cam, labels, **MODES[mode]), out)
    mixed = transport_refine(cam, labels.long(), guide=cam.double(), **MODES[mode])
    assert mixed.dtype == dtype
    assert_close(mixed, out, dtype=torch.float32 if dtype == torch.float64 else dtype)


@covers("transport_refine", "compile")
def test_transport_compiles():
    cam, labels = blobs(13, 2, 3, (3, 4), torch.float32)
    labels[0, 1] = 0
    valid = torch.rand(2, 3, 4, generator=generator(0)) < 0.7
    assert_compiles(
        lambda c, y, v: transport_refine(c, y, valid=v, num_iters=3), cam, labels, valid
    )
    images, maps = torch.rand(2, 3, 6, 5), torch.rand(2, 2, 4, 3, 4)
    refiner = TransportRefine(num_iters=1)
    assert_compiles(lambda i, m, y: refiner(i, m, labels=y), images, maps, labels)


@covers("transport_refine", "compile")
def test_official_transport_compiles(monkeypatch):
    monkeypatch.setattr("wsss_blocks.refine._transport._OFFICIAL_ITERS", 2)
    cam, labels = blobs(13, 2, 3, (3, 4), torch.float32)
    assert_compiles(lambda c, y: transport_refine(c, y, official=True), cam, labels)


@covers("transport_refine", "errors")
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"cam": torch.rand(2, 3)}, ValueError, r"cam must have shape \(B, K, h, w\)"),
        ({"cam": torch.ones(2, 3, 4, 5).int()}, TypeError, "cam must be a floating-point"),
        ({"cam": torch.full((2, 3, 4, 5), torch.nan)}, ValueError, "cam must be finite"),
        ({"labels": torch.ones(2, 4)}, ValueError, "background column too many"),
        ({"labels": torch.full((2, 3), 2.0)}, ValueError, "labels must be multi-hot"),
        ({"guide": torch.rand(2, 3, 5, 4)}, ValueError, r"guide must have shape .* h=4, w=5"),
        ({"guide": torch.rand(2, 2, 4, 5)}, ValueError, r"guide must have shape .* K=3"),
        ({"guide": torch.ones(2, 3, 4, 5).int()}, TypeError, "guide must be a floating-point"),
        ({"guide": torch.full((2, 3, 4, 5), torch.inf)}, ValueError, "guide must be finite"),
        ({"guide": torch.rand(2, 3, 4, 5, device="meta")}, ValueError, "guide must be on"),
        ({"valid": torch.ones(2, 5, 4).bool()}, ValueError, r"valid must have shape \(B, h, w\)"),
        ({"valid": torch.ones(2, 4, 5)}, TypeError, "valid must be a bool"),
        ({"reg": 0.0}, ValueError, "reg must be positive and finite, got 0.0"),
        ({"reg": "small"}, TypeError, "reg must be a number"),
        ({"reg": 0.01, "official": True}, ValueError, "reg must be at least 0.05 with official"),
        ({"num_iters": 0}, ValueError, "num_iters must be at least 1, got 0"),
        ({"num_iters": 2.5}, TypeError, "num_iters must be an int"),
    ],
)
def test_transport_errors(change, error, match):
    call = {"cam": torch.rand(2, 3, 4, 5), "labels": torch.ones(2, 3)} | change
    with pytest.raises(error, match=match):
        transport_refine(call.pop("cam"), call.pop("labels"), **call)
    if {"reg", "num_iters"} & change.keys() and not change.get("official"):
        with pytest.raises(error, match=match):
            TransportRefine(**change)


def test_anything_may_stand_where_cells_are_not_valid():
    cam, labels = blobs(14)
    valid = torch.ones(2, 9, 8, dtype=torch.bool)
    valid[:, :2] = False
    expected = transport_refine(cam, labels, valid=valid)
    odd = cam.masked_fill(~valid[:, None], torch.nan).requires_grad_()
    out = transport_refine(odd, labels, valid=valid)
    assert_same(out, expected)
    out.sum().backward()
    assert torch.isfinite(odd.grad).all()


@covers("transport_refine", "degenerate")
@modes
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (4, 4)])
@pytest.mark.parametrize("value", [0.0, -1.0, 3.0])
def test_constant_maps_missing_classes_and_cells(mode, size, value):
    cam = torch.full((4, 3, *size), value, dtype=torch.float64)
    cam[3, 0] = torch.rand(size, generator=generator(0)) + 0.1
    cam.requires_grad_()
    labels = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1.0]])
    valid = torch.ones(4, *size, dtype=torch.bool)
    valid[0] = False
    out = transport_refine(cam, labels, valid=valid, **MODES[mode])
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(cam.grad).all()
    assert (out[0] == 0).all()
    assert (out[2] == 0).all()
    level = 1.0 if value > 0 else 0.0
    assert (out[1, 1] == level).all()  # alone: nothing to compete for
    assert_close(out, transport_refine_oracle(cam.detach(), labels, valid=valid, **MODES[mode]))


@covers("transport_refine", "degenerate")
def test_maps_that_tell_no_cells_apart_are_left_as_they_are():
    same = torch.rand(1, 1, 4, 5, generator=generator(15)) + 0.1
    out = transport_refine(same.expand(1, 3, 4, 5), torch.ones(1, 3))
    torch.testing.assert_close(out, (same / same.max()).expand(1, 3, 4, 5), atol=2e-3, rtol=0)


def test_whole_pass_of_a_padded_crop_without_image_is_finite():
    refiner = TransportRefine()
    box = torch.tensor([[3, 3, 3, 3]])
    out = refiner(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 2, 2), box=box)
    assert_same(out, torch.zeros(1, 3, 8, 8))
