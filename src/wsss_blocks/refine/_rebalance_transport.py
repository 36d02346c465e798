"""Transport plans inside groups of classes, all groups of an image at once."""

import torch
from torch import Tensor

from wsss_blocks.refine._transport import scaled_plan

__all__ = ["group_factor"]


def group_factor(
    maps: Tensor,
    groups: Tensor,
    valid: Tensor,
    *,
    mass: Tensor,
    reg: float,
    num_iters: int,
) -> Tensor:
    """Scale each class of the plan of its own group to [0, 1]; a class without group gets 1.

    ``maps (B, C, h, w)`` in [0, 1], ``groups (B, G, C)`` disjoint rows of two or more members or of
    none, ``valid (B, h, w)``, ``mass (B, C)`` in proportion to which the members of a group share
    its cells. A class is in one group at most, so one kernel ``(B, C, M)`` holds
    all problems, and a product with the groups sums over each of them. Scores in [0, 1] keep the
    kernel above exp(-1 / reg): no logarithms needed.
    """
    scores, inside = maps.flatten(2), valid.flatten(1).unsqueeze(1)
    rows = _filled_first(groups)[:, : max(1, maps.shape[1] // 2)].to(scores.dtype)
    share = inside / inside.sum(2, keepdim=True).clamp_min(1)
    shares = rows * mass.unsqueeze(1)
    tiny = torch.finfo(scores.dtype).tiny
    mass = (shares / shares.sum(2, keepdim=True).clamp_min(tiny)).sum(1)  # 0 without a group
    kernel = ((scores - 1) / reg).exp()
    weight = rows.sum(1)
    with torch.autocast(maps.device.type, enabled=False):
        for _ in range(num_iters):
            row = share / ((rows * weight.unsqueeze(1)) @ kernel).clamp_min(tiny)
            weight = mass / (rows * (row @ kernel.mT)).sum(1).clamp_min(tiny)
        plan = kernel * weight.unsqueeze(2) * (rows.mT @ row)  # 0, so constant, without a group
    return scaled_plan(plan, inside).masked_fill(~inside, 0).view_as(maps)


def _filled_first(groups: Tensor) -> Tensor:
    order = groups.any(2).to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return groups.gather(1, order.unsqueeze(2).expand_as(groups))
