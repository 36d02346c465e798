"""Catch what a module computes, where a gradient CAM can differentiate with respect to it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["tap_output"]


@contextmanager
def tap_output(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the outputs of a module's calls as tensors on the autograd path.

    For layers that are not in ``Features.taps``, such as the first norm of a transformer's last
    block, and for frozen encoders: where an output has no graph (frozen weights), one begins at
    it, so that a backward costs no more than what follows the layer.

    Args:
        module: a module whose output is one tensor.

    Yields:
        A list with one tensor per call of the module, for the ``tap`` of :func:`gradient_cam`.

    Raises:
        TypeError: ``module`` is not a module or returns something else than a floating-point
            tensor.
        ValueError: gradients are switched off during the call.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> with tap_output(net.requires_grad_(False)[1]) as taps:
        ...     scores = net(torch.rand(1, 3, 9, 9)).mean((2, 3))
        >>> taps[0].shape, scores.requires_grad
        (torch.Size([1, 8, 7, 7]), True)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}.")
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> Tensor:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise TypeError(f"module must return a floating-point tensor, got {kind}.")
        if not torch.is_grad_enabled():
            raise ValueError("module must be called with gradients on, got torch.no_grad().")
        kept.append(output if output.requires_grad else output.detach().requires_grad_())
        return kept[-1]

    handle = module.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()
