"""Every public name under random bad arguments (fuzzing.py), and the judge under known answers."""

import pytest
import torch
from fuzzing import (
    EXEMPT,
    TARGETS,
    Case,
    Draw,
    Target,
    check,
    draw_case,
    possible_changes,
    public_names,
)
from hypothesis import given, settings
from hypothesis import strategies as st

SLOW_EXAMPLES = 4  # of names that draw a figure or write a data set
DRAWS = 3 if settings.default.max_examples > 25 else 1  # of valid arguments, each changed in turn


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_each_change_of_one_argument_is_named(name):
    target = TARGETS[name]
    for seed in range(1 if target.slow else DRAWS):
        for change in possible_changes(target, target.draw(Draw(seed))):
            check(draw_case(target, seed, change=change))


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_random_changes_of_two_arguments_are_named(name):
    target = TARGETS[name]

    @given(st.integers(0, 2**32 - 1))
    def cases(seed):
        check(draw_case(target, seed))

    if target.slow:
        few = min(SLOW_EXAMPLES, settings.default.max_examples)
        cases = settings(settings.default, max_examples=few)(cases)
    cases()


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_valid_call_succeeds(name):
    target = TARGETS[name]
    for seed in range(1 if target.slow else 3):
        assert check(Case(target, seed, target.draw(Draw(seed)), ())) == "finite"


def test_each_public_name_is_fuzzed_or_exempt():
    public = set(public_names())
    missing = public - set(TARGETS) - set(EXEMPT)
    assert not missing, f"no target and no reason for: {sorted(missing)}"
    assert not set(EXEMPT) - public, f"no public names: {sorted(set(EXEMPT) - public)}"
    assert not set(EXEMPT) & set(TARGETS)
    assert {name.split(".")[0] for name in TARGETS} <= public


def judged(call, *, change="x NaN in one place", nan=""):
    x = torch.zeros(2, 3)
    target = Target("one", lambda d: {"x": x}, call, frozenset({"x"}), nan=nan)
    return check(Case(target, 0, {"x": x}, (change,) if change else ()))


def raises(error):
    def call(x):
        raise error

    return call


def test_the_judge_accepts_finite_results_and_clear_errors():
    assert judged(lambda x: {"mean": [x + 1], "name": "x"}) == "finite"
    assert judged(lambda x: x / 0, nan="documented") == "finite"
    assert judged(raises(ValueError("x must have shape (B, K), got (2,)."))) == "error"
    assert judged(raises(TypeError("x must be a tensor, got list."))) == "error"


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda x: x / 0, "NaN or infinity"),
        (lambda x: (1.0, float("inf")), "NaN or infinity"),
        (lambda x: x.add_(1), "x was changed in place"),
        (raises(RuntimeError("x must be a tensor, got list.")), "RuntimeError"),
        (raises(AssertionError("")), "AssertionError"),
        (raises(IndexError("index out of range")), "IndexError"),
        (raises(ValueError("must have shape (B, K), got (2,).")), "names no argument"),
        (raises(ValueError("x has a wrong shape.")), "does not say"),
    ],
)
def test_the_judge_refuses_the_rest(call, complaint):
    with pytest.raises(AssertionError, match=complaint):
        judged(call)


def test_the_judge_refuses_an_error_for_a_valid_call():
    with pytest.raises(AssertionError, match="a valid call is refused"):
        judged(raises(ValueError("x must be finite, got 1 NaN.")), change="")


def test_the_judge_compares_memory_layouts():
    x = torch.arange(6.0).view(2, 3)

    def call(x):
        return x if x.is_contiguous() else x + 1

    target = Target("one", lambda d: {"x": x}, call, frozenset({"x"}))
    arguments = {"x": x.T.contiguous().T}
    with pytest.raises(AssertionError, match="not contiguous"):
        check(Case(target, 0, arguments, ("x not contiguous",), {"x": x}))


def test_a_case_is_a_function_of_its_seed():
    for name in ("cam_to_label", "class_average_pool", "SegmentationEvaluator"):
        one, other = (draw_case(TARGETS[name], 17) for _ in range(2))
        assert one.changes == other.changes
        assert str(one.arguments) == str(other.arguments)
    assert len({draw_case(TARGETS["cam_to_label"], seed).changes for seed in range(200)}) > 80
