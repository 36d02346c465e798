"""Fuse CAMs over scales and mirror images (ToCo, CVPR 2023)."""

from collections.abc import Callable, Sequence
from typing import Literal, overload

from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import check_labels
from wsss_blocks.decoders._views import (
    check_reductions,
    largest_grid,
    merge,
    resize_maps,
    run_scales,
    split_mirrored,
)

__all__ = ["multi_scale_cam"]

Reduce = Literal["max", "mean", "sum"]


@overload
def multi_scale_cam(
    cam_fn: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    scales: Sequence[float] = ...,
    flip: bool = ...,
    flip_reduce: Reduce = ...,
    relu: bool = ...,
    scale_reduce: Reduce = ...,
    labels: Tensor | None = ...,
    size: tuple[int, int] | None = ...,
) -> Tensor: ...
@overload
def multi_scale_cam(
    cam_fn: Callable[[Tensor], tuple[Tensor, ...]],
    images: Tensor,
    *,
    scales: Sequence[float] = ...,
    flip: bool = ...,
    flip_reduce: Reduce = ...,
    relu: bool = ...,
    scale_reduce: Reduce = ...,
    labels: Tensor | None = ...,
    size: tuple[int, int] | None = ...,
) -> tuple[Tensor, ...]: ...
def multi_scale_cam(
    cam_fn: Callable[[Tensor], Tensor | tuple[Tensor, ...]],
    images: Tensor,
    *,
    scales: Sequence[float] = (1.0, 0.5, 1.5),
    flip: bool = True,
    flip_reduce: Reduce = "max",
    relu: bool = True,
    scale_reduce: Reduce = "sum",
    labels: Tensor | None = None,
    size: tuple[int, int] | None = None,
) -> Tensor | tuple[Tensor, ...]:
    r"""Fuse the CAMs of scaled and mirrored copies of the images.

    .. math::

        A = \sum_s \mathrm{ReLU} \big( \max( \mathrm{up}(A_s),
            \mathrm{mirror}(\mathrm{up}(A_s')) ) \big)

    with :math:`A_s` the CAM of the images at scale :math:`s`, :math:`A_s'` that of their mirror
    images (both in one forward of :math:`2B`), :math:`\mathrm{up}` bilinear resizing to ``size``.
    The result is not normalised: see :func:`~wsss_blocks.cam.normalize_cam`.

    Time is that of ``cam_fn`` on :math:`2 \sum_s s^2` times the pixels, plus O(B K H W) per scale
    for maps of size ``(H, W)``. Peak memory, beside what ``cam_fn`` takes, is about five copies of
    the images at the largest scale or seven to eight of the maps, whichever is more: 120 MiB for
    four images of 448 x 448 with K = 20 on the feature grid, 465 MiB with ``size=(448, 448)``.

    Reference:
        "Token Contrast for Weakly-Supervised Semantic Segmentation" (ToCo), released code;
        https://arxiv.org/abs/2303.01267

    Note:
        The papers resize to the image (``size=(H, W)``); the default stays on the largest feature
        grid, which costs hundreds of times less memory, and leaves resizing to
        :func:`~wsss_blocks.cam.cam_to_label`. Gradients flow if the caller does not stop them:
        training code calls this under ``torch.no_grad()``. Absent classes are zeroed on the
        feature grid, not skipped: skipping them needs shapes that depend on the labels.

    Args:
        cam_fn: Maps images ``(V, 3, H', W')`` to raw CAMs ``(V, K, h, w)``, or to a tuple of them
            (say the final and the auxiliary CAM of one forward), each fused on its own grid.
        images: ``(B, 3, H, W)``.
        scales: Image scales; sides are rounded half up.
        flip: Also look at the mirrored images.
        flip_reduce: ``"max"``, ``"mean"`` or ``"sum"`` over an image and its mirror image.
        relu: Drop negative scores before fusing scales.
        scale_reduce: ``"sum"``, ``"mean"`` or ``"max"`` over scales.
        labels: ``(B, K)`` multi-hot or None. Absent classes come back as 0.
        size: ``(H, W)`` of the result, or None for the feature grid of the largest scale.

    Returns:
        ``(B, K, *size)`` raw scores in the dtype of the CAM, or a tuple if ``cam_fn`` gives one.

    Raises:
        ValueError: If a shape, scale, reduction or ``size`` does not fit, or ``cam_fn`` returns
            something other than finite maps of all views, or ``images`` are not finite.
        TypeError: If ``images`` is not floating-point or ``cam_fn`` does not return tensors.

    Example:
        >>> import torch
        >>> net = torch.nn.Conv2d(3, 20, 16, stride=16)
        >>> cam = multi_scale_cam(net, torch.rand(2, 3, 64, 96), labels=torch.ones(2, 20))
        >>> cam.shape
        torch.Size([2, 20, 6, 9])
    """
    check_reductions(flip_reduce, scale_reduce, size)
    outputs = run_scales("cam_fn", cam_fn, images, scales=scales, flip=flip)
    single = isinstance(outputs[0], Tensor)
    columns = zip(*[(o,) if isinstance(o, Tensor) else o for o in outputs], strict=True)
    fused = []
    for maps in columns:
        grid = size or largest_grid(maps, scales)
        per_scale = []
        for m in maps:
            x = at_least_float32(m)
            if labels is not None:
                check_labels(labels, batch=images.shape[0], num_classes=m.shape[1], device=m.device)
                absent = (labels <= 0).repeat(2 if flip else 1, 1)
                x = x.masked_fill(absent[:, :, None, None], 0)
            x = merge(split_mirrored(resize_maps(x, grid), flip), flip_reduce)
            per_scale.append(x.relu() if relu else x)
        fused.append(merge(per_scale, scale_reduce).to(maps[0].dtype))
    return fused[0] if single else tuple(fused)
