from itertools import pairwise

import pytest
import torch
from contract import assert_compiles, assert_module, covers
from hypothesis import given
from hypothesis import strategies as st
from oracles import cam as oracle
from strategies import cam_problems, generator, random_labels, seeds, sizes

from wsss_blocks.cam import CAMToLabel, cam_to_label

PAIR = (0.25, 0.7)


def random_problem(seed, shape=(2, 4, 3, 4)):
    g = generator(seed)
    cam = torch.randn(shape, generator=g, dtype=torch.float64)
    labels = random_labels(shape[0], shape[1], g)
    labels[0, 1] = 1
    return cam, labels


def random_box(batch, size, g):
    rows = torch.randint(0, size[0] + 1, (batch, 2), generator=g).sort(1).values
    columns = torch.randint(0, size[1] + 1, (batch, 2), generator=g).sort(1).values
    return torch.stack([rows[:, 0], columns[:, 0], rows[:, 1], columns[:, 1]], dim=1)


def row(*maps):
    """A CAM (1, K, 1, W) whose values are taken as they are (see `plain`)."""
    return torch.tensor([maps], dtype=torch.float64)[:, :, None, :]


def plain(cam, labels, **options):
    """Labels at the CAM's own size, without rescaling of values; one row as a list."""
    out = cam_to_label(
        cam, torch.tensor([labels]), size=(1, cam.shape[-1]), normalize=None, **options
    )
    return out[0, 0].tolist()


def assert_labels(actual, expected, *, gap=1e-9):
    """Equal, except where the scores are as good as tied."""
    labels, margins = expected
    assert actual.shape == labels.shape
    assert not ((actual.long() != labels) & (margins > gap)).any()


@covers("cam_to_label", "oracle")
@given(
    cam_problems(5),
    seeds,
    sizes(8),
    st.sampled_from([0.0, 0.3, 0.5, PAIR, (0.4, 0.4), (0.0, 0.9)]),
    st.booleans(),
    st.sampled_from(["minmax", None]),
    st.booleans(),
)
def test_oracle_with_thresholds(problem, seed, size, threshold, relu, normalize, boxed):
    cam, labels = problem.cam, problem.labels
    box = random_box(cam.shape[0], size, generator(seed)) if boxed else None
    options = {"size": size, "threshold": threshold, "relu": relu, "normalize": normalize}
    actual = cam_to_label(cam, labels, box=box, **options)
    assert actual.dtype == torch.int64
    assert_labels(actual, oracle.cam_to_label(cam, labels, box=box, **options))


@covers("cam_to_label", "oracle")
@given(cam_problems(5), seeds, sizes(8), st.booleans())
def test_oracle_with_thresholds_per_image(problem, seed, size, pair):
    cam, labels = problem.cam, problem.labels
    shape = (cam.shape[0], 2) if pair else (cam.shape[0],)
    t = torch.rand(shape, generator=generator(seed), dtype=torch.float64)
    t = t.sort(1).values if pair else t
    per_image = [tuple(r) if pair else r for r in t.tolist()]
    actual = cam_to_label(cam, labels, size=size, threshold=t)
    assert_labels(actual, oracle.cam_to_label(cam, labels, size, per_image))


@covers("cam_to_label", "oracle")
@given(cam_problems(5), seeds, sizes(8), st.sampled_from([0.5, 1.0, 4.0]), st.booleans())
def test_oracle_with_a_scored_background(problem, seed, size, power, relu):
    cam, labels = problem.cam, problem.labels
    options = {"size": size, "relu": relu}
    actual = cam_to_label(cam, labels, background_power=power, **options)
    expected = oracle.cam_to_label(cam, labels, background_power=power, **options)
    assert_labels(actual, expected)
    background = torch.randn(cam[:, :1].shape, generator=generator(seed), dtype=torch.float64)
    maps = torch.cat([background, cam], dim=1)
    for normalize in ("minmax", None):
        options = {"size": size, "threshold": None, "relu": relu, "normalize": normalize}
        actual = cam_to_label(maps, labels, **options)
        assert_labels(actual, oracle.cam_to_label(maps, labels, **options))


@covers("cam_to_label", "properties")
def test_rules_on_a_three_value_cam():
    cam = row([0.25, 0.5, 0.75])
    assert plain(cam, [1.0]) == [0, 0, 1]  # exactly the threshold is background
    assert plain(cam, [1.0], threshold=(0.25, 0.5)) == [0, 255, 1]
    assert plain(cam, [1.0], threshold=(0.25, 0.75)) == [0, 255, 255]
    assert plain(cam, [1.0], threshold=(0.5, 0.5)) == [0, 0, 1]
    assert plain(cam, [1.0], threshold=(0.0, 0.9), ignore_index=7) == [7, 7, 7]
    assert plain(cam, [0.0], threshold=0.0) == [0, 0, 0]
    assert plain(cam, [1.0], background_power=1.0) == [0, 0, 1]  # .75, .5 (a tie), .25
    assert plain(cam, [1.0], background_power=3.0) == [0, 1, 1]  # .42, .125, .016


@covers("cam_to_label", "properties")
def test_background_wins_ties_then_the_lowest_class():
    tied = row(*[[0.75] * 64] * 5)
    assert plain(tied, [1.0] * 5) == [1] * 64
    assert plain(tied, [0.0, 0.0, 1.0, 0.0, 1.0]) == [3] * 64
    assert plain(tied, [0.0, 0.0, 1.0, 1.0], threshold=None) == [0] * 64
    tied[:, 0] = 0.5
    assert plain(tied, [0.0, 0.0, 1.0, 1.0], threshold=None) == [3] * 64


@covers("cam_to_label", "properties")
def test_an_absent_class_is_never_chosen():
    cam = row([-2.0, -2.0], [-1.0, 5.0], [-3.0, 4.0])
    assert plain(cam, [0.0, 1.0], threshold=None, relu=False) == [0, 2]
    assert plain(cam, [1.0, 0.0, 0.0], relu=False) == [0, 0]
    assert plain(cam, [1.0, 0.0, 1.0], relu=False) == [0, 3]
    assert plain(cam, [1.0, 0.0, 0.0], relu=False, background_power=1.0) == [0, 0]


@covers("cam_to_label", "properties")
def test_monotone_in_the_thresholds():
    cam, labels = random_problem(0, (3, 4, 5, 6))
    steps = [i / 10 for i in range(11)]
    by_low = [cam_to_label(cam, labels, size=(20, 24), threshold=(t, 1.0)) == 0 for t in steps]
    by_high = [cam_to_label(cam, labels, size=(20, 24), threshold=(0.0, t)) for t in steps]
    for lower, higher in pairwise(by_low):
        assert (higher | ~lower).all()
    for lower, higher in pairwise(by_high):
        assert ((higher == lower) | (higher == 255)).all()
    assert by_low[0].sum() < by_low[5].sum() < by_low[10].sum()


@covers("cam_to_label", "properties")
def test_permuted_classes_give_permuted_ids_and_mirrored_maps_mirrored_labels():
    cam, labels = random_problem(1)
    out = cam_to_label(cam, labels, size=(12, 10), threshold=PAIR)
    order = torch.tensor([2, 0, 3, 1])
    permuted = cam_to_label(cam[:, order], labels[:, order], size=(12, 10), threshold=PAIR)
    table = torch.full((256,), 255)
    table[0] = 0
    table[1:5] = order + 1
    assert torch.equal(table[permuted], out)
    mirrored = cam_to_label(cam.flip(-1), labels, size=(12, 10), threshold=PAIR)
    assert torch.equal(mirrored, out.flip(-1))
    assert set(out.unique().tolist()) > {0, 255}


@covers("cam_to_label", "properties")
def test_the_box_only_ignores_and_never_changes_the_scale():
    cam, labels = random_problem(2)
    box = torch.tensor([[1, 3, 5, 9], [0, 0, 6, 2]])
    whole = cam_to_label(cam, labels, size=(6, 10))
    boxed = cam_to_label(cam, labels, size=(6, 10), box=box)
    assert torch.equal(boxed[0, 1:5, 3:9], whole[0, 1:5, 3:9])
    assert torch.equal(boxed[1, :, :2], whole[1, :, :2])
    assert (boxed == 255).sum() == 2 * 60 - 4 * 6 - 6 * 2


@covers("cam_to_label", "properties")
def test_inputs_stay_and_nothing_is_differentiated():
    cam, labels = random_problem(3)
    before = cam.clone()
    out = cam_to_label(cam.requires_grad_(), labels, size=(6, 6))
    assert not out.requires_grad
    assert torch.equal(cam, before)


@covers("cam_to_label", "module")
def test_module():
    cam, labels = random_problem(4)
    box = torch.tensor([[0, 1, 6, 7], [2, 2, 3, 8]])
    options = {"threshold": PAIR, "relu": False, "ignore_index": 99, "dtype": torch.uint8}
    expected = cam_to_label(cam, labels, size=(6, 8), box=box, **options)
    assert_module(CAMToLabel(**options), expected, cam, labels, size=(6, 8), box=box)
    expected = cam_to_label(cam, labels, size=(6, 8), background_power=2.0)
    assert_module(CAMToLabel(background_power=2.0), expected, cam, labels, size=(6, 8))
    expected = cam_to_label(cam, labels[:, 1:], size=(6, 8), threshold=None, normalize=None)
    module = CAMToLabel(threshold=None, normalize=None)
    assert_module(module, expected, cam, labels[:, 1:], size=(6, 8))


@covers("cam_to_label", "dtypes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    cam, labels = random_problem(5)
    cam = cam.to(dtype)
    expected, margins = oracle.cam_to_label(cam.double(), labels, (7, 9), PAIR)
    assert margins.min() > 1e-6
    out = cam_to_label(cam, labels.to(dtype), size=(7, 9), threshold=PAIR)
    assert torch.equal(out, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cam_to_label(cam, labels, size=(7, 9), threshold=PAIR), expected)
    t = torch.tensor([[0.25, 0.7]] * 2, dtype=torch.float64)
    assert torch.equal(cam_to_label(cam, labels.bool(), size=(7, 9), threshold=t), expected)
    for out_dtype in (torch.uint8, torch.int32, torch.int64):
        out = cam_to_label(cam, labels.long(), size=(7, 9), threshold=PAIR, dtype=out_dtype)
        assert out.dtype == out_dtype
        assert torch.equal(out.long(), expected)


@covers("cam_to_label", "compile")
def test_compile():
    cam, labels = random_problem(6)
    box, t = torch.tensor([[0, 1, 6, 7], [2, 2, 3, 8]]), torch.tensor([[0.2, 0.6]] * 2)
    assert_compiles(
        lambda c, y, b, t: cam_to_label(c, y, size=(6, 8), threshold=t, box=b), cam, labels, box, t
    )
    assert_compiles(
        lambda c, y: cam_to_label(c, y[:, 1:], size=(6, 8), threshold=None), cam, labels
    )


@covers("cam_to_label", "errors")
def test_errors():
    cam, labels = random_problem(7)
    size = (6, 8)
    with pytest.raises(ValueError, match=r"cam must have shape \(B, K, h, w\), got \(4, 3, 4\)"):
        cam_to_label(cam[0], labels, size=size)
    with pytest.raises(TypeError, match="cam must be a floating-point tensor"):
        cam_to_label(cam.long(), labels, size=size)
    broken = cam.clone()
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="cam must be finite, got 1 NaN"):
        cam_to_label(broken, labels, size=size)
    with pytest.raises(ValueError, match=r"labels must have shape \(B, K\) with B=2, K=4, got"):
        cam_to_label(cam, labels[:, 1:], size=size)
    with pytest.raises(ValueError, match="is there a background column too many"):
        cam_to_label(cam, labels, size=size, threshold=None)
    with pytest.raises(ValueError, match=r"cam must have K \+ 1 >= 2 channels"):
        cam_to_label(cam[:, :1], labels[:, :0], size=size, threshold=None)
    with pytest.raises(ValueError, match="ignore_index must be greater than K=4, got 4"):
        cam_to_label(cam, labels, size=size, ignore_index=4)
    with pytest.raises(ValueError, match=r"dtype must hold ignore_index=255, got torch\.int8"):
        cam_to_label(cam, labels, size=size, dtype=torch.int8)
    with pytest.raises(TypeError, match=r"dtype must be an integer dtype, got torch\.float32"):
        cam_to_label(cam, labels, size=size, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"size must be two positive sides .* got \(0, 8\)"):
        cam_to_label(cam, labels, size=(0, 8))
    with pytest.raises(ValueError, match="normalize must be one of 'minmax', got 'max'"):
        cam_to_label(cam, labels, size=size, normalize="max")
    with pytest.raises(ValueError, match=r"box must have shape \(B, 4\) with B=2"):
        cam_to_label(cam, labels, size=size, box=torch.tensor([[0, 0, 6, 8]]))
    with pytest.raises(TypeError, match="box must be an integer tensor"):
        cam_to_label(cam, labels, size=size, box=torch.tensor([[0.0, 0, 6, 8]] * 2))


@covers("cam_to_label", "errors")
def test_threshold_errors():
    cam, labels = random_problem(8)
    for threshold, message in [
        (-0.1, r"threshold must be >= 0 .* got -0\.1"),
        (float("nan"), "threshold must be >= 0"),
        ((-0.1, 0.5), "threshold must be >= 0"),
        ((0.7, 0.25), r"low <= high, got \(0\.7, 0\.25\)"),
        (torch.tensor([0.5, -0.5]), "threshold must be >= 0, got a minimum"),
        (torch.tensor([[0.1, 0.2], [0.7, 0.25]]), r"low <= high, got \[0\.69"),
        (torch.tensor(0.5), r"threshold must have shape \(B,\) or \(B, 2\) with B=2, got \(\)"),
        (torch.rand(2, 3), r"threshold must have shape .* got \(2, 3\)"),
        (torch.rand(3), r"threshold must have shape .* got \(3,\)"),
        (torch.rand(2, device="meta"), "threshold must be on the device of cam"),
    ]:
        with pytest.raises(ValueError, match=message):
            cam_to_label(cam, labels, size=(6, 8), threshold=threshold)
    with pytest.raises(TypeError, match="threshold must be a floating-point tensor"):
        cam_to_label(cam, labels, size=(6, 8), threshold=torch.tensor([0, 1]))
    for threshold in (0.3, PAIR, torch.rand(2)):
        with pytest.raises(ValueError, match=r"threshold must be left at 0\.5"):
            cam_to_label(cam, labels, size=(6, 8), threshold=threshold, background_power=1.0)
    with pytest.raises(ValueError, match=r"threshold must be left at 0\.5"):
        CAMToLabel(threshold=None, background_power=1.0)
    with pytest.raises(ValueError, match="background_power must be positive"):
        cam_to_label(cam, labels, size=(6, 8), background_power=0.0)
    with pytest.raises(ValueError, match="low <= high"):
        CAMToLabel(threshold=(0.7, 0.25))


@covers("cam_to_label", "degenerate")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [-1.0, 0.0, 0.1, 1000.7])
def test_a_constant_map_is_background_at_any_size(value, dtype):
    for size in ((1, 1), (33, 17), (131, 97)):
        cam = torch.full((1, 1, 7, 5), value, dtype=dtype)
        label = cam_to_label(cam, torch.ones(1, 1), size=size, threshold=0.0)
        assert label.shape == (1, *size)
        assert not label.any()


@covers("cam_to_label", "degenerate")
def test_degenerate():
    cam, labels = random_problem(9)
    for options in ({}, {"threshold": PAIR}, {"background_power": 1.0}):
        assert not cam_to_label(cam, torch.zeros_like(labels), size=(5, 6), **options).any()
        assert cam_to_label(cam[:0], labels[:0], size=(5, 6), **options).shape == (0, 5, 6)
    one = torch.ones(1, 1, 1, 1)
    assert cam_to_label(one, torch.ones(1, 1), size=(1, 1)).item() == 0
    assert cam_to_label(one, torch.ones(1, 1), size=(1, 1), normalize=None).item() == 1
    empty = torch.tensor([[2, 3, 2, 5]] * 2)
    assert (cam_to_label(cam, labels, size=(5, 6), box=empty) == 255).all()
