"""Dilated convolutions side by side, summed: the classifier of DeepLabV2 (Chen et al., 2016)."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_int,
    check_like_weight,
    check_sequence,
    check_shape,
)

__all__ = ["DeepLabV2Head"]


class DeepLabV2Head(nn.Module):
    r"""Classify each position from several fields of view at once (ASPP-L).

    .. math::

        Z = \sum_{r \in R} \bigl(W_r *_r x + b_r\bigr)

    with one :math:`3 \times 3` convolution of dilation :math:`r` for each rate. There is no hidden
    layer, normalisation or activation: the logits are linear in the features.

    Reference:
        "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and
        Fully Connected CRFs", on a ResNet-101, section 4.1.2 (rates of ASPP-L);
        https://arxiv.org/abs/1606.00915

    Note:
        The paper's ASPP on VGG-16 has two :math:`1 \times 1` layers in each branch; that on a
        ResNet, as here and as most weakly supervised systems use it, classifies at once. The
        initial weights (deviation 0.01, biases 0) are those of public re-implementations.

    Args:
        dim: Channels of ``features``.
        num_classes: Channels of the logits, background included.
        rates: Dilations, one convolution for each; (2, 4, 8, 12) is the paper's ASPP-S.
        device: Where the parameters are made.
        dtype: Dtype of the parameters.

    Shape:
        - Input: ``(B, dim, h, w)``
        - Output: ``(B, num_classes, h, w)``

    Raises:
        ValueError: If a size or rate is not positive, there is no rate, the shape or device does
            not fit, or an input is not finite.
        TypeError: If ``rates`` is no sequence of integers, or an input is not floating-point or,
            outside autocast, not of the dtype of the weights.

    Example:
        >>> import torch
        >>> DeepLabV2Head(64, 21)(torch.randn(2, 64, 41, 41)).shape
        torch.Size([2, 21, 41, 41])
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        rates: Sequence[int] = (6, 12, 18, 24),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_int("dim", dim, least=1)
        check_int("num_classes", num_classes, least=1)
        check_sequence("rates", rates)
        if not len(rates):
            raise ValueError("rates must hold at least one dilation, got none.")
        for rate in rates:
            check_int("rates", rate, least=1)
        self.dim, self.num_classes, self.rates = dim, num_classes, tuple(rates)
        made = {"device": device, "dtype": dtype}
        self.branches = nn.ModuleList(
            nn.Conv2d(dim, num_classes, 3, padding=rate, dilation=rate, **made)  # type: ignore[arg-type]
            for rate in rates
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw small weights, so that a fresh head is nearly undecided."""
        for branch in self.branches:
            nn.init.normal_(cast(Tensor, branch.weight), std=0.01)
            nn.init.zeros_(cast(Tensor, branch.bias))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, num_classes, h, w)``."""
        check_shape("features", features, "B D h w", D=self.dim)
        check_floating("features", features)
        check_like_weight("features", features, cast(Tensor, self.branches[0].weight))
        check_finite("features", features)
        logits: Tensor = self.branches[0](features)
        for branch in list(self.branches)[1:]:
            logits = logits + branch(features)
        return logits
