"""Unregularised plans from POT, one problem after the other on the host."""

import torch
from torch import Tensor

__all__ = ["exact_plan"]


def exact_plan(cost: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
    """Return optimal plans ``(B, M, N)`` for checked arguments (both masses or none)."""
    import ot

    batch, rows, columns = cost.shape
    if a is None or b is None:
        a, b = (cost.new_full((batch, n), 1 / n, dtype=torch.float64) for n in (rows, columns))
    costs, left, right = (x.detach().double().cpu().numpy() for x in (cost, a, b))
    plans = torch.zeros(batch, rows, columns, dtype=torch.float64)
    for plan, table, p, q in zip(plans.numpy(), costs, left, right, strict=True):
        i, j = p.nonzero()[0], q.nonzero()[0]
        if len(i) and len(j):
            p, q, total = p[i] / p[i].sum(), q[j] / q[j].sum(), q[j].sum()
            table = table[i[:, None], j]
            plan[i[:, None], j] = total * ot.emd(p, q, table, numItermax=10_000_000)
    return plans.to(cost.device, cost.dtype)
