"""The optimum of the semi-dual by Newton's method, and its derivative."""

import torch
from torch import Tensor

from wsss_blocks._validate import values_are_checked
from wsss_blocks.refine._sinkhorn_problem import Problem, tiny

__all__ = ["implicit_potential", "newton_potential"]

_START = 20.0  # range of the scores in the first stage
_GROWTH = 2.0  # of the range from stage to stage
_STAGE_GAP = 0.05  # share of misplaced mass at which a stage ends
_CLIP = 4.0  # longest step
_PATIENCE = 3  # short steps without progress after which rounding is to blame
_PASSES = 100  # where the loop can stop early
_FIXED_PASSES = 40  # where it cannot


def newton_potential(problem: Problem, tol: float | None) -> Tensor:
    """Return the potential ``(B, S, 1)`` of the optimal plans, without gradient."""
    if tol is None:
        tol = 1e-12 if problem.score.dtype == torch.float64 else 1e-6
    given = problem.detach()
    # Compiled, the loop is one operator: unrolled it would take ten seconds to trace.
    solve = _newton_operator if torch.compiler.is_compiling() else _newton
    potential: Tensor = solve(given.score, given.long, given.short, given.span, tol)
    return potential


@torch.no_grad()
def _newton(score: Tensor, long: Tensor, wanted: Tensor, span: Tensor, tol: float) -> Tensor:
    r"""Solve for the potential.

    The marginal of the shorter side is :math:`c(h) = \sum_j w_j p_j`, with :math:`p_j` the softmax
    of column j of ``score + h``. Newton's step for :math:`\log c(h) = \log s`,

    .. math:: H d = c \log(s / c), \qquad H = \mathrm{diag}(c) - \sum_j w_j p_j p_j^T,

    is Sinkhorn's where places do not interact. The scores grow from a fraction to their full size,
    each problem at its own pace: from afar the step overshoots.
    """
    least = tiny(score)
    scale = _START / span.clamp_min(_START)
    # At scale 0 the optimum is log(mass): the first of two points of which the next is a guess.
    trial = older = best = wanted.clamp_min(least).log()
    older_scale, stalled = torch.zeros_like(span), torch.zeros_like(span)
    lowest = length = torch.full_like(span, float("inf"))
    done = torch.zeros_like(span, dtype=torch.bool)
    early = values_are_checked(score)
    for _ in range(_PASSES if early else _FIXED_PASSES):
        marginal, coupling = _evaluate((score * scale).add_(trial), long)
        gap = (marginal - wanted).abs().sum(1, keepdim=True)
        final = scale >= 1
        better = final & (gap < lowest) & ~done
        best, lowest = torch.where(better, trial, best), torch.where(better, gap, lowest)
        stalled = torch.where(final & ~better & (length < 0.1), stalled + 1, 0)
        done = done | (lowest <= tol) | (stalled >= _PATIENCE)
        if early and bool(done.all()):
            break

        aim = marginal * (wanted.clamp_min(least) / marginal.clamp_min(least)).log()
        aim = aim - marginal * aim.sum(1, keepdim=True)
        step = torch.linalg.solve_ex(_system(coupling, marginal), aim)[0]
        step = step - (marginal * step).sum(1, keepdim=True)
        length = step.abs().amax(1, keepdim=True)
        step = torch.where(length < 1 / least, step * (_CLIP / length.clamp_min(_CLIP)), 0)
        trial = trial + step

        ahead = ~final & (gap <= _STAGE_GAP)
        grown = torch.where(ahead, (_GROWTH * scale).clamp_max(1), scale)
        guess = trial + (trial - older) * ((grown - scale) / (scale - older_scale))
        older = torch.where(ahead, trial, older)
        older_scale = torch.where(ahead, scale, older_scale)
        trial, scale = torch.where(ahead, guess, trial), grown
    # Out of passes in an earlier stage, the potential is made as steep as the last one needs it.
    return torch.where(lowest < float("inf"), best, trial / scale)


_newton_operator = torch.library.custom_op("wsss_blocks::sinkhorn_newton", _newton, mutates_args=())


@_newton_operator.register_fake
def _(score: Tensor, long: Tensor, wanted: Tensor, span: Tensor, tol: float) -> Tensor:
    return wanted.new_empty(wanted.shape)


def implicit_potential(problem: Problem, potential: Tensor) -> Tensor:
    """Return the same potential with the derivative that an optimal one has.

    It stays optimal while the problem changes: its marginal stays the mass of the shorter side.
    """
    marginal, coupling = _evaluate(problem.score + potential, problem.long)
    gap = torch.where(problem.short > 0, problem.short - marginal, 0)
    change: Tensor = torch.linalg.solve_ex(_system(coupling, marginal.detach()), gap)[0]
    return potential + (change - change.detach())


def _evaluate(scores: Tensor, long: Tensor) -> tuple[Tensor, Tensor]:
    """Return c ``(B, S, 1)`` and, without gradient, the sum of outer products ``(B, S, S)``."""
    rows = torch.softmax(scores, 1)
    plan = rows * long
    return plan.sum(2, keepdim=True), torch.bmm(plan.detach(), rows.detach().mT)


def _system(coupling: Tensor, marginal: Tensor) -> Tensor:
    """Return H with a ridge that makes it regular, also at places without mass."""
    least, eps = tiny(coupling), float(torch.finfo(coupling.dtype).eps)
    diagonal = torch.eye(coupling.shape[1], dtype=torch.bool, device=coupling.device)
    # The rows of H add up to 0: its diagonal from the rest loses no digits to cancellation.
    coupling = torch.where(diagonal, 0, coupling)
    ridge = 4 * eps * marginal.clamp_min(least / eps)
    return torch.where(diagonal, coupling.sum(2, keepdim=True) + ridge, -coupling)
