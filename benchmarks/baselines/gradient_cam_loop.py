"""Grad-CAM in plain torch, from the formula: class by class as usual, and the best plain form."""

import torch
from torch import Tensor, nn

__all__ = ["best", "published"]


def published(
    net: nn.Module, layer: nn.Module, images: Tensor, labels: Tensor, *, first: int = 0
) -> Tensor:
    """Run one forward of the batch, then a backward for each class that some image has."""
    scores, tap = _forward(net, layer, images)
    cam = None
    for c in labels.any(0).nonzero()[:, 0].tolist():
        (gradient,) = torch.autograd.grad(scores[:, c].sum(), tap, retain_graph=True)
        found = _maps(tap, gradient, images, first)
        cam = found.new_zeros(*scores.shape, *found.shape[1:]) if cam is None else cam
        cam[:, c] = found * labels[:, c, None, None]
    return cam


def best(
    net: nn.Module, layer: nn.Module, images: Tensor, labels: Tensor, *, first: int = 0
) -> Tensor:
    """Run one forward, then a backward for the s-th class of every image, s = 1, 2, ..."""
    scores, tap = _forward(net, layer, images)
    order = labels.argsort(1, descending=True)
    cam = None
    for s in range(int(labels.sum(1).max())):
        chosen = order[:, s : s + 1]
        (gradient,) = torch.autograd.grad(scores.gather(1, chosen).sum(), tap, retain_graph=True)
        found = _maps(tap, gradient, images, first) * labels.gather(1, chosen)[..., None]
        cam = found.new_zeros(*scores.shape, *found.shape[1:]) if cam is None else cam
        cam[torch.arange(len(images)), chosen[:, 0]] += found
    return cam


def _forward(net: nn.Module, layer: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    kept: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    scores = net(images)
    hook.remove()
    return scores, kept[0]


def _maps(tap: Tensor, gradient: Tensor, images: Tensor, first: int) -> Tensor:
    tap = tap.detach()
    if tap.ndim == 3:  # tokens: square grid behind the first ones
        side = int((tap.shape[1] - first) ** 0.5)
        tap, gradient = (x[:, first:].mT.reshape(len(x), -1, side, side) for x in (tap, gradient))
    return (gradient.mean((2, 3), keepdim=True) * tap).sum(1).relu()
