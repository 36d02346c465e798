"""Transport problems for the solvers: checked, normalised, with the shorter side first."""

from typing import NamedTuple

import torch
from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_non_negative,
    check_positive,
    check_same_device,
    check_shape,
    values_are_checked,
)

__all__ = ["Problem", "as_plan", "check_problem", "filler", "prepare", "tiny"]


class Problem(NamedTuple):
    """A batch of problems: S places on the shorter side, L on the longer one."""

    score: Tensor  # (B, S, L): (least cost of the row - cost) / reg, very low where masked
    long: Tensor  # (B, 1, L) masses that add up to 1
    short: Tensor  # (B, S, 1) masses that add up to 1
    span: Tensor  # (B, 1, 1) range of the valid scores, without gradient
    total: Tensor | None  # (B, 1, 1) mass of each problem; None = 1
    columns: bool  # the shorter side are the columns, else the rows

    def detach(self) -> "Problem":
        """Cut the tensors that carry gradients off the graph."""
        fields = (self.score.detach(), self.long.detach(), self.short.detach())
        return self._replace(score=fields[0], long=fields[1], short=fields[2])


def tiny(x: Tensor) -> float:
    """Return the least normal number of a dtype."""
    return float(torch.finfo(x.dtype).tiny)


def filler(x: Tensor) -> float:
    """Return what stands for minus infinity: exp makes it 0 and sums of three stay finite."""
    return float(torch.finfo(x.dtype).min) / 4


def check_problem(
    cost: Tensor, reg: float, a: Tensor | None, b: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Raise unless these are transport problems; give a missing side the mass of the other one."""
    check_shape("cost", cost, "B M N")
    check_floating("cost", cost)
    check_positive("reg", reg)
    batch, rows, columns = cost.shape
    if a is not None:
        _check_masses("a", a, cost, "M", rows)
    if b is not None:
        _check_masses("b", b, cost, "N", columns)
    if a is None and b is None:
        check_finite("cost", cost)
        return None, None
    if a is None and b is not None:
        b = at_least_float32(b)
        a = (b.sum(1, keepdim=True) / rows).expand(batch, rows)
    elif b is None and a is not None:
        a = at_least_float32(a)
        b = (a.sum(1, keepdim=True) / columns).expand(batch, columns)
    else:
        assert a is not None
        assert b is not None
        _check_totals(a, b)
    check_finite("cost", cost, where=(a > 0).unsqueeze(2) & (b > 0).unsqueeze(1))
    return a, b


def prepare(cost: Tensor, reg: float, a: Tensor | None, b: Tensor | None) -> Problem:
    """Bring checked arguments (both masses or none) into the form that the solvers read."""
    cost = at_least_float32(cost)
    for masses in (a, b):
        if masses is not None:
            cost = cost.to(torch.promote_types(cost.dtype, at_least_float32(masses).dtype))
    batch, rows, columns = cost.shape
    flipped = columns <= rows
    cost = cost.mT.contiguous() if flipped else cost
    row_axis = 1 if flipped else 2  # the axis along which the entries of one row lie
    total = None
    if a is None or b is None:
        a, b = cost.new_full((batch, rows), 1 / rows), cost.new_full((batch, columns), 1 / columns)
    else:
        a, b = a.to(cost.dtype), b.to(cost.dtype)
        mass_a, mass_b = a.sum(1, keepdim=True), b.sum(1, keepdim=True)
        full = (mass_a > 0) & (mass_b > 0)
        a = torch.where(full, a / mass_a.clamp_min(tiny(a)), 0)
        b = torch.where(full, b / mass_b.clamp_min(tiny(b)), 0)
        total = torch.where(full, mass_b, 0).unsqueeze(2)
    short, long = (b, a) if flipped else (a, b)
    short, long = short.unsqueeze(2), long.unsqueeze(1)
    padded = total is not None and not _all_positive(short, long)
    hidden = (short <= 0) | (long <= 0) if padded else None

    lowest = filler(cost) / 16
    if hidden is not None:
        cost = cost.masked_fill(hidden, torch.finfo(cost.dtype).max)
    # A constant per row cancels in the row step. Leaving it out keeps the digits of the rest.
    score = (cost.detach().amin(row_axis, keepdim=True) - cost).div_(reg).clamp_min_(lowest)
    if hidden is None:
        return Problem(score, long, short, _span(score), total, flipped)
    span = _span(score.masked_fill(hidden, 0))
    return Problem(score.masked_fill(hidden, filler(score)), long, short, span, total, flipped)


def as_plan(plan: Tensor, problem: Problem, dtype: torch.dtype) -> Tensor:
    """Give a plan ``(B, S, L)`` of mass 1 its mass, and the axes of the cost back."""
    if problem.total is not None:
        plan = plan * problem.total
    return (plan.mT if problem.columns else plan).to(dtype)


def _span(score: Tensor) -> Tensor:
    return -score.detach().amin((1, 2), keepdim=True)


def _all_positive(*masses: Tensor) -> bool:
    """Tell whether there is no padding, where that may be looked at."""
    return all(values_are_checked(x) and bool((x > 0).all()) for x in masses)


def _check_masses(name: str, masses: Tensor, cost: Tensor, axis: str, size: int) -> None:
    check_shape(name, masses, f"B {axis}", **{"B": cost.shape[0], axis: size})
    check_floating(name, masses)
    check_same_device(name, masses, "cost", cost)
    check_finite(name, masses)
    check_non_negative(name, masses)


def _check_totals(a: Tensor, b: Tensor) -> None:
    if not values_are_checked(a) or not a.numel():
        return
    left, right = a.detach().double().sum(1), b.detach().double().sum(1)
    # Uniform masses of a half type are all rounded alike.
    slack = max(1e-4, 2 * torch.finfo(a.dtype).eps, 2 * torch.finfo(b.dtype).eps)
    off = (left - right).abs() - slack * torch.maximum(left, right)
    if bool((off > 0).any()):
        worst = int(off.argmax())
        raise ValueError(
            "a and b must have the same total mass in each problem, got "
            f"{float(left[worst]):.6g} and {float(right[worst]):.6g} in problem {worst}."
        )
