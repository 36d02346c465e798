import math

import ot
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
from oracles.transport import optimal_oracle, sinkhorn_oracle, transport_cost_oracle
from strategies import generator, seeds, small

from wsss_blocks import _validate
from wsss_blocks.refine import (
    Sinkhorn,
    _sinkhorn_iterate,
    _sinkhorn_newton,
    _sinkhorn_problem,
    _sinkhorn_solve,
    sinkhorn,
)

ITERATED = ("auto", "log", "scaling")
METHODS = (*ITERATED, "newton", "exact")
OPTIMUM = (
    {"method": "newton"},
    *({"method": m, "num_iters": 3000, "tol": 1e-12} for m in ITERATED),
)


def problem(seed=0, batch=2, rows=6, columns=4, masked=0.0, dtype=torch.float64):
    """Random costs and masses; ``masked`` is the share of places without mass."""
    g = generator(seed)
    cost = torch.rand(batch, rows, columns, generator=g, dtype=torch.float64)
    masses = []
    for size in (rows, columns):
        mass = torch.rand(batch, size, generator=g, dtype=torch.float64) + 0.05
        mass[torch.rand(batch, size, generator=g) < masked] = 0
        masses.append(mass)
    a, b = masses
    empty = (a.sum(1) == 0) | (b.sum(1) == 0)
    a[empty], b[empty] = 0, 0
    a, b = (x / x.sum(1, keepdim=True).clamp_min(1e-9) for x in (a, b))
    return cost.to(dtype), a.to(dtype), b.to(dtype)


def l1(plan, other):
    return (plan.double() - other.double()).abs().sum((1, 2)).max().item()


@covers("sinkhorn", "oracle")
@settings(max_examples=12)
@given(
    seeds, small, st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.sampled_from([0, 0.4])
)
def test_iterations_are_the_loop(seed, batch, rows, columns, num_iters, masked):
    cost, a, b = problem(seed, batch, rows, columns, masked)
    expected = sinkhorn_oracle(cost, a, b, reg=0.2, num_iters=num_iters)
    for method in ITERATED:
        plan = sinkhorn(cost, a=a, b=b, reg=0.2, num_iters=num_iters, method=method)
        assert_close(plan, expected)


@covers("sinkhorn", "oracle")
@settings(max_examples=10)
@given(seeds, small, st.integers(1, 6), st.integers(1, 6), st.sampled_from([0, 0.4]))
def test_the_optimum_is_the_limit_of_the_loop(seed, batch, rows, columns, masked):
    cost, a, b = problem(seed, batch, rows, columns, masked)
    expected = optimal_oracle(cost, a, b, reg=0.2)
    for options in OPTIMUM:
        plan = sinkhorn(cost, a=a, b=b, reg=0.2, **options)
        assert_close(plan, expected)


@covers("sinkhorn", "oracle")
@pytest.mark.parametrize("shape", [(5, 4), (3, 6), (1, 3), (4, 1)])
def test_exact_plans_cost_what_the_linear_program_says(shape):
    cost, a, b = problem(3, 2, *shape)
    plan = sinkhorn(cost, a=a, b=b, method="exact")
    found = (plan * cost).sum((1, 2)).tolist()
    assert found == pytest.approx(transport_cost_oracle(cost, a, b), abs=1e-9)
    assert_close(plan.sum(2), a)
    assert_close(plan.sum(1), b)
    assert (plan >= 0).all()


@covers("sinkhorn", "oracle")
@pytest.mark.parametrize("shape", [(30, 4), (4, 30)])
def test_parity_with_pot(shape):
    cost, a, b = problem(4, 3, *shape)
    for num_iters in (1, 20):
        peer = ot.batch.solve_batch(
            cost, 0.1, a=a, b=b, max_iter=num_iters, tol=0, method="log_sinkhorn", grad="detach"
        ).plan
        for method in ITERATED:
            ours = sinkhorn(cost, a=a, b=b, num_iters=num_iters, method=method)
            assert l1(ours, peer) < 1e-10
    peer = torch.stack(
        [ot.sinkhorn(a[n], b[n], cost[n], 0.05, stopThr=1e-14, numItermax=10_000) for n in range(3)]
    )
    for options in OPTIMUM:
        assert l1(sinkhorn(cost, a=a, b=b, reg=0.05, **options), peer) < 1e-9


@covers("sinkhorn", "properties")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
def test_marginals_and_symmetries(method, shape):
    cost, a, b = problem(5, 2, *shape)
    run = {"method": method, "num_iters": 7}
    plan = sinkhorn(cost, a=a, b=b, **run)
    assert (plan >= 0).all()
    assert_close(plan.sum(1), b)
    if method in ("newton", "exact"):
        assert_close(plan.sum(2), a)
    rows, columns = (torch.randperm(n, generator=generator(0)) for n in shape)
    moved = sinkhorn(cost[:, rows][:, :, columns], a=a[:, rows], b=b[:, columns], **run)
    assert_close(moved, plan[:, rows][:, :, columns])
    assert_close(sinkhorn(cost.flip(0), a=a.flip(0), b=b.flip(0), **run), plan.flip(0))
    assert_close(sinkhorn(cost + 3 * torch.rand_like(a).unsqueeze(2), a=a, b=b, **run), plan)
    assert_close(sinkhorn(2.5 * cost, reg=0.25, a=a, b=b, **run), plan)
    assert_close(sinkhorn(cost, a=3 * a, b=3 * b, **run), 3 * plan)
    uniform = (torch.full_like(a, 1 / shape[0]), torch.full_like(b, 1 / shape[1]))
    default = sinkhorn(cost, **run)
    assert_close(sinkhorn(cost, a=uniform[0], b=uniform[1], **run), default)
    assert_close(sinkhorn(cost, a=2 * uniform[0], **run), 2 * default)
    assert_close(sinkhorn(cost, b=2 * uniform[1], **run), 2 * default)


@covers("sinkhorn", "properties")
@pytest.mark.parametrize("options", [*OPTIMUM, {"method": "exact"}])
def test_an_optimum_does_not_see_constants_of_columns(options):
    cost, a, b = problem(6, 2, 9, 4)
    shifted = cost + 2 * torch.rand(2, 1, 4, dtype=torch.float64, generator=generator(1))
    assert_close(sinkhorn(shifted, a=a, b=b, **options), sinkhorn(cost, a=a, b=b, **options))


@covers("sinkhorn", "properties", "degenerate")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("garbage", [0.0, math.nan, math.inf, -1e30])
def test_padded_problems_are_their_unpadded_selves(method, garbage):
    sizes = [(5, 3), (2, 6), (7, 2), (1, 1), (6, 6)]
    rows, columns = 7, 6
    singles = [problem(n, 1, *size) for n, size in enumerate(sizes)]
    cost = torch.full((len(sizes), rows, columns), garbage, dtype=torch.float64)
    a, b = cost.new_zeros(len(sizes), rows), cost.new_zeros(len(sizes), columns)
    # The places that exist are spread, not in front: the order of padding means nothing.
    places = [
        (torch.randperm(rows)[:m].sort().values, torch.randperm(columns)[:n].sort().values)
        for m, n in sizes
    ]
    for n, (one, (i, j)) in enumerate(zip(singles, places, strict=True)):
        cost[n, i[:, None], j], a[n, i], b[n, j] = one[0][0], one[1][0], one[2][0]
    plan = sinkhorn(cost, a=a, b=b, method=method)
    for n, (one, (i, j)) in enumerate(zip(singles, places, strict=True)):
        expected = torch.zeros(rows, columns, dtype=torch.float64)
        expected[i[:, None], j] = sinkhorn(one[0], a=one[1], b=one[2], method=method)[0]
        assert_close(plan[n], expected)
        assert plan[n].sum(1)[a[n] == 0].eq(0).all()
        assert plan[n].sum(0)[b[n] == 0].eq(0).all()


@covers("sinkhorn", "properties")
@pytest.mark.parametrize("method", ["log", "scaling", "newton"])
@pytest.mark.parametrize("shape", [(8, 3), (3, 8)])
def test_a_finished_problem_is_left_alone(method, shape):
    """With ``tol`` each problem is what it is when it is alone, and no better than asked."""
    cost, a, b = problem(7, 4, *shape)
    cost = cost * torch.tensor([0.01, 0.1, 1.0, 3.0], dtype=torch.float64).view(-1, 1, 1)
    run = {"reg": 0.1, "num_iters": 200, "tol": 1e-3, "method": method}
    plan = sinkhorn(cost, a=a, b=b, **run)
    for n in range(4):
        alone = sinkhorn(cost[n : n + 1], a=a[n : n + 1], b=b[n : n + 1], **run)
        torch.testing.assert_close(plan[n : n + 1], alone, rtol=1e-13, atol=1e-15)
    off = (plan.sum(2) - a).abs().sum(1)
    assert (off <= 1e-3).all()
    assert off.max() > 1e-6 or method == "newton"
    best = sinkhorn(cost, a=a, b=b, method="newton")
    assert l1(plan[:1], best[:1]) < l1(plan, best) or method == "newton"


def test_tol_ends_at_the_largest_number_of_iterations():
    cost, a, b = problem(8, 2, 12, 5)
    for method in ("log", "scaling"):
        run = {"a": a, "b": b, "method": method, "num_iters": 3, "reg": 0.02}
        assert_same(sinkhorn(cost, tol=1e-15, **run), sinkhorn(cost, **run))


def test_auto_iterates_where_the_shorter_side_is_long():
    cost = torch.rand(1, 40, 33, generator=generator(0), dtype=torch.float64)
    run = {"num_iters": 50, "tol": 1e-4}
    assert_same(sinkhorn(cost, **run), sinkhorn(cost, method="scaling", **run))
    wide = {"reg": 1e-3, **run}
    assert_same(sinkhorn(cost, **wide), sinkhorn(cost, method="log", **wide))
    rare = torch.tensor([[1.0, 1e-30]]).float()
    few = {"reg": 0.05, "num_iters": 5, "b": rare}  # the rare column needs a factor of 1e30
    narrow = torch.rand(1, 9, 2, generator=generator(0))
    assert_same(sinkhorn(narrow, **few), sinkhorn(narrow, method="log", **few))
    few = cost[..., :32]
    assert_same(sinkhorn(few, **run), sinkhorn(few, method="newton", tol=1e-4))


@covers("sinkhorn", "module")
@pytest.mark.parametrize("options", [{}, {"reg": 0.05, "tol": 1e-6}, {"method": "exact"}])
def test_sinkhorn_module(options):
    cost, a, b = problem(9, dtype=torch.float32)
    module = Sinkhorn(**options)
    assert_module(module, sinkhorn(cost, **options), cost)
    assert_same(module(cost, a=a, b=b), sinkhorn(cost, a=a, b=b, **options))
    assert f"reg={options.get('reg', 0.1)}" in repr(module)


@covers("sinkhorn", "dtypes")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_sinkhorn_dtypes(method, dtype):
    cost, a, b = problem(10, 2, 20, 4, 0.2)
    cost, run = cost.to(dtype), {"method": method, "reg": 0.2}
    uniform, plan = sinkhorn(cost, **run), sinkhorn(cost, a=a, b=b, **run)
    assert uniform.dtype == plan.dtype == dtype
    assert_close(uniform, sinkhorn(cost.double(), **run))
    # Masses of a wider type widen what is computed, not what is returned.
    assert_same(plan, sinkhorn(cost.double(), a=a, b=b, **run).to(dtype))
    own = sinkhorn(cost, a=a.to(dtype), b=b.to(dtype), **run)  # totals agree within a half type
    assert own.dtype == dtype
    assert_close(own.sum(1), b.to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(sinkhorn(cost, **run), uniform)


@covers("sinkhorn", "compile")
@pytest.mark.parametrize("method", ["auto", "log", "scaling", "newton"])
def test_sinkhorn_compiles(method):
    cost, a, b = problem(11, 2, 6, 3, 0.3, torch.float32)
    run = {"method": method, "num_iters": 2, "tol": None if method == "auto" else 1e-3}
    if method == "auto":
        assert_compiles(lambda c: sinkhorn(c, **run), cost.mT)
    else:
        assert_compiles(lambda c, p, q: sinkhorn(c, a=p, b=q, **run), cost, a, b)


def test_newton_is_an_operator():
    score = -5 * torch.rand(2, 3, 8, generator=generator(0))
    masses = torch.full((2, 1, 8), 1 / 8), torch.full((2, 3, 1), 1 / 3)
    span = torch.full((2, 1, 1), 5.0)
    torch.library.opcheck(_sinkhorn_newton._newton_operator, (score, *masses, span, 1e-6))


COST = torch.rand(2, 3, 2, generator=generator(0))


@covers("sinkhorn", "errors")
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"cost": COST[0]}, ValueError, r"cost must have shape \(B, M, N\), got \(3, 2\)"),
        ({"cost": COST[:, :0]}, ValueError, r"cost must have shape \(B, M, N\), got \(2, 0, 2\)"),
        ({"cost": COST.int()}, TypeError, "cost must be a floating-point tensor"),
        ({"cost": COST / 0}, ValueError, "cost must be finite"),
        ({"a": torch.ones(2, 2)}, ValueError, r"a must have shape \(B, M\) with B=2, M=3"),
        ({"b": torch.ones(2, 3)}, ValueError, r"b must have shape \(B, N\) with B=2, N=2"),
        ({"a": torch.ones(2, 3).int()}, TypeError, "a must be a floating-point tensor"),
        ({"a": -torch.ones(2, 3)}, ValueError, "a must be >= 0, got a minimum of -1"),
        ({"b": torch.full((2, 2), torch.nan)}, ValueError, "b must be finite"),
        (
            {"a": torch.ones(2, 3), "b": torch.ones(2, 2)},
            ValueError,
            "a and b must have the same total mass in each problem, got 3 and 2 in problem 0",
        ),
        ({"b": torch.ones(2, 2, device="meta")}, ValueError, "b must be on the device of cost"),
        ({"reg": 0.0}, ValueError, "reg must be positive and finite, got 0.0"),
        ({"num_iters": 0}, ValueError, "num_iters must be at least 1, got 0"),
        ({"num_iters": 1.5}, TypeError, "num_iters must be an int"),
        ({"tol": 0.0}, ValueError, "tol must be positive and finite, got 0.0"),
        ({"method": "emd"}, ValueError, "method must be one of 'auto', .*, got 'emd'"),
        ({"gradient": "last"}, ValueError, "gradient must be one of 'unroll', .*, got 'last'"),
        (
            {"method": "scaling", "reg": 1e-3},
            ValueError,
            r"cost must range over at most 80 \* reg .* got \d+.* \* reg: use method='log'",
        ),
    ],
)
def test_sinkhorn_errors(change, error, match):
    call = {"cost": COST} | change
    with pytest.raises(error, match=match):
        sinkhorn(call.pop("cost"), **call)
    if not {"cost", "a", "b"} & change.keys() and "scaling" not in change.values():
        with pytest.raises(error, match=match):
            Sinkhorn(**change)


@covers("sinkhorn", "degenerate")
@pytest.mark.parametrize("method", METHODS)
def test_degenerate_problems(method):
    run = {"method": method}
    for shape in [(2, 1, 1), (2, 1, 3), (2, 4, 1), (0, 3, 2)]:
        plan = sinkhorn(torch.rand(shape, generator=generator(0)), **run)
        product = torch.full(shape, 1 / (shape[1] * shape[2]))
        assert_close(plan, product)  # one place has no choice
    flat = sinkhorn(torch.full((1, 4, 3), 7.0), **run)
    assert_close(flat.sum(1), torch.full((1, 3), 1 / 3))
    if method != "exact":
        assert_close(flat, torch.full((1, 4, 3), 1 / 12))
    cost, a, b = problem(12, 3, dtype=torch.float32)
    a[1], b[1] = 0, 0
    assert_same(sinkhorn(cost, a=a, b=b, **run)[1], torch.zeros(6, 4))
    assert_same(sinkhorn(cost, a=0 * a, b=0 * b, **run), torch.zeros(3, 6, 4))
    assert_same(sinkhorn(cost, b=b, **run)[1], torch.zeros(6, 4))


@covers("sinkhorn", "degenerate")
@pytest.mark.parametrize("method", ["auto", "log", "newton"])
@pytest.mark.parametrize("shape", [(30, 5), (5, 30), (9, 9)])
def test_no_range_of_costs_is_too_wide(method, shape):
    cost, a, b = problem(13, 2, *shape, 0.2, torch.float32)
    for reg in (1e-2, 1e-4, 1e-8):
        c = cost.clone().requires_grad_()
        plan = sinkhorn(c, a=a, b=b, reg=reg, method=method)
        assert torch.isfinite(plan).all()
        if reg > 1e-5:
            assert_close(plan.sum(1), b)
        plan.square().sum().backward()
        assert torch.isfinite(c.grad).all()
    huge = sinkhorn(cost * 1e38, a=a, b=b, method=method)
    assert torch.isfinite(huge).all()


@covers("sinkhorn", "degenerate")
@pytest.mark.parametrize("method", ["auto", "log", "scaling", "newton"])
def test_devices_whose_values_are_not_looked_at(method, monkeypatch):
    """There loops run to their end, nothing is refused and nothing becomes NaN."""
    cost, a, b = problem(21, 3, 9, 4, 0.3)
    run = {"method": method, "num_iters": 60, "tol": 1e-6, "reg": 0.2}
    plan = sinkhorn(cost, a=a, b=b, **run)
    modules = (_sinkhorn_iterate, _sinkhorn_newton, _sinkhorn_problem, _sinkhorn_solve, _validate)
    for module in modules:
        monkeypatch.setattr(module, "values_are_checked", lambda x: False)
    assert_close(sinkhorn(cost, a=a, b=b, **run), plan)
    for p, q in ((0 * a, b), (a, 0 * b)):
        assert_same(sinkhorn(cost, a=p, b=q, **run), torch.zeros_like(cost))


@covers("sinkhorn", "gradcheck")
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 1)])
@pytest.mark.parametrize(
    "options",
    [
        {"method": "log", "num_iters": 3},
        {"method": "scaling", "num_iters": 3},
        {"method": "newton"},
        {"method": "log", "num_iters": 500, "tol": 1e-13, "gradient": "implicit"},
        {"method": "scaling", "num_iters": 500, "tol": 1e-13, "gradient": "implicit"},
    ],
)
def test_sinkhorn_gradcheck(shape, options):
    cost, a, b = (x.requires_grad_() for x in problem(14, 2, *shape))
    run = {"reg": 0.3, **options}
    assert_gradcheck(lambda c, p, q: sinkhorn(c, a=p, b=q, **run), cost, a, b)
    assert_gradcheck(lambda c: sinkhorn(c, **run), cost)
    assert_gradcheck(lambda c, p: sinkhorn(c, a=p, **run), cost, a)
    masked, p, q = problem(15, 2, *shape, 0.3)
    assert_gradcheck(lambda c: sinkhorn(c, a=p, b=q, **run), masked.requires_grad_())


@covers("sinkhorn", "gradcheck")
def test_implicit_gradients_are_those_of_many_iterations():
    cost, a, b = problem(16, 2, 12, 4, 0.2)
    weight = torch.rand(cost.shape, generator=generator(2), dtype=torch.float64)

    def gradients(**options):
        inputs = [x.clone().requires_grad_() for x in (cost, a, b)]
        plan = sinkhorn(inputs[0], a=inputs[1], b=inputs[2], **options)
        found = torch.autograd.grad((plan * weight).sum(), inputs)
        positive = [torch.ones_like(cost, dtype=torch.bool), a > 0, b > 0]
        return [torch.where(p, g, 0) for g, p in zip(found, positive, strict=True)]

    unrolled = gradients(method="log", num_iters=400)
    for options in (
        {"method": "scaling", "num_iters": 400},
        {"method": "newton"},
        {"method": "log", "num_iters": 400, "gradient": "implicit"},
        {"method": "scaling", "num_iters": 400, "gradient": "implicit"},
    ):
        for found, expected in zip(gradients(**options), unrolled, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ITERATED)
def test_gradient_does_not_change_the_plan(method):
    cost, a, b = problem(17, 2, 8, 3)
    run = {"a": a, "b": b, "method": method, "num_iters": 4}
    plan = sinkhorn(cost, **run)
    for gradient in ("unroll", "implicit", "none"):
        found = sinkhorn(cost.clone().requires_grad_(), gradient=gradient, **run)
        assert_close(found, plan)
        assert found.requires_grad == (gradient != "none")
    assert not sinkhorn(cost.clone().requires_grad_(), method="exact").requires_grad


@pytest.mark.parametrize("method", ["log", "scaling", "newton"])
def test_padding_has_finite_gradients(method):
    cost, a, b = problem(18, 4, 7, 4, 0.4)
    cost[:, :, 1] = torch.where(b[:, 1:2] > 0, cost[:, :, 1], torch.nan)
    inputs = [x.clone().requires_grad_() for x in (cost, a, b)]
    plan = sinkhorn(inputs[0], a=inputs[1], b=inputs[2], method=method)
    for gradient in torch.autograd.grad(plan.square().sum(), inputs):
        assert torch.isfinite(gradient).all()


def hard_problem():
    """Pixels that are far from all classes but their own, and classes that want other shares."""
    g = generator(20)
    own = torch.nn.functional.one_hot(torch.randint(0, 8, (6, 80), generator=g), 8)
    cost = 1 - own + 0.3 * torch.rand(6, 80, 8, generator=g, dtype=torch.float64)
    b = torch.rand(6, 8, generator=g, dtype=torch.float64) ** 3 + 1e-3
    return cost, b / b.sum(1, keepdim=True)


def row_gap(plan):
    return (plan.sum(2) - 1 / plan.shape[1]).abs().sum(1).max()


def test_newton_needs_few_passes_for_hard_problems(monkeypatch):
    monkeypatch.setattr(_sinkhorn_newton, "_PASSES", 40)  # as many as where nothing is looked at
    cost, b = hard_problem()
    for reg in (0.02, 0.005, 0.002):
        assert row_gap(sinkhorn(cost, b=b, reg=reg, method="newton")) < 1e-10
    rough = row_gap(sinkhorn(cost, b=b, reg=0.02, method="newton", tol=0.01))
    assert 1e-9 < rough <= 0.01
    monkeypatch.setattr(_sinkhorn_newton, "_PASSES", 20)
    assert row_gap(sinkhorn(cost, b=b, reg=0.002, method="newton")) < 1e-2


def test_newton_crosses_plains():
    """Costs of 0 or 1: far from the optimum the marginals do not change with the potential."""
    g = generator(32)
    cost = (torch.rand(16, 12, 4, generator=g) > 0.5).double()
    b = torch.rand(16, 4, generator=g).double() ** 3 + 1e-3
    plan = sinkhorn(cost, b=b / b.sum(1, keepdim=True), reg=0.003, method="newton")
    assert row_gap(plan) < 1e-10


def test_newton_out_of_passes_keeps_the_slope_of_the_potential(monkeypatch):
    monkeypatch.setattr(_sinkhorn_newton, "_PASSES", 6)
    cost, b = hard_problem()
    plan = sinkhorn(cost, b=b, reg=1e-4, method="newton")
    assert_close(plan.sum(1), b)
    assert row_gap(plan) < 0.8


def test_newton_in_float32_is_the_optimum():
    """What the benchmark relies on: the plan is within 1e-5 of the one in double precision."""
    g = generator(19)
    pixels = torch.nn.functional.normalize(torch.randn(4, 300, 16, generator=g), dim=2)
    classes = torch.nn.functional.normalize(torch.randn(4, 10, 16, generator=g), dim=2)
    cost = 1 - pixels @ classes.mT
    b = torch.rand(4, 10, generator=g, dtype=torch.float64) ** 3 + 1e-3
    b[1:, 4:] = 0
    b = b / b.sum(1, keepdim=True)
    for reg in (0.2, 0.05, 0.01, 0.003):
        best = sinkhorn(cost.double(), b=b, reg=reg, method="newton")
        assert (best.sum(2) - 1 / 300).abs().sum(1).max() < 1e-11
        assert l1(sinkhorn(cost, b=b.float(), reg=reg, method="newton"), best) < 1e-5
