"""Loop-level transcriptions of optimal transport, one problem at a time in double precision."""

import math

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor


def _log_sum_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def _problem(
    cost: list[list[float]], a: list[float], b: list[float], reg: float, steps: int, gap: float
) -> Tensor:
    """Scale the rows of exp(-cost / reg) to a, then the columns to b; places without mass out."""
    rows = [i for i in range(len(a)) if a[i] > 0]
    columns = [j for j in range(len(b)) if b[j] > 0]
    plan = torch.zeros(len(a), len(b), dtype=torch.float64)
    if not rows or not columns:
        return plan
    c = {(i, j): cost[i][j] / reg for i in rows for j in columns}
    g = dict.fromkeys(columns, 0.0)
    for _ in range(steps):
        f = {i: math.log(a[i]) - _log_sum_exp([g[j] - c[i, j] for j in columns]) for i in rows}
        off = 0.0
        for j in columns:
            mass = math.exp(g[j] + _log_sum_exp([f[i] - c[i, j] for i in rows]))
            off += abs(mass - b[j])
        g = {j: math.log(b[j]) - _log_sum_exp([f[i] - c[i, j] for i in rows]) for j in columns}
        if off <= gap:
            break
    for i in rows:
        for j in columns:
            plan[i, j] = math.exp(f[i] + g[j] - c[i, j])
    return plan


def sinkhorn_oracle(
    cost: Tensor, a: Tensor, b: Tensor, *, reg: float, num_iters: int, gap: float = -1.0
) -> Tensor:
    """Return the plans (B, M, N) after so many iterations, or at a lower gap of the columns."""
    return torch.stack(
        [
            _problem(cost[n].tolist(), a[n].tolist(), b[n].tolist(), reg, num_iters, gap)
            for n in range(len(cost))
        ]
    )


def optimal_oracle(cost: Tensor, a: Tensor, b: Tensor, *, reg: float) -> Tensor:
    """Iterate until the columns need no change."""
    return sinkhorn_oracle(cost, a, b, reg=reg, num_iters=20_000, gap=1e-13)


def transport_cost_oracle(cost: Tensor, a: Tensor, b: Tensor) -> list[float]:
    """Solve the linear program of each problem: least <T, C> with rows a and columns b."""
    values = []
    rows, columns = cost.shape[1:]
    for n in range(len(cost)):
        constraints = []
        for i in range(rows):
            taken = np.zeros((rows, columns))
            taken[i, :] = 1
            constraints.append(taken.flatten())
        for j in range(columns):
            taken = np.zeros((rows, columns))
            taken[:, j] = 1
            constraints.append(taken.flatten())
        found = linprog(
            cost[n].flatten().numpy(),
            A_eq=np.stack(constraints),
            b_eq=np.concatenate([a[n].numpy(), b[n].numpy()]),
        )
        assert found.status == 0, found.message
        values.append(float(found.fun))
    return values
