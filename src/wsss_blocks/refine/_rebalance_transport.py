"""Transport plans inside groups of classes, all groups of an image at once."""

import torch
from torch import Tensor

from wsss_blocks.refine._transport import scaled_plan, transport_factor

__all__ = ["group_factor", "maps_factor"]


def maps_factor(
    maps: Tensor, present: Tensor, valid: Tensor, *, reg: float, num_iters: int
) -> Tensor:
    """Scale each class of the plan of ``maps (B, C, h, w)`` over all present classes to [0, 1]."""
    factor = transport_factor(
        maps.flatten(2), present, valid.flatten(1), reg=reg, num_iters=num_iters
    )
    return factor.view_as(maps)


def group_factor(
    maps: Tensor, groups: Tensor, valid: Tensor, *, reg: float, num_iters: int
) -> Tensor:
    """Scale each class of the plan of its own group to [0, 1]; a class without group gets 1.

    ``maps (B, C, h, w)`` in [0, 1], ``groups (B, C, C)`` disjoint rows of members, ``valid
    (B, h, w)``. A class is in one group at most, so one kernel ``(B, C, M)`` holds all problems; a
    product with the groups sums a row over each of them. Scores in [0, 1] keep the kernel above
    exp(-1 / reg): no logarithms needed.
    """
    scores, inside = maps.flatten(2), valid.flatten(1).unsqueeze(1)
    rows = groups.to(scores.dtype)
    columns = rows.mT.contiguous()
    member = groups.any(1).unsqueeze(2)
    share = inside / inside.sum(2, keepdim=True).clamp_min(1)
    kernel = ((scores - 1) / reg).exp() * inside
    tiny = torch.finfo(scores.dtype).tiny
    weight = member.to(scores.dtype)
    with torch.autocast(maps.device.type, enabled=False):
        mass = columns @ (1 / rows.sum(2, keepdim=True).clamp_min(1))  # 1 / N, 0 without a group
        for _ in range(num_iters):
            row = columns @ (share / (rows @ (kernel * weight)).clamp_min(tiny))
            weight = mass / (kernel * row).sum(2, keepdim=True).clamp_min(tiny)
    factor = scaled_plan(kernel * weight * row, inside).masked_fill(~member, 1)
    return factor.masked_fill(~inside, 0).view_as(maps)
