"""Exponential moving average of a model (Mean Teacher, https://arxiv.org/abs/1703.01780)."""

import copy
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from wsss_blocks._validate import check_fraction

__all__ = ["EMA"]


class EMA(nn.Module):
    r"""Hold a frozen copy of a model whose parameters are a moving average.

    .. math::

        \theta'_t = d_t \, \theta'_{t-1} + (1 - d_t) \, \theta_t, \qquad
        d_t = d \;\text{ or, with warmup, }\; \min\left(d, \tfrac{1 + t}{10 + t}\right)

    with t = 0 at the first update. The state, step count included, is in ``state_dict``.

    Reference:
        Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, section 2:
        https://arxiv.org/abs/1703.01780. DHR evaluates such an average with decay 0.999, without
        warm-up: https://arxiv.org/abs/2404.00380.

    Note:
        The copy keeps the dtype of the model. In half precision a step of a thousandth is lost to
        rounding: average such a model with ``EMA(model).float()``. DHR's released code also
        averages the floating-point buffers (running statistics): ``average_buffers=True``.

    Args:
        model: the model to follow; it is copied, not kept.
        decay: weight of the past, in [0, 1].
        warmup: let the decay rise with the number of updates.
        average_buffers: average floating-point buffers too instead of copying them. Integer
            buffers are always copied.

    Shape:
        - input, output: those of the model

    Raises:
        ValueError: ``decay`` is outside [0, 1].

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> ema = EMA(model, decay=0.9)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> ema.update(model)
        >>> ema(torch.ones(1, 1))
        tensor([[0.1000]])
    """

    num_updates: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        decay: float = 0.999,
        warmup: bool = False,
        average_buffers: bool = False,
    ) -> None:
        super().__init__()
        check_fraction("decay", decay)
        self.decay, self.warmup, self.average_buffers = decay, warmup, average_buffers
        self.model = copy.deepcopy(_unwrap(model)).requires_grad_(False).eval()
        device = next((p.device for p in self.model.parameters()), None)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64, device=device))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards ``model`` by one step.

        Args:
            model: the model given at construction, possibly wrapped since in
                ``DistributedDataParallel``, ``DataParallel`` or ``torch.compile``.

        Raises:
            ValueError: its parameters and buffers differ in name or shape from the copy's.
        """
        source = _unwrap(model)
        averaged = _pairs(self.model.named_parameters(), source.named_parameters())
        copied = _pairs(self.model.named_buffers(), source.named_buffers())
        if self.average_buffers:
            averaged, copied = averaged + copied, []
        copied += [pair for pair in averaged if not pair[0].is_floating_point()]
        averaged = [pair for pair in averaged if pair[0].is_floating_point()]
        if copied:
            torch._foreach_copy_([mine for mine, _ in copied], [other for _, other in copied])
        if averaged:
            ours, theirs = [mine for mine, _ in averaged], [other for _, other in averaged]
            if self.warmup:
                # 1 - (1 + t) / (10 + t); a tensor, because reading t would wait for the device.
                step = (9 / (10 + self.num_updates)).clamp_min(1 - self.decay)
                torch._foreach_lerp_(ours, theirs, [step.to(x.device, x.dtype) for x in ours])
            else:
                torch._foreach_lerp_(ours, theirs, 1 - self.decay)
        self.num_updates += 1

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the averaged model in evaluation mode; gradients reach the inputs only."""
        return self.model(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of this wrapper; the averaged model stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    def extra_repr(self) -> str:
        """Show the settings in the repr."""
        return f"decay={self.decay}, warmup={self.warmup}, average_buffers={self.average_buffers}"


def _unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside data-parallel wrappers and ``torch.compile``."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return _unwrap(model.module)
    compiled = model._modules.get("_orig_mod")
    return model if compiled is None else _unwrap(compiled)


def _pairs(
    ours: Iterable[tuple[str, Tensor]], theirs: Iterable[tuple[str, Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """Match tensors by name; the second of each pair gets the dtype and device of the first."""
    # A submodule may have been compiled after the copy was made.
    mine = {name.replace("_orig_mod.", ""): x for name, x in ours}
    other = {name.replace("_orig_mod.", ""): x for name, x in theirs}
    if odd := sorted(mine.keys() ^ other.keys()):
        raise ValueError(
            "model must have the parameters and buffers of the averaged one, "
            f"got one where only one of both has {odd[0]!r}."
        )
    for name, x in mine.items():
        if x.shape != other[name].shape:
            raise ValueError(
                f"{name} of model must have shape {tuple(x.shape)}, got {tuple(other[name].shape)}."
            )
    return [(x, other[name].detach().to(x.device, x.dtype)) for name, x in mine.items()]
