"""Sinkhorn in eager torch, from the formula: as the field runs it, and the best plain form."""

import torch
from torch import Tensor

__all__ = ["best", "published"]


def published(cost: Tensor, a: Tensor, b: Tensor, *, reg: float, num_iters: int) -> Tensor:
    """Run one problem after the other; what has no mass is left out.

    Each update adds to a potential what its marginal is off by, so that an iteration makes the
    whole table ``(u_i + v_j - C_ij) / reg`` twice.
    """
    plans = torch.zeros_like(cost)
    for plan, table, p, q in zip(plans, cost, a, b, strict=True):
        rest = torch.meshgrid(p.nonzero()[:, 0], q.nonzero()[:, 0], indexing="ij")
        table, p, q = table[rest], p[p > 0], q[q > 0]
        u, v = torch.zeros_like(p), torch.zeros_like(q)
        for _ in range(num_iters):
            scores = (u[:, None] + v[None, :] - table) / reg
            u = reg * (torch.log(p) - torch.logsumexp(scores, 1)) + u
            scores = (u[:, None] + v[None, :] - table) / reg
            v = reg * (torch.log(q) - torch.logsumexp(scores, 0)) + v
        plan[rest] = torch.exp((u[:, None] + v[None, :] - table) / reg)
    return plans


def best(cost: Tensor, a: Tensor, b: Tensor, *, reg: float, num_iters: int) -> Tensor:
    """Run all problems at once, pixels along the last axis."""
    scores = (cost / -reg).mT.contiguous()
    log_a, log_b = a.log().unsqueeze(1), b.log().unsqueeze(2)
    v = torch.zeros_like(log_b)
    for _ in range(num_iters):
        u = log_a - torch.logsumexp(scores + v, 1, keepdim=True)
        v = log_b - torch.logsumexp(scores + u, 2, keepdim=True)
    return torch.exp(scores + u + v).mT
