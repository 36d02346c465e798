"""How much of each class the transport plan leaves at each cell. Shared by function and refiner."""

import torch
from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import check_int, check_positive
from wsss_blocks.cam.normalize import scale_to_range
from wsss_blocks.refine.sinkhorn import sinkhorn

__all__ = ["check_options", "normalised", "present_first", "scaled_plan", "transport_factor"]

_SPREAD = 1e-3  # of the largest entry: a column that varies by less tells no cells apart
_OFFICIAL_REG = 0.05  # exp(-1 / reg) and its square, in the backward pass, are floats above this
_OFFICIAL_ITERS = 100
_OFFICIAL_STOP = 1e-2
_OFFICIAL_CLIP = 1e-5


def check_options(reg: float, num_iters: int, *, official: bool = False) -> None:
    """Raise unless the options describe a solvable problem."""
    check_positive("reg", reg)
    check_int("num_iters", num_iters, least=1)
    if official and reg < _OFFICIAL_REG:
        raise ValueError(f"reg must be at least {_OFFICIAL_REG} with official=True, got {reg}.")


def present_first(present: Tensor) -> tuple[Tensor, Tensor | None]:
    """Leave out classes that no image needs: what is present among the kept, and their numbers.

    No numbers: all are kept, as on a GPU, which would have to wait for how many there are.
    """
    if present.device.type != "cpu" or torch.compiler.is_compiling() or not len(present):
        return present, None
    kept = max(int(present.sum(1).max()), 1)
    if kept == present.shape[1]:
        return present, None
    order = present.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :kept]
    return present.gather(1, order), order


def normalised(cam: Tensor, order: Tensor | None, valid: Tensor | None) -> Tensor:
    """Bring the numbered classes to [0, 1] by a ReLU and their maximum over the valid cells."""
    if order is not None:
        cam = cam.gather(1, order[:, :, None, None].expand(-1, -1, *cam.shape[2:]))
    return scale_to_range(at_least_float32(cam), mode="max", relu=True, valid=valid)


def transport_factor(
    scores: Tensor,
    present: Tensor,
    valid: Tensor | None,
    *,
    reg: float,
    num_iters: int,
    official: bool = False,
) -> Tensor:
    """Scale each class of the plan to [0, 1]; all ``(B, N, M)``, classes by cells.

    ``present (B, N)`` and ``valid (B, M)`` say what takes part (None: all cells); the rest
    comes back as 0.
    """
    if valid is None:
        valid = torch.ones_like(scores[:, 0], dtype=torch.bool)
    classes, cells = present.sum(1, keepdim=True), valid.sum(1, keepdim=True)
    some = ((classes > 0) & (cells > 0)).to(scores.dtype)
    a = valid * (some / cells.clamp_min(1))
    b = present * (some / classes.clamp_min(1))
    if official:
        plan = _official_plan(scores, a, b, valid, reg=reg)
    else:
        plan = sinkhorn((1 - scores).mT, reg=reg, a=a, b=b, num_iters=num_iters).mT
    inside = present.unsqueeze(2) & valid.unsqueeze(1)
    if official:
        low, high = _extremes(plan, inside)
        factor = (plan - low) / (high - low).clamp_min(_OFFICIAL_CLIP)
    else:
        factor = scaled_plan(plan, inside)
    factor = factor.masked_fill((classes < 2).unsqueeze(2), 1)
    return factor.masked_fill(~inside, 0)


def scaled_plan(plan: Tensor, inside: Tensor) -> Tensor:
    """Scale each class of a plan ``(B, N, M)`` to [0, 1] over the cells that are inside."""
    low, high = _extremes(plan, inside)
    spread = torch.maximum(high - low, _SPREAD * high)
    return 1 - (high - plan) / spread.clamp_min(torch.finfo(plan.dtype).tiny)


def _extremes(plan: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    high = plan.amax(2, keepdim=True)
    return torch.where(inside, plan, high).amin(2, keepdim=True), high


def _official_plan(scores: Tensor, a: Tensor, b: Tensor, valid: Tensor, *, reg: float) -> Tensor:
    """Scale the kernel until the row scaling changes by less than 1e-2 on average.

    The scaling of a finished problem is frozen, so a batch gives what its problems give alone.
    """
    kernel = ((scores - 1) / reg).exp()
    rows, columns = a.unsqueeze(1), b.unsqueeze(2)
    r, c = valid.unsqueeze(1).to(scores.dtype), (columns > 0).to(scores.dtype)
    count = r.sum(2, keepdim=True).clamp_min(1)
    live = torch.ones_like(count, dtype=torch.bool)
    on_cpu = scores.device.type == "cpu" and not torch.compiler.is_compiling()
    for _ in range(_OFFICIAL_ITERS):
        new_r = _share(rows, (kernel * c).sum(1, keepdim=True))
        new_c = _share(columns, (kernel * new_r).sum(2, keepdim=True))
        change = (new_r - r).detach().abs().sum(2, keepdim=True) / count
        r, c = torch.where(live, new_r, r), torch.where(live, new_c, c)
        live = live & (change >= _OFFICIAL_STOP)
        if on_cpu and not bool(live.any()):  # a GPU would have to wait for the answer
            break
    return r * kernel * c


def _share(mass: Tensor, total: Tensor) -> Tensor:
    return mass / total.masked_fill(total == 0, 1)
