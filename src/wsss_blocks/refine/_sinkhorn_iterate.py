"""Sinkhorn iterations with a bounded number of steps, in the log domain and as scalings.

The potential of the longer side is eliminated: with ``h`` of the shorter side, its softmax over the
shorter axis gives a plan whose longer marginal is exact. Columns shorter: an iteration is this
softmax (rows) and a change of ``h`` (columns). Rows shorter: ``h`` is the first row step.
"""

import torch
from torch import Tensor

from wsss_blocks._validate import values_are_checked
from wsss_blocks.refine._sinkhorn_problem import Problem, filler, tiny

__all__ = ["log_plan", "log_potential", "scaling_plan", "scaling_potential"]


def log_potential(problem: Problem, num_iters: int, tol: float | None) -> Tensor:
    """Return the potential ``(B, S, 1)`` whose :func:`log_plan` ends the last iteration."""
    log_short, log_long = _log(problem.short), _log(problem.long)
    present = problem.short > 0
    if problem.columns:
        potential = torch.zeros_like(problem.short)
    else:
        potential = log_short - problem.score.logsumexp(2, keepdim=True)
    for _ in range(num_iters - 1):
        plan = torch.log_softmax(problem.score + potential, 1) + log_long
        marginal = plan.logsumexp(2, keepdim=True)
        step = torch.where(present, log_short - marginal, 0)
        if tol is not None:
            open_ = _gap(marginal.exp(), problem.short, 1) > tol
            if values_are_checked(step) and not bool(open_.any()):
                break
            step = torch.where(open_, step, 0)
        potential = potential + step
    return potential


def log_plan(problem: Problem, potential: Tensor) -> Tensor:
    """Return the plan ``(B, S, L)`` of a potential, the columns exact."""
    plan = torch.log_softmax(problem.score + potential, 1) + _log(problem.long)
    if problem.columns:
        plan = plan + (_log(problem.short) - plan.logsumexp(2, keepdim=True))
    return plan.exp()


def scaling_potential(
    problem: Problem, kernel: Tensor, num_iters: int, tol: float | None
) -> Tensor:
    """Return what :func:`log_potential` does, as factors ``(B, 1, S)`` of the kernel."""
    short = problem.short.mT
    factor = torch.ones_like(short)
    if not problem.columns:
        factor = _over(short, kernel.sum(2).unsqueeze(1))
    for _ in range(num_iters - 1):
        other = _over(problem.long, torch.bmm(factor, kernel))
        marginal = torch.bmm(other, kernel.mT)
        scaled = _over(short, marginal)
        if tol is not None:
            open_ = _gap(factor * marginal, short, 2) > tol
            if values_are_checked(scaled) and not bool(open_.any()):
                break
            scaled = torch.where(open_, scaled, factor)
        factor = scaled
    return factor


def scaling_plan(problem: Problem, kernel: Tensor, factor: Tensor) -> Tensor:
    """Return the plan ``(B, S, L)`` of factors ``(B, 1, S)``, the columns exact."""
    other = _over(problem.long, torch.bmm(factor, kernel))
    if problem.columns:
        factor = _over(problem.short.mT, torch.bmm(other, kernel.mT))
    return kernel * factor.mT * other


def _gap(marginal: Tensor, wanted: Tensor, axis: int) -> Tensor:
    return (marginal.detach() - wanted.detach()).abs().sum(axis, keepdim=True)


def _log(masses: Tensor) -> Tensor:
    positive = masses > 0
    return torch.where(positive, torch.where(positive, masses, 1).log(), filler(masses))


def _over(masses: Tensor, marginal: Tensor) -> Tensor:
    return masses / marginal.clamp_min(tiny(marginal))
