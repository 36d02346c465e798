"""Fuse segmentation logits over scales and mirror images (test-time augmentation)."""

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import check_choice
from wsss_blocks.decoders._views import (
    check_reductions,
    largest_grid,
    merge,
    resize_maps,
    run_scales,
    split_mirrored,
)

__all__ = ["multi_scale_logits"]

Reduce = Literal["max", "mean", "sum"]


def multi_scale_logits(
    seg_fn: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    scales: Sequence[float],
    flip: bool = True,
    flip_reduce: Reduce = "mean",
    scale_reduce: Reduce = "mean",
    activation: Literal["softmax"] | None = None,
    size: tuple[int, int] | None = None,
) -> Tensor:
    r"""Fuse the logits of scaled and mirrored copies of the images.

    .. math::

        Z = \mathrm{R}_s \; \mathrm{up} \big( \mathrm{R}_f ( a(Z_s), \mathrm{mirror}(a(Z_s')) )
        \big)

    with :math:`Z_s` the logits of the images at scale :math:`s` and :math:`Z_s'` those of their
    mirror images (one forward of :math:`2B`), :math:`a` the activation, :math:`\mathrm{R}_f` the
    reduction over both on the scale's own grid, :math:`\mathrm{up}` bilinear resizing to ``size``
    and :math:`\mathrm{R}_s` the reduction over scales.

    Published protocols:

    ============  ==================  ===============  ================  ==============
    system        ``scales``          ``flip_reduce``  ``scale_reduce``  ``activation``
    ============  ==================  ===============  ================  ==============
    ToCo, VOC     1, 1.25, 1.5        ``"sum"``        ``"max"``         None
    ToCo, COCO    1, 1.25, 1.5        ``"max"``        ``"max"``         None
    DHR           1, 0.5, 1.5, 2      ``"mean"``       ``"mean"``        ``"softmax"``
    ============  ==================  ===============  ================  ==============

    Reference:
        "Token Contrast for Weakly-Supervised Semantic Segmentation" (ToCo), released code;
        https://arxiv.org/abs/2303.01267

    Note:
        DHR's released code resizes with aligned corners; this does not.

    Args:
        seg_fn: Maps images ``(V, 3, H', W')`` to logits ``(V, C, h, w)``.
        images: ``(B, 3, H, W)``.
        scales: Image scales; sides are rounded half up.
        flip: Also look at the mirrored images.
        flip_reduce: ``"mean"``, ``"sum"`` or ``"max"`` over an image and its mirror image.
        scale_reduce: ``"mean"``, ``"max"`` or ``"sum"`` over scales.
        activation: ``"softmax"`` turns the logits of each view into probabilities first.
        size: ``(H, W)`` of the result, or None for the logit grid of the largest scale.

    Returns:
        ``(B, C, *size)`` in the dtype of the logits.

    Raises:
        ValueError: If a shape, scale, reduction, activation or ``size`` does not fit, or ``seg_fn``
            returns something other than finite maps of all views, or ``images`` are not finite.
        TypeError: If ``images`` is not floating-point or ``seg_fn`` does not return one tensor.

    Example:
        >>> import torch
        >>> net = torch.nn.Conv2d(3, 21, 16, stride=16)
        >>> images = torch.rand(2, 3, 64, 96)
        >>> multi_scale_logits(net, images, scales=(1.0, 1.5), size=(64, 96)).shape
        torch.Size([2, 21, 64, 96])
    """
    check_reductions(flip_reduce, scale_reduce, size)
    if activation is not None:
        check_choice("activation", activation, ("softmax",))
    logits = []
    for out in run_scales("seg_fn", seg_fn, images, scales=scales, flip=flip):
        if not isinstance(out, Tensor):
            raise TypeError(f"seg_fn must return a tensor, got {type(out).__name__}.")
        x = at_least_float32(out)
        if activation == "softmax":
            x = x.softmax(1)
        logits.append((merge(split_mirrored(x, flip), flip_reduce), out.dtype))
    grid = size or largest_grid([x for x, _ in logits], scales)
    return merge([resize_maps(x, grid) for x, _ in logits], scale_reduce).to(logits[0][1])
