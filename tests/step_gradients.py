"""The gradients that an optimiser is handed."""

from collections.abc import Callable

from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook


def gradients_of_one_step(train: Callable[[], object]) -> list[Tensor]:
    """Call what trains one step; return the gradients of all parameters that have one."""
    found: list[list[Tensor]] = []

    def look(optimizer, args, kwargs):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        found.append([p.grad.clone() for p in parameters if p.grad is not None])

    handle = register_optimizer_step_pre_hook(look)
    try:
        train()
    finally:
        handle.remove()
    (gradients,) = found
    return gradients
