"""Class-level average pooling: one centroid per class and image (DHR, arXiv 2404.00380)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsss_blocks._validate import (
    check_finite,
    check_int,
    check_integer,
    check_mask_values,
    check_non_negative,
    check_same_device,
    check_shape,
    check_tensor,
)

from ._class_fractions import Assign, class_fractions
from ._maps import check_maps
from .class_weights import check_settings

__all__ = ["ClassAveragePool", "ClassCentroids", "class_average_pool", "weighted_means"]

_SLAB = 2**20  # numbers of an image at a time


class ClassCentroids(NamedTuple):
    """Centroids ``(B, C, D)`` and weights ``(B, C)``: the area of each class in grid cells."""

    centroids: Tensor
    weights: Tensor


def class_average_pool(
    features: Tensor,
    mask: Tensor,
    *,
    num_classes: int,
    assign: Assign = "area",
    valid: Tensor | None = None,
    ignore_index: int = 255,
) -> ClassCentroids:
    r"""Average the features of each class of a mask.

    .. math::

        V_c = \frac{\sum_p W_c(p) \, F(p)}{\sum_p W_c(p)}

    with :math:`W_c(p)` from :func:`~wsss_blocks.pooling.patch_class_weights`, or given instead of
    the mask, which saves work when several feature maps share a grid. One matrix product per image:
    time O(B C D h w); peak memory three tensors ``(B, C, D)``, with ``valid`` also a copy of the
    features: 3 MiB for 16 images with C = 21, D = 768 on a 28 x 28 grid. A mask costs what its
    weights do, beside that.

    Reference:
        Jo et al., "DHR", ECCV 2024, eq. 2: https://arxiv.org/abs/2404.00380. The formula is
        inferred from the supplement and the released code, where W is 1 at the majority class of
        a patch and 0 elsewhere.

    Note:
        The default ``assign="area"`` reduces to eq. 2 where no patch holds two classes and keeps
        the classes that are smaller than half a patch, which eq. 2 drops (inferred).

    Args:
        features: ``(B, D, h, w)``.
        mask: ``(B, H, W)`` integer class ids, or floating-point weights ``(B, C, h, w)`` >= 0.
        num_classes: number of classes C, counting background.
        assign: how an integer mask becomes weights: ``"area"``, ``"majority"`` or ``"nearest"``.
        valid: ``(B, h, w)`` bool, cells that count; all of them if None.
        ignore_index: id of pixels without a class.

    Returns:
        Centroids ``(B, C, D)`` in the dtype of ``features`` and weights ``(B, C)``, the sum of the
        :math:`W_c`, in at least float32. An absent class has a zero centroid without gradient
        and weight 0.

    Raises:
        ValueError: a shape, device, id, weight, ``num_classes`` or ``assign`` does not fit, or
            ``features`` are not finite where ``valid``.
        TypeError: ``features`` is not floating-point, ``mask`` is bool, or ``valid`` is not bool.

    Example:
        >>> import torch
        >>> features = torch.tensor([[[[1.0, 2.0, 6.0]]]])
        >>> pooled = class_average_pool(features, torch.tensor([[[0, 1, 1]]]), num_classes=3)
        >>> pooled.centroids.flatten(), pooled.weights
        (tensor([1., 4., 0.]), tensor([[1., 2., 0.]]))
    """
    check_maps("features", features, valid, axes="B D h w")
    check_settings(num_classes, assign)
    check_int("ignore_index", ignore_index)
    check_tensor("mask", mask)
    check_same_device("mask", mask, "features", features)
    batch, _, h, w = features.shape
    dtype = torch.promote_types(features.dtype, torch.float32)
    if mask.is_floating_point():
        check_shape("mask", mask, "B C h w", B=batch, C=num_classes, h=h, w=w)
        check_finite("mask", mask)
        check_non_negative("mask", mask)
        weights = mask.to(dtype)
    else:
        check_shape("mask", mask, "B H W", B=batch)
        check_integer("mask", mask)
        check_mask_values("mask", mask, num_classes=num_classes, ignore_index=ignore_index)
        weights = class_fractions(mask, (h, w), num_classes, assign, ignore_index, dtype)
    if valid is not None:
        inside = valid.unsqueeze(1)
        weights, features = weights * inside, features.where(inside, 0)
    found = weighted_means(features, weights)
    return ClassCentroids(found.centroids.to(features.dtype), found.weights)


def weighted_means(features: Tensor, weights: Tensor) -> ClassCentroids:
    """Average ``(B, D, h, w)`` by weights ``(B, C, h, w)``, all checked, in at least float32."""
    weights = weights.to(torch.promote_types(features.dtype, torch.float32))
    total = weights.sum((2, 3))
    present = (total > 0).unsqueeze(2)
    with torch.autocast(features.device.type, enabled=False):
        summed = _sums(weights.flatten(2), features.flatten(2))
    centroids = (summed / total.unsqueeze(2).where(present, 1)).where(present, 0)
    return ClassCentroids(centroids, total)


def _sums(weights: Tensor, cells: Tensor) -> Tensor:
    """Multiply ``(B, C, N)`` by the transposes of ``(B, D, N)``."""
    if cells.device.type != "cpu" or torch.compiler.is_compiling():
        return weights @ cells.to(weights.dtype).mT
    # Where channels are many and grids large, a CPU takes half as long again for all at once.
    slabs = torch.split(cells, max(1, _SLAB // cells.shape[2]), 1)
    return torch.cat([weights @ slab.to(weights.dtype).mT for slab in slabs], 2)


class ClassAveragePool(nn.Module):
    """Apply :func:`class_average_pool`.

    Args:
        num_classes: number of classes C, counting background.
        assign: how an integer mask becomes weights: ``"area"``, ``"majority"`` or ``"nearest"``.
        ignore_index: id of pixels without a class.

    Shape:
        - features: ``(B, D, h, w)``; mask: ``(B, H, W)`` integers or ``(B, C, h, w)`` weights;
          valid: ``(B, h, w)`` bool
        - output: ``ClassCentroids`` of ``(B, C, D)`` and ``(B, C)``

    Raises:
        ValueError: ``num_classes`` or ``assign`` does not fit.

    Example:
        >>> import torch
        >>> mask = torch.zeros(2, 64, 64, dtype=torch.int64)
        >>> ClassAveragePool(num_classes=21)(torch.rand(2, 90, 8, 8), mask).centroids.shape
        torch.Size([2, 21, 90])
    """

    def __init__(
        self, *, num_classes: int, assign: Assign = "area", ignore_index: int = 255
    ) -> None:
        super().__init__()
        check_settings(num_classes, assign)
        self.num_classes, self.assign, self.ignore_index = num_classes, assign, ignore_index

    def forward(
        self, features: Tensor, mask: Tensor, *, valid: Tensor | None = None
    ) -> ClassCentroids:
        """Return the centroids and the weights of the classes."""
        return class_average_pool(
            features,
            mask,
            num_classes=self.num_classes,
            assign=self.assign,
            valid=valid,
            ignore_index=self.ignore_index,
        )

    def extra_repr(self) -> str:
        """Show the settings in the repr."""
        return f"num_classes={self.num_classes}, assign={self.assign!r}"
