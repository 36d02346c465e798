"""CAM by a linear classifier's weights, all classes at once (Zhou et al., CVPR 2016)."""

import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_same_device,
    check_shape,
    check_tensor,
)

__all__ = ["class_weight_cam"]


def class_weight_cam(features: Tensor, weight: Tensor) -> Tensor:
    r"""Score each position for each class with the classifier's weights.

    .. math::

        A^c(i) = w_c \cdot z_i

    These are raw scores: no ReLU, no normalisation, no label masking. One matrix product serves
    all classes.

    Reference:
        "Learning Deep Features for Discriminative Localization", Eq. (2);
        https://arxiv.org/abs/1512.04150

    Args:
        features: ``(B, D, h, w)`` feature map that the classifier reads.
        weight: ``(K, D)`` or ``(K, D, 1, 1)`` classifier weights, without background.

    Returns:
        ``(B, K, h, w)`` raw scores in the dtype of ``features`` (of autocast where that is on).

    Raises:
        ValueError: If a shape or device does not fit or an input is not finite.
        TypeError: If an input is not floating-point.

    Example:
        >>> import torch
        >>> features, head = torch.randn(2, 768, 28, 28), torch.nn.Conv2d(768, 20, 1, bias=False)
        >>> class_weight_cam(features, head.weight).shape
        torch.Size([2, 20, 28, 28])
    """
    check_shape("features", features, "B D h w")
    check_tensor("weight", weight)
    axes = "K D 1 1" if weight.ndim == 4 else "K D"
    check_shape("weight", weight, axes, D=features.shape[1])
    check_floating("features", features)
    check_floating("weight", weight)
    check_same_device("weight", weight, "features", features)
    check_finite("features", features)
    kernel = weight.to(features.dtype).reshape(weight.shape[0], weight.shape[1], 1, 1)
    check_finite("weight", kernel)
    return F.conv2d(features, kernel)
