import copy
import pickle

import pytest
import torch
from contract import assert_close, assert_compiles, assert_gradcheck, assert_same, covers
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.affinity import (
    edge_affinity_oracle,
    half_disc_oracle,
    matrix_oracle,
    random_walk_oracle,
    walk_refiner_oracle,
)
from strategies import generator, random_labels, seeds, sizes, small

from wsss_blocks.refine import (
    NeighbourAffinity,
    RandomWalk,
    _stencil,
    _walk,
    edge_affinity,
    feature_affinity,
    random_walk,
)

OFFSETS = tuple(half_disc_oracle(3))


def problem(seed=0, batch=2, channels=2, size=(4, 3), offsets=OFFSETS, dtype=torch.float64):
    g = generator(seed)
    maps = torch.rand(batch, channels, *size, generator=g, dtype=torch.float64)
    values = torch.rand(batch, len(offsets), *size, generator=g, dtype=torch.float64)
    return maps.to(dtype), NeighbourAffinity(values.to(dtype), offsets)


def forms(affinity):
    """The same affinity as sums over neighbours, as a matrix and as sparse matrices."""
    dense = affinity.to_dense()
    return {"neighbours": affinity, "dense": dense, "sparse": dense.to_sparse()}


FORMS = ("neighbours", "dense", "sparse")


@pytest.fixture(autouse=True)
def no_small_grids(monkeypatch):
    """Grids this small take a matrix: here they take what large ones take."""
    monkeypatch.setattr(_walk, "_FEW_CELLS", 0)


@covers("random_walk", "properties")
@pytest.mark.parametrize("steps", [5, 90])
def test_small_grids_walk_alike(monkeypatch, steps):
    maps, affinity = problem(2, 2, 3, (6, 5))
    maps.requires_grad_()
    affinity.values.requires_grad_()
    valid = torch.rand(2, 6, 5, generator=generator(1)) < 0.8
    found = []
    for few in (0, 30):
        monkeypatch.setattr(_walk, "_FEW_CELLS", few)
        out = random_walk(maps, affinity, steps=steps, valid=valid)
        out.square().sum().backward()
        found.append([out, maps.grad, affinity.values.grad])
        maps.grad = affinity.values.grad = None
    for one, other in zip(*found, strict=True):
        assert_close(one, other)


@covers("random_walk", "oracle")
@settings(max_examples=10)
@given(seeds, small, sizes(4), st.sampled_from([1.0, 2.5, 8.0]), st.integers(0, 9), st.booleans())
def test_walk_is_the_loop(seed, channels, size, beta, steps, masked):
    maps, affinity = problem(seed, 2, channels, size)
    matrix = matrix_oracle(affinity.values, affinity.offsets)
    valid = torch.rand(2, *size, generator=generator(seed)) < 0.7 if masked else None
    options = {"beta": beta, "steps": steps, "valid": valid}
    expected = random_walk_oracle(maps, matrix, **options)
    for name, form in forms(affinity).items():
        assert_close(random_walk(maps, form, **options), expected), name


@covers("random_walk", "oracle")
@pytest.mark.parametrize("offsets", [((1, -3),), ((2, 1), (0, 4)), ((3, 0), (1, -1))])
@pytest.mark.parametrize("size", [(3, 1), (1, 2), (4, 5)])
def test_any_pairs(offsets, size):
    maps, affinity = problem(1, 2, 2, size, offsets)
    matrix = matrix_oracle(affinity.values, list(offsets))
    expected = random_walk_oracle(maps, matrix, beta=2.0, steps=4)
    assert_close(random_walk(maps, affinity, beta=2.0, steps=4), expected)


@covers("random_walk", "oracle")
@settings(max_examples=6)
@given(seeds, sizes(3), st.booleans())
def test_asymmetric_matrices_are_taken_as_they_are(seed, size, masked):
    g = generator(seed)
    n = size[0] * size[1]
    maps = torch.rand(1, 2, *size, generator=g, dtype=torch.float64)
    matrix = torch.rand(1, n, n, generator=g, dtype=torch.float64)
    matrix = matrix * (torch.rand(1, n, n, generator=g) < 0.5)  # columns of zeros occur
    valid = torch.rand(1, *size, generator=g) < 0.7 if masked else None
    expected = random_walk_oracle(maps, matrix, beta=2.0, steps=3, valid=valid)
    for affinity in (matrix, matrix.to_sparse(), matrix.to_sparse_csr()):
        out = random_walk(maps, affinity, beta=2.0, steps=3, valid=valid)
        assert_close(out, expected)


@covers("random_walk", "oracle")
@pytest.mark.parametrize(("steps", "beta"), [(64, 8.0), (256, 10.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_papers_walks_equal_their_multiplications(steps, beta, dtype):
    """Of the papers' numbers of steps a third is computed: nothing but rounding may show it."""
    maps, affinity = problem(3, 1, 3, (9, 8), tuple(half_disc_oracle(5)))
    transition = matrix_oracle(affinity.values, affinity.offsets) ** beta
    transition = transition / transition.sum(1, keepdim=True)
    expected = maps.flatten(2) @ torch.linalg.matrix_power(transition, steps)
    factors = _walk._series(steps, torch.finfo(dtype).eps)
    assert dtype == torch.float64 or len(factors) == {64: 41, 256: 85}[steps]
    cast = affinity._replace(values=affinity.values.to(dtype))
    out = random_walk(maps.to(dtype), cast, beta=beta, steps=steps).double()
    assert (out.flatten(2) - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 1e-12)


@covers("random_walk", "dtypes")
@pytest.mark.parametrize("few", [0, 10**6])
def test_long_walks_are_accurate_in_float32(monkeypatch, few):
    """Totals summed in float32 would leave 1.2e-4 here, whatever the number of sums."""
    monkeypatch.setattr(_walk, "_FEW_CELLS", few)
    g = generator(0)
    level = torch.nn.functional.interpolate(torch.rand(1, 1, 3, 3, generator=g), size=(28, 28))
    level = torch.nn.functional.avg_pool2d(level, 5, 1, 2, count_include_pad=False)
    edge = (1 - 8 * (level - 0.5).abs()).clamp(0, 1)
    maps = torch.rand(1, 3, 28, 28, generator=g) * (1 - edge)
    affinity = edge_affinity(edge)
    out = random_walk(maps, affinity, beta=10, steps=256)
    exact = affinity._replace(values=affinity.values.double())
    expected = random_walk(maps.double(), exact, beta=10, steps=256)
    assert (out - expected).abs().max() <= 5e-5


def test_refined_scores_are_never_below_zero(monkeypatch):
    """A series cut off early falls below zero, however little a proper one may."""
    monkeypatch.setattr(_walk, "_series", lambda steps, accuracy: [3 / 7, 0, 4 / 7])
    affinity = edge_affinity(torch.zeros(1, 1, 12, 12))
    seed = torch.zeros(1, 1, 12, 12)
    seed[..., 6, 6] = 1
    assert random_walk(seed, affinity).min() < -0.1
    module = RandomWalk(lambda images, features: affinity)
    assert module(torch.rand(1, 3, 12, 12), seed).min() == 0


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 16, 65, 256, 1000])
@pytest.mark.parametrize("accuracy", [1e-3, 1e-7, 1e-15])
def test_series_of_a_power(steps, accuracy):
    factors = _walk._series(steps, accuracy)
    t = torch.linspace(-1, 1, 101, dtype=torch.float64)
    if isinstance(factors, int):
        assert factors == steps
        return
    assert len(factors) <= steps
    found = sum(c * torch.cos(k * torch.arccos(t)) for k, c in enumerate(factors))
    assert (found - t**steps).abs().max() <= 2 * accuracy + 1e-13
    assert sum(factors) == pytest.approx(1, abs=1e-14)


@covers("random_walk", "properties")
@pytest.mark.parametrize("form", FORMS)
def test_constants_stay_and_walks_add_up(form):
    maps, affinity = problem(4, 2, 3)
    one = forms(affinity)[form]
    assert_close(random_walk(torch.full_like(maps, 0.3), one), torch.full_like(maps, 0.3))
    once = random_walk(maps, one, steps=70)
    assert (once >= maps.amin((2, 3), keepdim=True) - 1e-9).all()
    assert (once <= maps.amax((2, 3), keepdim=True) + 1e-9).all()
    assert_close(random_walk(random_walk(maps, one, steps=30), one, steps=40), once)
    assert_close(random_walk(2 * maps - 1, one, steps=70), 2 * once - 1)
    assert_close(random_walk(maps.flip(1), one, steps=70), once.flip(1))
    sets = random_walk(torch.stack([maps, maps.flip(1)], 1), one, steps=70)
    assert_close(sets, torch.stack([once, once.flip(1)], 1))
    assert_same(random_walk(maps, one, steps=0), maps)


@covers("random_walk", "properties")
def test_scores_stay_on_their_side_of_an_edge():
    edge = torch.zeros(1, 1, 12, 12)
    edge[..., 5:7] = 0.95
    seed = torch.zeros(1, 1, 12, 12)
    seed[..., 6, 2] = 1
    out = random_walk(seed * (1 - edge), edge_affinity(edge), beta=10, steps=256)
    assert out[..., :5].min() > 0.01
    assert out[..., 7:].max() < 1e-6
    assert out[..., :5].max() < 2 * out[..., :5].min()


@covers("random_walk", "properties")
def test_only_shares_of_a_column_count():
    maps, affinity = problem(5)
    dense = affinity.to_dense()
    scale = torch.logspace(-30, 3, 12, dtype=torch.float64)
    expected = random_walk(maps, dense)
    for form in (dense * scale, (dense * scale).to_sparse()):
        assert_close(random_walk(maps.float(), form.float()), expected, dtype=torch.float32)


@covers("random_walk", "properties")
def test_pairs_that_leave_the_grid_do_not_count():
    maps, affinity = problem(6)
    outside = _stencil.on_grid(affinity.values, OFFSETS) == 0
    moved = torch.where(outside, 1 - affinity.values, affinity.values)
    assert (moved != affinity.values).any()
    assert_same(
        random_walk(maps, affinity._replace(values=moved)),
        random_walk(maps, affinity),
    )


@covers("random_walk", "properties")
def test_no_matrix_is_made():
    """Cells x cells would be 40,000 times as many numbers as a plane has."""
    side = 200
    edge = torch.rand(1, 1, side, side, generator=generator(1))
    affinity = edge_affinity(edge, radius=2)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        random_walk(edge, affinity, steps=3)
    assert side * side < largest <= 4 * (side + 1) * (side + 2)


@covers("random_walk", "gradcheck")
@pytest.mark.parametrize("steps", [3, 80])
def test_gradients_of_neighbours(steps):
    maps, affinity = problem(7, 1, 2, (3, 3))
    assert steps == 3 or not isinstance(_walk._series(steps, torch.finfo(torch.float64).eps), int)
    assert_gradcheck(
        lambda m, v: random_walk(m, NeighbourAffinity(v, OFFSETS), beta=3, steps=steps),
        maps.requires_grad_(),
        affinity.values.requires_grad_(),
    )


@covers("random_walk", "gradcheck")
def test_gradients_of_matrices():
    maps, affinity = problem(8, 2, 2, (2, 3))
    dense = affinity.to_dense().requires_grad_()
    maps.requires_grad_()
    assert_gradcheck(lambda m, a: random_walk(m, a, beta=3, steps=3), maps, dense)
    place = dense.detach().to_sparse().indices()
    values = dense.detach()[tuple(place)].requires_grad_()

    def sparse(m, v):
        matrix = torch.sparse_coo_tensor(place, v, dense.shape, check_invariants=False)
        return random_walk(m, matrix, beta=3, steps=3)

    assert_gradcheck(sparse, maps, values)


@covers("random_walk", "properties")
def test_walk_gives_the_same_with_and_without_gradients():
    maps, affinity = problem(9, dtype=torch.float32)
    fast = random_walk(maps, affinity)
    values = affinity.values.clone().requires_grad_()
    assert_same(random_walk(maps, affinity._replace(values=values)).detach(), fast)
    assert_same(random_walk(maps.clone().requires_grad_(), affinity).detach(), fast)


@covers("random_walk", "dtypes")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtypes(form, dtype):
    maps, affinity = problem(10, dtype=dtype)
    exact = random_walk(maps.double(), affinity.to_dense().double(), beta=2, steps=20)
    one = affinity if form == "neighbours" else forms(affinity)[form]
    out = random_walk(maps, one, beta=2, steps=20)
    assert out.dtype == dtype
    assert_close(out, exact)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(random_walk(maps, one, beta=2, steps=20), out)
    mixed = random_walk(maps.float(), one, beta=2, steps=20)
    assert mixed.dtype == torch.float32
    assert_close(mixed, exact, dtype=torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)


@covers("random_walk", "compile")
@pytest.mark.parametrize("steps", [2, 40])
def test_compiles(steps):
    maps, affinity = problem(11, offsets=tuple(half_disc_oracle(2)), dtype=torch.float32)
    offsets = affinity.offsets
    assert isinstance(_walk._series(steps, torch.finfo(torch.float32).eps), int) == (steps == 2)

    def walk(m, v, a):
        near = random_walk(m, NeighbourAffinity(v, offsets), steps=steps)
        return near, random_walk(m, a, steps=2)

    assert_compiles(walk, maps, affinity.values, affinity.to_dense())


@covers("random_walk", "degenerate")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 3)])
def test_cells_tied_to_nothing_keep_their_scores(form, size):
    maps, affinity = problem(12, 2, 1, size)
    alone = affinity._replace(values=torch.zeros_like(affinity.values))
    maps = maps.requires_grad_()
    out = random_walk(maps, forms(alone)[form])
    assert_close(out, maps)
    out.sum().backward()
    assert_close(maps.grad, torch.ones_like(maps))
    if form != "neighbours":
        nothing = torch.zeros_like(alone.to_dense())
        nothing = nothing if form == "dense" else nothing.to_sparse()
        assert_same(random_walk(maps, nothing).detach(), maps.detach())


@covers("random_walk", "degenerate")
@pytest.mark.parametrize("form", FORMS)
def test_no_valid_cell_gives_zeros(form):
    maps, affinity = problem(13)
    values = affinity.values.requires_grad_()
    one = forms(affinity)[form]
    valid = torch.zeros(2, 4, 3, dtype=torch.bool)
    valid[1, :2] = True
    out = random_walk(maps.requires_grad_(), one, valid=valid)
    assert (out[~valid.unsqueeze(1).expand_as(out)] == 0).all()
    assert (out[1, :, :2] > 0).all()
    out.sum().backward()
    assert torch.isfinite(maps.grad).all()
    assert torch.isfinite(values.grad).all()


@covers("random_walk", "degenerate")
@pytest.mark.parametrize("form", FORMS)
def test_faint_affinities_do_not_underflow(form):
    """Columns differ by scale only, but 1e-6 to the 8th is no float32 number."""
    maps, affinity = problem(14, dtype=torch.float32)
    faint = affinity._replace(values=affinity.values * 1e-6)
    if form == "neighbours":  # the cell itself counts 1: it keeps what it has
        assert_close(random_walk(maps, faint), maps)
    else:
        matrix = affinity.to_dense()
        scaled = matrix * 1e-6 if form == "dense" else (matrix * 1e-6).to_sparse()
        assert_close(random_walk(maps, scaled), random_walk(maps, matrix))


@covers("random_walk", "errors")
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"maps": torch.rand(4, 3)}, ValueError, r"maps must have shape \(B, C, h, w\)"),
        ({"maps": torch.ones(2, 2, 4, 3).int()}, TypeError, "maps must be a floating-point"),
        ({"maps": torch.full((2, 2, 4, 3), torch.nan)}, ValueError, "maps must be finite"),
        ({"affinity": None}, TypeError, "affinity must be a torch.Tensor, got NoneType"),
        ({"affinity": torch.rand(2, 12, 11)}, ValueError, r"\(B, N, N\) with B=2, N=12"),
        ({"affinity": torch.rand(1, 12, 12)}, ValueError, r"affinity must have shape .* B=2"),
        ({"affinity": torch.ones(2, 12, 12).int()}, TypeError, "affinity must be a floating"),
        ({"affinity": -torch.rand(2, 12, 12)}, ValueError, "affinity must be >= 0"),
        ({"affinity": -torch.eye(12).expand(2, 12, 12).to_sparse()}, ValueError, "affinity must"),
        ({"affinity": torch.rand(2, 12, 12) / 0}, ValueError, "affinity must be finite"),
        ({"affinity": torch.rand(2, 12, 12, device="meta")}, ValueError, "on the device of maps"),
        ({"values": torch.rand(2, 3, 4, 3)}, ValueError, r"affinity.values .* R=12"),
        ({"values": torch.rand(2, 12, 3, 4)}, ValueError, r"h=4, w=3, got \(2, 12, 3, 4\)"),
        ({"values": torch.rand(2, 12, 4, 3) + 1}, ValueError, r"affinity.values must be in \[0, 1"),
        (
            {"values": torch.ones(2, 12, 4, 3).int()},
            TypeError,
            "affinity.values must be a float",
        ),
        ({"offsets": ()}, ValueError, r"affinity.offsets must be different pairs .* got \(\)"),
        ({"offsets": ((0, 0), *OFFSETS[1:])}, ValueError, "affinity.offsets must be different"),
        ({"offsets": (*OFFSETS[:-1], (0, -1))}, ValueError, "each to the right or down"),
        ({"offsets": (OFFSETS[1], *OFFSETS[1:])}, ValueError, "affinity.offsets must be different"),
        ({"offsets": (1, *OFFSETS[1:])}, ValueError, "affinity.offsets must be different pairs"),
        ({"offsets": 3}, TypeError, "affinity.offsets must be a sequence, got 3"),
        ({"beta": 0.5}, ValueError, "beta must be finite and at least 1, got 0.5"),
        ({"beta": float("inf")}, ValueError, "beta must be finite"),
        ({"beta": "8"}, TypeError, "beta must be a number"),
        ({"steps": -1}, ValueError, "steps must be at least 0, got -1"),
        ({"steps": 2.0}, TypeError, "steps must be an int, got 2.0"),
        ({"valid": torch.ones(2, 3, 4).bool()}, ValueError, r"valid must have shape \(B, h, w\)"),
        ({"valid": torch.ones(2, 4, 3)}, TypeError, "valid must be a bool tensor"),
        ({"valid": torch.ones(2, 4, 3, device="meta").bool()}, ValueError, "device of maps"),
    ],
)
def test_errors(change, error, match):
    maps, affinity = problem(dtype=torch.float32)
    change = dict(change)
    affinity = affinity._replace(**{k: change.pop(k) for k in ("values", "offsets") if k in change})
    call = {"maps": maps, "affinity": affinity} | change
    with pytest.raises(error, match=match):
        random_walk(call.pop("maps"), call.pop("affinity"), **call)
    if {"beta", "steps"} & change.keys():
        with pytest.raises(error, match=match):
            RandomWalk(feature_affinity, **change)


def alike_in_colour(images, features=None):
    return feature_affinity(4 * images, radius=3)


def matrix_of_features(images, features):
    return features


@covers("random_walk", "module")
def test_module_is_the_function_at_the_size_of_the_image():
    maps, _ = problem(15, 2, 3, (6, 5))
    images = torch.rand(2, 3, 6, 5, generator=generator(1), dtype=torch.float64)
    module = RandomWalk(alike_in_colour, beta=3.0, steps=20)
    expected = random_walk(maps, alike_in_colour(images), beta=3.0, steps=20)
    assert repr(module) == "RandomWalk(beta=3.0, steps=20)"
    assert not module.state_dict()
    for one in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_same(one(images, maps), expected)


def test_a_module_that_makes_affinities_becomes_a_part():
    class Edges(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 1, 3, padding=1)

        def forward(self, images, features):
            return edge_affinity(self.conv(images).sigmoid(), radius=3)

    module = RandomWalk(Edges(), steps=3)
    assert list(module.state_dict()) == ["affinity.conv.weight", "affinity.conv.bias"]
    module(torch.rand(1, 3, 5, 5), torch.rand(1, 2, 5, 5)).square().sum().backward()
    assert (module.affinity.conv.weight.grad != 0).any()


@settings(max_examples=6)
@given(seeds, small, sizes(5), sizes(3), sizes(4), st.booleans())
def test_refiner_is_the_recipe(seed, classes, size, low, grid, boxed):
    g = generator(seed)
    images = torch.rand(2, 3, *size, generator=g, dtype=torch.float64)
    maps = torch.rand(2, classes + 1, *low, generator=g, dtype=torch.float64)
    edge = torch.rand(2, 1, *grid, generator=g, dtype=torch.float64)
    labels = random_labels(2, classes, g)
    box = torch.tensor([[0, 0, *size], [size[0] // 2, 0, size[0], size[1]]]) if boxed else None
    valid = None
    if boxed:
        valid = torch.zeros(2, *grid, dtype=torch.bool)
        for b in range(2):
            for y in range(grid[0]):
                for x in range(grid[1]):
                    v, u = (y + 0.5) * size[0] / grid[0], (x + 0.5) * size[1] / grid[1]
                    top, left, bottom, right = box[b].tolist()
                    valid[b, y, x] = top <= v < bottom and left <= u < right
    module = RandomWalk(lambda images, features: edge_affinity(features), beta=2.0, steps=4)
    matrix = matrix_oracle(edge_affinity_oracle(edge, 5), half_disc_oracle(5))
    expected = walk_refiner_oracle(
        maps, matrix, labels, grid=grid, size=size, beta=2.0, steps=4, valid=valid
    )
    assert_close(module(images, maps, labels=labels, box=box, features=edge), expected)


def test_refiner_takes_matrices_from_features():
    maps, affinity = problem(16, 2, 3)
    images = torch.rand(2, 3, 8, 6, dtype=torch.float64)
    module = RandomWalk(matrix_of_features, steps=5)
    near = RandomWalk(lambda images, features: affinity, steps=5)
    assert_close(module(images, maps, features=affinity.to_dense()), near(images, maps))
    with pytest.raises(ValueError, match=r"affinity must have shape \(B, N, N\) with B=2, N=12"):
        module(images, maps, features=torch.rand(2, 9, 9))


def test_affinity_must_be_callable():
    with pytest.raises(TypeError, match="affinity must be callable, got Tensor"):
        RandomWalk(torch.rand(1, 4, 4))
