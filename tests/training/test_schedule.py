import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.training import polynomial_rates

from wsss_blocks.training import polynomial_schedule


def sgd(*rates):
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": r} for r in rates]
    return torch.optim.SGD(groups, lr=1.0)


def run(optimizer, schedule, steps):
    rates = []
    for _ in range(steps):
        rates.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return rates


@given(
    st.integers(1, 30),
    st.integers(0, 29),
    st.sampled_from([0.0, 1e-6, 0.5, 1.0]),
    st.sampled_from([0.9, 1.0, 2.0]),
)
def test_rates_equal_the_loop(total, warmup, ratio, power):
    warmup = min(warmup, total - 1)
    optimizer = sgd(6e-5, 6e-4)
    schedule = polynomial_schedule(
        optimizer, total_steps=total, warmup_steps=warmup, warmup_ratio=ratio, power=power
    )
    rates = run(optimizer, schedule, total + 3)
    for i, base in enumerate((6e-5, 6e-4)):
        expected = polynomial_rates(base, total, warmup, ratio, power, total + 3)
        assert [r[i] for r in rates] == pytest.approx(expected, rel=1e-12)


def test_the_papers_setting():
    optimizer = sgd(6e-5)
    schedule = polynomial_schedule(optimizer, total_steps=20000, warmup_steps=1500)
    rates = [r[0] for r in run(optimizer, schedule, 20000)]
    assert rates[0] == pytest.approx(6e-11)
    assert max(rates) == rates[1499]
    assert rates[1500] == pytest.approx(6e-5 * (1 - 1500 / 20000) ** 0.9)
    assert rates[1500] < rates[1499]  # the drop at the seam
    assert 0 < rates[-1] < 1e-8


def test_state_resumes():
    optimizer = sgd(1.0)
    schedule = polynomial_schedule(optimizer, total_steps=10, warmup_steps=3)
    expected = run(optimizer, schedule, 10)
    first = sgd(1.0)
    half = polynomial_schedule(first, total_steps=10, warmup_steps=3)
    run(first, half, 5)
    second = sgd(1.0)
    rest = polynomial_schedule(second, total_steps=10, warmup_steps=3)
    second.load_state_dict(first.state_dict())
    rest.load_state_dict(half.state_dict())
    assert run(second, rest, 5) == expected[5:]


def test_refuses():
    with pytest.raises(ValueError, match="total_steps must be at least 1, got 0"):
        polynomial_schedule(sgd(1.0), total_steps=0)
    for warmup in (-1, 5):
        with pytest.raises(ValueError, match=r"warmup_steps must lie in \[0, total_steps=5\)"):
            polynomial_schedule(sgd(1.0), total_steps=5, warmup_steps=warmup)
    with pytest.raises(ValueError, match=r"warmup_ratio must lie in \[0, 1\], got 2"):
        polynomial_schedule(sgd(1.0), total_steps=5, warmup_ratio=2)
    with pytest.raises(ValueError, match="power must be positive"):
        polynomial_schedule(sgd(1.0), total_steps=5, power=0)
