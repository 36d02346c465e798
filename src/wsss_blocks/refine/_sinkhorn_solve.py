"""Which solver runs, and how its result becomes a plan."""

import math
from typing import Literal

import torch
from torch import Tensor

from wsss_blocks._validate import check_choice, check_int, check_positive, values_are_checked
from wsss_blocks.refine._sinkhorn_iterate import (
    log_plan,
    log_potential,
    scaling_plan,
    scaling_potential,
)
from wsss_blocks.refine._sinkhorn_newton import implicit_potential, newton_potential
from wsss_blocks.refine._sinkhorn_problem import Problem, tiny

__all__ = ["Gradient", "Method", "check_options", "solve"]

Method = Literal["auto", "scaling", "log", "newton", "exact"]
Gradient = Literal["unroll", "implicit", "none"]

_NEWTON_SIDE = 32  # a step solves a dense system of the shorter side


def check_options(
    reg: float, num_iters: int, tol: float | None, method: str, gradient: str
) -> None:
    check_positive("reg", reg)
    check_int("num_iters", num_iters, least=1)
    if tol is not None:
        check_positive("tol", tol)
    check_choice("method", method, ("auto", "scaling", "log", "newton", "exact"))
    check_choice("gradient", gradient, ("unroll", "implicit", "none"))


def solve(
    problem: Problem, num_iters: int, tol: float | None, method: Method, gradient: Gradient
) -> Tensor:
    if method == "auto":
        method = _best(problem, tol)
    elif method == "scaling":
        _check_span(problem)
    implicit = torch.is_grad_enabled() and (gradient == "implicit" or method == "newton")
    given = problem.detach() if implicit else problem
    if method == "newton":
        potential = newton_potential(given, tol)
    elif method == "log":
        potential = log_potential(given, num_iters, tol)
    else:
        kernel = given.score.exp()
        factor = scaling_potential(given, kernel, num_iters, tol)
        if not implicit:
            return scaling_plan(given, kernel, factor)
        potential = factor.mT.clamp_min(tiny(factor)).log()
    if implicit:
        potential = implicit_potential(problem, potential)
    return log_plan(problem, potential)


def _best(problem: Problem, tol: float | None) -> Method:
    if tol is not None and problem.short.shape[1] <= _NEWTON_SIDE:
        return "newton"
    if not values_are_checked(problem.score) or not problem.score.numel():
        return "log"
    # Logarithms of factors range over at most span + log(most / least mass), so that products
    # with the kernel, which is at least exp(-span), stay normal numbers.
    least = problem.short.detach().masked_fill(problem.short == 0, 1).amin()
    reach = 2 * float(problem.span.max()) - math.log(float(least))
    return "scaling" if reach < -0.8 * math.log(tiny(problem.score)) else "log"


def _check_span(problem: Problem) -> None:
    limit = 80 if problem.score.dtype == torch.float32 else 700
    if values_are_checked(problem.score) and problem.score.numel():
        span = float(problem.span.max())
        if span > limit:
            raise ValueError(
                f"cost must range over at most {limit} * reg along a row for method='scaling', "
                f"got {span:.4g} * reg: use method='log'."
            )
