"""One foreground map of the classes of an image (CTI, CVPR 2024)."""

from torch import Tensor

from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_labels,
    check_non_negative,
    check_shape,
)

__all__ = ["foreground_map"]


def foreground_map(cam: Tensor, labels: Tensor) -> Tensor:
    r"""Take the largest score among the classes of the image at each position.

    .. math:: G(p) = \max_c \, y_c M_c(p)

    Reference:
        "Class Tokens Infusion for Weakly Supervised Semantic Segmentation" (CTI), CVPR 2024: the
        foreground side of its background loss, before the maps are propagated by the affinity of
        patches (released code).

    Args:
        cam: ``(B, K, h, w)`` scores >= 0, without background; in CTI fused with attention.
        labels: ``(B, K)`` multi-hot.

    Returns:
        ``(B, 1, h, w)`` in the dtype of ``cam``, not normalised; 0 for an image without any class.

    Raises:
        ValueError: If a shape, device or label does not fit, or a score is negative or not finite.
        TypeError: If ``cam`` is not floating-point.

    Example:
        >>> import torch
        >>> cam = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]], [[9.0, 9.0]]]])
        >>> foreground_map(cam, torch.tensor([[1, 1, 0]]))
        tensor([[[[1., 2.]]]])
    """
    check_shape("cam", cam, "B K h w")
    check_floating("cam", cam)
    check_labels(labels, batch=cam.shape[0], num_classes=cam.shape[1], device=cam.device)
    check_finite("cam", cam)
    check_non_negative("cam", cam)
    return (cam * labels.to(cam.dtype)[:, :, None, None]).amax(1, keepdim=True)
