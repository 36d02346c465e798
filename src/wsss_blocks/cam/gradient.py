"""Gradient CAMs of all present classes in one batched backward (Grad-CAM, LayerCAM, HiResCAM)."""

from contextlib import suppress
from typing import Literal

import torch
from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_choice,
    check_finite,
    check_floating,
    check_int,
    check_labels,
    check_same_device,
    check_shape,
    check_size,
    check_tensor,
    values_are_checked,
)

__all__ = ["gradient_cam"]


def gradient_cam(
    scores: Tensor,
    tap: Tensor,
    labels: Tensor,
    *,
    mode: Literal["gradcam", "layercam", "hirescam"] = "gradcam",
    grid: tuple[int, int] | None = None,
    max_classes: int | None = None,
    relu: bool = True,
    create_graph: bool = False,
) -> Tensor:
    r"""Weight a layer's channels by the gradients of each present class's score.

    With activations :math:`A_d(p)` at the N positions p of the tapped layer and gradients
    :math:`g^c_d(p) = \partial y^c / \partial A_d(p)`,

    .. math::

        L^c(p) = \operatorname{ReLU} \sum_d A_d(p) \cdot
        \begin{cases}
            \frac{1}{N} \sum_q g^c_d(q) & \text{gradcam} \\
            \operatorname{ReLU}\, g^c_d(p) & \text{layercam} \\
            g^c_d(p) & \text{hirescam}
        \end{cases}

    Slot s of an image is its s-th present class: one backward of S rows, as many as the fullest
    image has classes, serves the whole batch. It runs from the scores to the tap only, takes the
    memory of 2 S gradients of the tap and keeps the graph, so that a loss can still be taken from
    ``scores``. Where a backward cannot be batched (it branches on values), slot follows slot.

    Reference:
        "Grad-CAM", Eq. (1, 2), https://arxiv.org/abs/1610.02391; "LayerCAM", IEEE TIP 2021
        (inferred: the equation is that of the common implementations); "HiResCAM",
        https://arxiv.org/abs/2011.08891

    Note:
        - Behind a linear head on averaged features, Grad-CAM and HiResCAM are
          :func:`class_weight_cam` divided by N, which needs no backward. So is Grad-CAM behind a
          head on the maximum over positions.
        - Patch tokens after the last block of a transformer get no gradient from scores of the
          class token: their CAM is 0. Tap the block before (``layers=(-2,)``), or the first norm
          of the last block, as CLIP-ES does, with :func:`tap_output`.
        - Batch norm must be in eval mode: batch statistics mix the images' gradients.
        - From tap to scores the model must run eagerly: a compiled part holds no tap and lets
          its backward run only once.
        - Fused attention has no second derivative: with ``create_graph`` compute the scores under
          ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.

    Args:
        scores: ``(B, K)`` class scores, on the autograd graph; those of an image depend on no
            other image.
        tap: ``(B, D, h, w)`` map or ``(B, P + h * w, D)`` tokens with P class and register tokens
            first, the very tensor that the scores were computed from: ``Features.taps``, or what
            :func:`tap_output` caught.
        labels: ``(B, K)`` multi-hot; absent classes come back as 0.
        mode: ``"gradcam"``, ``"layercam"`` or ``"hirescam"``.
        grid: ``(h, w)`` of tokens (``features.feature_map.shape[-2:]``); not needed for a map.
        max_classes: most classes that an image may have, the rows of the backward. None counts
            them, for which a GPU is waited for once; with a number it is not, and on a GPU the
            classes beyond it are 0 (elsewhere an error).
        relu: cut negative values off the maps.
        create_graph: make the result differentiable; else it is detached.

    Returns:
        ``(B, K, h, w)`` maps in the dtype of ``tap``, not normalised.

    Raises:
        ValueError: a shape, device or value does not fit, ``scores`` have no graph, ``tap`` is not
            on it, or an image has more than ``max_classes`` classes.
        TypeError: ``scores`` or ``tap`` is not floating-point.

    Example:
        >>> import torch
        >>> features, head = torch.rand(2, 8, 5, 6, requires_grad=True), torch.nn.Linear(8, 20)
        >>> scores = head(features.relu().mean((2, 3)))
        >>> labels = torch.zeros(2, 20)
        >>> labels[0, [3, 7]] = 1
        >>> gradient_cam(scores, features, labels, mode="layercam").shape
        torch.Size([2, 20, 5, 6])
    """
    check_choice("mode", mode, ("gradcam", "layercam", "hirescam"))
    grid = _checked_grid(scores, tap, labels, grid)
    if max_classes is not None:
        check_int("max_classes", max_classes, least=1)
    if not scores.requires_grad:
        raise ValueError("scores must require a gradient, got a tensor without a graph.")

    index, taken = _slots(labels > 0, max_classes)
    rows = scores.new_zeros(len(index), *scores.shape)
    rows = rows.scatter(2, index[..., None], taken[..., None].to(scores.dtype))
    gradient = _gradients(scores, tap, rows, create_graph=create_graph)
    activation = tap if create_graph else tap.detach()
    if tap.ndim == 3:
        gradient, activation = (_as_map(x, grid) for x in (gradient, activation))
    cam = _weigh(at_least_float32(gradient), at_least_float32(activation), mode)
    cam = (cam.relu() if relu else cam).masked_fill(~taken[..., None, None], 0).transpose(0, 1)
    places = index.mT[..., None, None].expand_as(cam)
    return cam.new_zeros(*scores.shape, *grid).scatter(1, places, cam).to(tap.dtype)


def _slots(present: Tensor, max_classes: int | None) -> tuple[Tensor, Tensor]:
    """Return the class in each slot ``(S, B)`` and whether it is present there."""
    batch, classes = present.shape
    seen = batch > 0 and (max_classes is None or values_are_checked(present))
    most = int(present.sum(1).amax()) if seen else 0
    if max_classes is not None and most > max_classes:
        raise ValueError(
            f"labels must have at most max_classes={max_classes} classes in an image, got {most}."
        )
    slots = max(1, min(classes, most if max_classes is None else max_classes))
    order = torch.argsort(present.byte(), dim=1, descending=True, stable=True)[:, :slots]
    return order.mT, present.gather(1, order).mT


def _gradients(scores: Tensor, tap: Tensor, rows: Tensor, *, create_graph: bool) -> Tensor:
    """Return the gradient of each row's scores, ``(S, *tap.shape)``."""

    def gradient(wanted: Tensor, *, batched: bool) -> Tensor:
        keep = {"retain_graph": True, "create_graph": create_graph, "allow_unused": True}
        found: Tensor | None
        (found,) = torch.autograd.grad(scores, tap, wanted, is_grads_batched=batched, **keep)
        if found is None:
            raise ValueError(
                "tap must be what scores were computed from (an entry of Features.taps or what "
                f"tap_output caught), got {tuple(tap.shape)} off the path."
            )
        return found

    if len(rows) > 1:
        with suppress(RuntimeError):  # vmap cannot batch it; any other error comes again below
            return gradient(rows, batched=True)
    return torch.stack([gradient(row, batched=False) for row in rows])


def _as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    patches = tokens[..., tokens.shape[-2] - grid[0] * grid[1] :, :]
    return patches.mT.reshape(*tokens.shape[:-2], tokens.shape[-1], *grid)


def _weigh(gradient: Tensor, activation: Tensor, mode: str) -> Tensor:
    if mode == "gradcam":
        gradient = gradient.mean((-2, -1), keepdim=True)
    elif mode == "layercam":
        gradient = gradient.relu()
    return (gradient * activation).sum(2)  # no matrix product: autocast would round it


def _checked_grid(
    scores: Tensor, tap: Tensor, labels: Tensor, grid: tuple[int, int] | None
) -> tuple[int, int]:
    check_shape("scores", scores, "B K")
    check_floating("scores", scores)
    check_finite("scores", scores)
    check_tensor("tap", tap)
    tokens = tap.ndim == 3
    check_shape("tap", tap, "B N D" if tokens else "B D h w", B=scores.shape[0])
    check_floating("tap", tap)
    check_same_device("tap", tap, "scores", scores)
    check_finite("tap", tap)
    if not tap.requires_grad:
        raise ValueError("tap must require a gradient, got a tensor without a graph.")
    batch, classes = scores.shape
    check_labels(labels, batch=batch, num_classes=classes, device=scores.device)
    check_size("grid", grid, optional=not tokens)
    if not tokens:
        own = (tap.shape[2], tap.shape[3])
        if grid is not None and tuple(grid) != own:
            raise ValueError(f"grid must be that of tap, {own}, got {tuple(grid)}.")
        return own
    assert grid is not None
    if grid[0] * grid[1] > tap.shape[1]:
        raise ValueError(
            f"grid must hold at most the N={tap.shape[1]} tokens of tap, got {tuple(grid)}."
        )
    return (grid[0], grid[1])
