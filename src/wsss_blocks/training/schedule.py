"""Learning-rate schedules as the papers' code runs them."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from wsss_blocks._validate import check_int, check_number, check_positive

__all__ = ["polynomial_schedule"]


def polynomial_schedule(
    optimizer: Optimizer,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_ratio: float = 1e-6,
    power: float = 0.9,
) -> LambdaLR:
    r"""Warm up linearly, then decay polynomially; call ``step()`` after each optimizer step.

    With t counted from 0 at the start of training, W warm-up steps of ratio r and T steps in all,

    .. math::

        \eta_t = \eta \cdot \begin{cases}
            r + (1 - r) \, t / W & t < W \\
            (1 - t / T)^p & W \le t < T \\
            0 & t \ge T
        \end{cases}

    The rate drops a little where the two meet: the decay does not start at the end of warm-up.

    Reference:
        The released code of ToCo, https://arxiv.org/abs/2303.01267 (AdamW, 6e-5, 1,500 warm-up
        steps, power 0.9), and of its successors.

    Args:
        optimizer: each group keeps its own base rate.
        total_steps: T.
        warmup_steps: W, less than T.
        warmup_ratio: r, the factor of step 0.
        power: p.

    Returns:
        A scheduler; its state is two numbers and a list, safe to save.

    Raises:
        ValueError: ``total_steps < 1``, ``warmup_steps`` not in ``[0, total_steps)``, a ratio
            outside ``[0, 1]``, or a power that is not positive.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = polynomial_schedule(sgd, total_steps=4, power=1.0)
        >>> rates = []
        >>> for _ in range(4):
        ...     rates += schedule.get_last_lr()
        ...     sgd.step()
        ...     schedule.step()
        >>> rates
        [1.0, 0.75, 0.5, 0.25]
    """
    check_int("total_steps", total_steps, least=1)
    check_int("warmup_steps", warmup_steps)
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warmup_steps must lie in [0, total_steps={total_steps}), got {warmup_steps}."
        )
    check_number("warmup_ratio", warmup_ratio)
    if not 0 <= warmup_ratio <= 1:
        raise ValueError(f"warmup_ratio must lie in [0, 1], got {warmup_ratio}.")
    check_positive("power", power)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return warmup_ratio + (1 - warmup_ratio) * step / warmup_steps
        return float(max(0.0, 1 - step / total_steps) ** power)

    return LambdaLR(optimizer, factor)
