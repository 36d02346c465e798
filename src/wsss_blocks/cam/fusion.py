"""Fuse class-to-patch attention with a class map (MCTformer, arXiv 2203.02891; CTI, CVPR 2024)."""

from typing import Literal

import torch
from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_choice,
    check_finite,
    check_floating,
    check_non_negative,
    check_same_device,
    check_shape,
)

__all__ = ["fuse_cams"]

Mode = Literal["product", "sqrt", "attention", "cam"]


def fuse_cams(attention: Tensor, cam: Tensor, *, mode: Mode = "product") -> Tensor:
    r"""Combine the attention of class tokens to patches with the maps of a patch classifier.

    With attention :math:`A` and :math:`M = \mathrm{ReLU}(F)` for class scores :math:`F`,

    .. math::

        \text{product: } A \odot M \qquad \text{sqrt: } \sqrt{A \odot M} \qquad
        \text{attention: } A \qquad \text{cam: } M

    Reference:
        Xu et al., "Multi-class Token Transformer for Weakly Supervised Semantic Segmentation"
        (MCTformer), CVPR 2022, https://arxiv.org/abs/2203.02891: V1 is "attention", V2 "product"
        of the sum over the last three layers. MCTformer+, https://arxiv.org/abs/2308.03005, is
        "sqrt". "Class Tokens Infusion for Weakly Supervised Semantic Segmentation" (CTI), CVPR
        2024, released code, is "product" of the sum over all layers. Each takes the mean over
        heads.

    Note:
        MCTformer-V2 takes maps without gradient, CTI on COCO too in its background loss: give
        ``cam.detach()``. Where the root is 0 its gradient is taken to be 0.

    Args:
        attention: ``(B, K, h, w)`` >= 0, from each class token to each patch, mean over heads, sum
            or mean over layers.
        cam: ``(B, K, h, w)`` raw scores of the same classes; both may have a background channel.
        mode: ``"product"``, ``"sqrt"``, ``"attention"`` or ``"cam"``.

    Returns:
        ``(B, K, h, w)`` >= 0 in the dtype of ``cam``, not normalised.

    Raises:
        ValueError: If a shape, device or ``mode`` does not fit, ``attention`` is negative or an
            input not finite.
        TypeError: If an input is not floating-point.

    Example:
        >>> import torch
        >>> attention, cam = torch.tensor([[[[0.5, 0.1]]]]), torch.tensor([[[[8.0, -3.0]]]])
        >>> fuse_cams(attention, cam), fuse_cams(attention, cam, mode="sqrt")
        (tensor([[[[4., 0.]]]]), tensor([[[[2., 0.]]]]))
    """
    check_choice("mode", mode, ("product", "sqrt", "attention", "cam"))
    check_shape("cam", cam, "B K h w")
    batch, kinds, h, w = cam.shape
    check_shape("attention", attention, "B K h w", B=batch, K=kinds, h=h, w=w)
    check_same_device("attention", attention, "cam", cam)
    for name, maps in (("attention", attention), ("cam", cam)):
        check_floating(name, maps)
        check_finite(name, maps)
    check_non_negative("attention", attention)
    if mode == "attention":
        return attention.to(cam.dtype)
    if mode == "cam":
        return cam.relu()
    fused = at_least_float32(attention) * at_least_float32(cam).relu()
    if mode == "sqrt":
        positive = fused > 0  # the root has an infinite slope at 0
        fused = torch.where(positive, fused.where(positive, 1).sqrt(), 0)
    return fused.to(cam.dtype)
