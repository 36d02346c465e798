import copy

import pytest
import torch
import torch.nn.functional as F
from contract import assert_close, assert_compiles, assert_module, assert_same, covers, flatten
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.dhr import rebalance_oracle
from oracles.transport_refine import factor_oracle
from strategies import generator, random_labels, random_mask, seeds, sizes

from wsss_blocks.refine import ClassRebalancer, NoRefiner, class_groups
from wsss_blocks.refine._rebalance_transport import group_factor

SIZE = (12, 10)


def problem(seed=0, batch=2, classes=3, size=SIZE, grid=(5, 4), uss=None, dtype=torch.float64):
    """Images, CAM, mask, labels, USS features and two WSS features; masks follow the labels."""
    g = generator(seed)
    labels = random_labels(batch, classes, g)
    mask = random_mask((batch, *size), classes + 1, g)
    absent = F.pad(labels, (1, 0), value=1.0).eq(0)
    absent = F.pad(absent, (0, 255 - classes), value=False)
    mask = mask.masked_fill(absent.gather(1, mask.flatten(1)).view_as(mask), 0)

    def normal(dim, shape):
        return torch.randn(batch, dim, *shape, generator=g, dtype=torch.float64).to(dtype)

    images = torch.rand(batch, 3, *size, generator=g).to(dtype)
    features = normal(2, uss or grid), (normal(3, grid), normal(2, grid))
    return [images, normal(classes, (4, 3)), mask, labels, *features]


def boxes(batch, size, g):
    (top, bottom), (left, right) = (
        torch.randint(0, side + 1, (batch, 2), generator=g).sort(1).values.unbind(1)
        for side in size
    )
    return torch.stack([top, left, bottom, right], 1)


def assert_is_the_loop(out, call, **kwargs):
    """Equal heat-maps, and equal masks but for pixels where two classes are level."""
    _, cam, mask, labels, uss, wss = call
    compared = 0
    for b in range(len(mask)):
        own = {k: v[b] for k, v in kwargs.items() if isinstance(v, torch.Tensor)}
        expected, initial, heat, seed_margin, margin = rebalance_oracle(
            None if cam is None else cam[b],
            mask[b],
            labels[b],
            None if uss is None else uss[b],
            [f[b] for f in wss],
            **{**kwargs, **own},
        )
        if seed_margin < 1e-6:
            continue
        clear = margin > 1e-5
        assert_same(out.initial[b], initial)
        torch.testing.assert_close(out.heatmaps[b].double(), heat, rtol=0, atol=1e-5)
        assert_same(out.mask[b][clear], expected[clear])
        compared += int(clear.sum())
    return compared


@covers("ClassRebalancer", "oracle", "degenerate")
@settings(max_examples=20)
@given(
    seeds,
    st.integers(1, 4),
    sizes(6),
    sizes(4),
    sizes(4),
    st.sampled_from(["uss", "wss", "both"]),
    st.sampled_from([0.0, 0.8]),
    st.sets(st.sampled_from(["no cam", "box", "valid", "size", "same", "ignored", "constant"])),
)
def test_rebalancing_is_the_loop(seed, classes, size, grid, other, features, threshold, odd):
    call = problem(seed, 2, classes, size, grid, uss=other)
    g = generator(seed + 1)
    kwargs = {}
    if "no cam" in odd:
        call[1] = None
    elif "constant" in odd:
        call[1][:, 0] = 2.0
    if "same" in odd:  # features of an image are all alike
        call[4][0] = call[4][0, :, :1, :1]
    if "ignored" in odd:
        call[2][0] = 255
    if "box" in odd:
        kwargs["box"] = boxes(2, size, g)
    if "valid" in odd and features != "wss":
        kwargs["valid"] = torch.rand(2, *other, generator=g) < 0.7
    if features == "uss":
        call[5] = ()
    elif features == "wss":
        call[4] = None
    options = {"threshold": threshold, "size": (3, 2) if "size" in odd else None}
    out = ClassRebalancer(**options)(*call, **kwargs)
    assert_is_the_loop(out, call, **kwargs, **options)


@covers("ClassRebalancer", "oracle")
@pytest.mark.parametrize("threshold", [0.0, 0.8])
def test_batches_of_many_classes_are_the_loop_and_most_pixels_are_clear(threshold):
    call = problem(3, 3, 6)
    call[2][2] = 255
    call[1] = call[1] - 1  # or no pixel of the masks would stay
    out = ClassRebalancer(threshold=threshold)(*call)
    assert assert_is_the_loop(out, call, threshold=threshold) > 2 * SIZE[0] * SIZE[1]


@covers("ClassRebalancer", "properties")
def test_an_image_gets_what_it_gets_alone():
    call = problem(4, 4, 5)
    box = boxes(4, SIZE, generator(0))
    together = ClassRebalancer()(*call, box=box)
    for b in range(4):
        one = slice(b, b + 1)
        alone = ClassRebalancer()(
            *(x[one] for x in call[:5]), tuple(f[one] for f in call[5]), box=box[one]
        )
        assert_same(alone.mask, together.mask[one])
        assert_close(alone.heatmaps, together.heatmaps[one])


@covers("ClassRebalancer", "properties")
def test_classes_may_be_permuted():
    images, cam, mask, labels, uss, wss = problem(5, 3, 4)
    order = [2, 0, 3, 1]
    table = torch.full((256,), 255)
    table[0] = 0
    for new, old in enumerate(order):
        table[old + 1] = new + 1
    out = ClassRebalancer()(images, cam, mask, labels, uss, wss)
    moved = ClassRebalancer()(images, cam[:, order], table[mask], labels[:, order], uss, wss)
    assert_close(moved.heatmaps, out.heatmaps[:, [0, 3, 1, 4, 2]])
    assert_same(moved.initial, table[out.initial])
    assert (moved.mask == table[out.mask]).double().mean() > 0.98  # ties go to the lowest class


@covers("ClassRebalancer", "properties")
def test_running_on_present_classes_equals_running_on_all(monkeypatch):
    """A GPU keeps a slot for each class."""
    call = problem(6, 3, 9)
    call[3][:, 5:] = 0
    call[2][call[2] > 5] = 0
    compact = ClassRebalancer(threshold=0.0)(*call)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    every = ClassRebalancer(threshold=0.0)(*call)
    assert_close(every.heatmaps, compact.heatmaps)
    assert_same(every.mask, compact.mask)


@covers("ClassRebalancer", "properties")
def test_what_is_not_given_is_left_out():
    """The six rows of the paper's component tables."""
    images, cam, mask, labels, uss, wss = problem(7, 2, 3)
    refined = []

    class Recorder(NoRefiner):
        def forward(self, *args, **kwargs):
            refined.append(args[1].shape[1])
            return super().forward(*args, **kwargs)

    rebalancer = ClassRebalancer(refiner=Recorder())
    plain = ClassRebalancer(refiner=Recorder(), refine_seed=False)
    none = plain(images, None, mask, labels)
    assert_same(none.mask, mask)
    assert none.heatmaps is None
    ot = plain(images, cam, mask, labels)
    assert not refined
    assert_same(ot.mask, rebalancer(images, cam, mask, labels).mask)
    assert len(refined) == 1
    assert (ot.mask != mask).any()
    rows = [
        rebalancer(images, cam, mask, labels, u, w) for u, w in ((None, wss), (uss, ()), (uss, wss))
    ]
    assert len(refined) == 1 + 3 * 2
    for row in rows:
        assert_same(row.initial, ot.mask)
    assert not torch.allclose(rows[0].heatmaps, rows[1].heatmaps)
    no_groups = ClassRebalancer(threshold=1.0)(images, cam, mask, labels, uss, wss)
    assert_close(no_groups.heatmaps, rows[1].heatmaps)


@covers("ClassRebalancer", "properties")
def test_features_win_over_a_wrong_mask():
    """A quarter of a mask is shifted; the features know the truth, the CAM is silent."""
    truth = torch.zeros(1, 16, 16, dtype=torch.int64)
    truth[:, 4:12, 2:8], truth[:, 4:12, 8:14] = 1, 2
    mask = torch.zeros_like(truth)
    mask[:, 6:14, 2:8], mask[:, 6:14, 8:14] = 1, 2
    uss = torch.stack([truth == c for c in range(3)], 1).float()
    uss += 0.3 * torch.rand(uss.shape, generator=generator(8))
    images, labels = torch.rand(1, 3, 16, 16), torch.ones(1, 2)
    out = ClassRebalancer()(images, torch.zeros(1, 2, 4, 4), mask, labels, uss)
    assert_same(out.initial, mask)
    wrong = (mask != truth).float().mean()
    assert (out.mask != truth).float().mean() < 0.2 * wrong


@covers("ClassRebalancer", "properties")
@pytest.mark.parametrize("seed", range(4))
def test_groups_share_one_kernel_but_not_their_plans(seed):
    g = generator(seed)
    maps = torch.rand(2, 6, 3, 4, generator=g, dtype=torch.float64)
    valid = torch.rand(2, 3, 4, generator=g) < 0.8
    centroids = torch.randn(2, 6, 2, generator=g, dtype=torch.float64)
    groups = class_groups(centroids, torch.rand(2, 6, generator=g) < 0.9)
    assert groups.any()
    out = group_factor(maps, groups, valid, reg=0.1, num_iters=20)
    for b in range(2):
        cells = [tuple(c) for c in valid[b].nonzero().tolist()]
        expected = valid[b].double().expand(6, 3, 4).clone()
        for row in groups[b]:
            members = torch.where(row)[0].tolist()
            scores = [{c: float(maps[b, k][c]) for c in cells} for k in members]
            factors = factor_oracle(scores, reg=0.1, num_iters=20, official=False)
            for k, factor in zip(members, factors, strict=True):
                for c in cells:
                    expected[k][c] = factor[c]
        assert_close(out[b], expected)


@covers("ClassRebalancer", "module")
def test_module_keeps_its_options():
    call = problem(9)
    options = {"threshold": 0.5, "size": (3, 3), "reg": 0.2, "num_iters": 4}
    expected = ClassRebalancer(**options)(*call)
    module = ClassRebalancer(**options)
    assert_module(module, expected, *call)
    shown = "refine_seed=True, threshold=0.5, size=(3, 3), reg=0.2, num_iters=4"
    assert shown in repr(module)
    learned = torch.nn.Conv2d(1, 1, 1)
    owner = ClassRebalancer(refiner=copy.deepcopy(learned))
    assert set(owner.state_dict()) == {"refiner.weight", "refiner.bias"}


@covers("ClassRebalancer", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rebalancing_dtypes(dtype):
    call = problem(10, dtype=dtype)
    out = ClassRebalancer()(*call)
    assert out.mask.dtype == out.initial.dtype == torch.int64
    assert out.heatmaps.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    wide = [
        x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in call
    ]
    wide[5] = tuple(f.double() for f in call[5])
    exact = ClassRebalancer()(*wide)
    assert_close(
        out.heatmaps, exact.heatmaps, dtype=torch.bfloat16 if dtype.itemsize == 2 else dtype
    )
    assert (out.mask == exact.mask).double().mean() > (0.95 if dtype.itemsize == 2 else 0.99)
    with torch.autocast("cpu", torch.bfloat16):
        again = ClassRebalancer()(*call)
    assert_same(again, out)
    mixed = ClassRebalancer()(*call[:4], call[4].float(), tuple(f.bfloat16() for f in call[5]))
    assert torch.isfinite(mixed.heatmaps).all()
    narrow = ClassRebalancer()(*call[:2], call[2].to(torch.uint8), *call[3:])
    assert_same(narrow, out)


@covers("ClassRebalancer", "compile")
def test_rebalancing_compiles():
    call = problem(11, dtype=torch.float32)
    module, box = ClassRebalancer(num_iters=1), torch.tensor([[0, 0, 12, 10], [2, 1, 9, 10]])
    valid = torch.rand(2, 5, 4, generator=generator(1)) < 0.8
    assert_compiles(lambda *a: module(*a[:6], box=a[6], valid=a[7]), *call, box, valid)


@covers("ClassRebalancer", "errors")
@pytest.mark.parametrize(
    ("at", "value", "error", "match"),
    [
        ("images", torch.rand(2, 1, 12, 10), ValueError, r"images must have shape \(B, 3, H, W\)"),
        ("images", 255 * torch.rand(2, 3, 12, 10), ValueError, r"images must be RGB in \[0, 1\]"),
        ("cam", torch.rand(2, 4, 4, 3), ValueError, r"cam must have shape .* K=3"),
        ("cam", torch.ones(2, 3, 4, 3).int(), TypeError, "cam must be a floating-point"),
        ("cam", torch.full((2, 3, 4, 3), torch.nan), ValueError, "cam must be finite"),
        ("mask", torch.zeros(2, 6, 5).int(), ValueError, "mask must have shape .* H=12, W=10"),
        ("mask", torch.zeros(2, 12, 10), TypeError, "mask must be an integer tensor"),
        ("mask", torch.full((2, 12, 10), 4), ValueError, r"mask must hold ids in \[0, 4\)"),
        ("labels", torch.rand(2), ValueError, r"labels must have shape \(B, K\)"),
        ("labels", torch.full((2, 3), 2.0), ValueError, "labels must be multi-hot"),
        ("uss", torch.rand(1, 2, 5, 4), ValueError, "uss_features must have shape .* B=2"),
        ("uss", torch.ones(2, 2, 5, 4).int(), TypeError, "uss_features must be a floating"),
        ("uss", torch.full((2, 2, 5, 4), torch.inf), ValueError, "uss_features must be finite"),
        ("wss", (torch.rand(2, 5),), ValueError, r"wss_features must have shape \(B, D, h, w\)"),
        ("wss", (torch.ones(2, 2, 5, 4).int(),), TypeError, "wss_features must be a floating"),
        ("wss", 3, TypeError, "wss_features must be a sequence"),
        ("box", torch.zeros(2, 3).int(), ValueError, r"box must have shape \(B, 4\)"),
        ("box", torch.zeros(2, 4), TypeError, "box must be an integer"),
        ("box", torch.tensor([[0, 0, 13, 10]] * 2), ValueError, "box must hold top <= bottom"),
        ("valid", torch.ones(2, 4, 5).bool(), ValueError, r"valid must have shape \(B, h, w\)"),
        ("valid", torch.ones(2, 5, 4), TypeError, "valid must be a bool"),
        ("threshold", 1.5, ValueError, r"threshold must be in \[0, 1\]"),
        ("size", (0, 3), ValueError, "size must be None or two positive sides"),
        ("reg", 0.01, ValueError, "reg must be at least 0.02, got 0.01"),
        ("num_iters", 0, ValueError, "num_iters must be at least 1"),
        ("ignore_index", 3, ValueError, r"ignore_index must not be one of the classes 0..3, got 3"),
        ("ignore_index", "none", TypeError, "ignore_index must be an int"),
    ],
)
def test_rebalancing_errors(at, value, error, match):
    names = ("images", "cam", "mask", "labels", "uss", "wss")
    call = dict(zip(names, problem(12, dtype=torch.float32), strict=True))
    options, extra = {}, {}
    target = call if at in names else extra if at in ("box", "valid") else options
    target[at] = value
    with pytest.raises(error, match=match):
        ClassRebalancer(**options)(*call.values(), **extra)


@covers("ClassRebalancer", "errors")
def test_what_cannot_go_together_is_refused():
    call = problem(13)
    call[4] = None
    with pytest.raises(ValueError, match="valid must come with uss_features"):
        ClassRebalancer()(*call, valid=torch.ones(2, 5, 4).bool())
    with pytest.raises(ValueError, match=r"refiner must return maps of shape \(2, \d, 12, 10\)"):
        ClassRebalancer(refiner=lambda images, maps, **_: maps)(*call)


@covers("ClassRebalancer", "degenerate")
def test_masks_without_classes_stay_empty():
    """All ignored, no labels, an empty box, an empty batch: ignored pixels and zero maps."""
    images, _, mask, labels, uss, wss = problem(14)
    nothing = ClassRebalancer()(images, None, torch.full_like(mask, 255), labels, uss, wss)
    assert (nothing.mask == 255).all()
    assert (nothing.heatmaps == 0).all()
    empty = torch.zeros(2, 4, dtype=torch.int64)
    outside = ClassRebalancer()(*problem(14), box=empty)
    assert (outside.mask == 255).all()
    assert (outside.heatmaps == 0).all()
    unlabelled = ClassRebalancer()(*problem(14)[:3], torch.zeros_like(labels), uss, wss)
    assert set(unlabelled.mask.unique().tolist()) == {0}
    gone = ClassRebalancer()(*(x[:0] for x in problem(14)[:5]), tuple(f[:0] for f in wss))
    assert gone.mask.shape == (0, *SIZE)


@covers("ClassRebalancer", "degenerate")
def test_identical_features_and_constant_maps_are_finite():
    images, cam, mask, labels, uss, wss = problem(15, dtype=torch.float32)
    labels[:] = 1
    same = [torch.ones_like(x) for x in (cam, uss, *wss)]
    out = ClassRebalancer()(images, same[0], mask, labels, same[1], tuple(same[2:]))
    assert (out.heatmaps == 0).all()
    assert all(torch.isfinite(x).all() for x in flatten(out))
    assert set(out.mask.unique().tolist()) <= {0, 1, 2, 3}


@covers("ClassRebalancer", "degenerate")
@pytest.mark.parametrize("size", [(1, 1), (8, 8)])
def test_one_class_images_keep_their_background(size):
    """The released code floods them (spec, B1): without a second class the maximum is 1."""
    cam = torch.zeros(1, 1, *size)
    cam[0, 0, 0, 0] = 1
    mask = torch.zeros(1, *size, dtype=torch.int64)
    images, labels = torch.rand(1, 3, *size), torch.ones(1, 1)
    out = ClassRebalancer()(images, cam, mask, labels)
    expected = torch.zeros(1, *size, dtype=torch.int64)
    expected[0, 0, 0] = 1
    assert_same(out.mask, expected)


def test_data_without_background_never_gets_any():
    """ADE20K has ids 1..K: no pixel of the result may be 0."""
    images, cam, mask, labels, uss, wss = problem(16, 3, 4)
    labels[:] = 1
    out = ClassRebalancer()(images, cam, mask.clamp_min(1), labels, uss, wss)
    assert (out.mask > 0).all()
    assert (out.heatmaps[:, 0] == 0).all()
    assert len(out.mask.unique()) > 1


def test_classes_that_the_labels_exclude_are_not_looked_at():
    images, cam, mask, labels, uss, wss = problem(17, 2, 3)
    labels[:] = torch.tensor([1.0, 0, 0])
    mask[:, :4] = 3
    out = ClassRebalancer()(images, cam, mask, labels, uss, wss)
    ignored = ClassRebalancer()(images, cam, mask.where(mask < 2, 255), labels, uss, wss)
    assert_same(out.mask, ignored.mask)
    assert_same(out.heatmaps, ignored.heatmaps)
    assert set(out.mask.unique().tolist()) <= {0, 1}


def test_anything_may_stand_in_features_that_are_not_valid():
    call = problem(18, uss=(6, 6))
    valid = torch.rand(2, 6, 6, generator=generator(2)) < 0.9
    expected = ClassRebalancer()(*call, valid=valid)
    call[4] = call[4].masked_fill(~valid[:, None], torch.nan)
    assert_same(ClassRebalancer()(*call, valid=valid), expected)


def test_nothing_needs_a_gradient():
    call = problem(19)
    call[1].requires_grad_()
    call[4].requires_grad_()
    assert not any(x.requires_grad for x in flatten(ClassRebalancer()(*call)))
