"""Convolution over patch tokens that gives class maps and logits (MCTformer, arXiv 2203.02891)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsss_blocks._validate import check_int, check_shape
from wsss_blocks.pooling import global_average_pool

from .class_head import ClassHeadOutput, Pool, check_features, pool_name

__all__ = ["PatchCAMHead"]


class PatchCAMHead(nn.Module):
    r"""Score patches for each class by a convolution and pool the scores to logits.

    .. math::

        F = W * X + b, \qquad z_c = \operatorname{pool}_p F_c(p)

    With ``background`` the convolution has a channel 0 for a background token, trained by
    :func:`~wsss_blocks.losses.background_consistency_loss`: it has no image label, so no logit.

    Reference:
        Xu et al., "Multi-class Token Transformer for Weakly Supervised Semantic Segmentation"
        (MCTformer-V2: average pooling), CVPR 2022: https://arxiv.org/abs/2203.02891. MCTformer+
        pools by :func:`~wsss_blocks.pooling.global_weighted_rank_pool`:
        https://arxiv.org/abs/2308.03005. The background channel is that of "Class Tokens Infusion
        for Weakly Supervised Semantic Segmentation" (CTI), CVPR 2024, released code.

    Note:
        The maps are raw: the papers' patch CAM is their ReLU, which
        :func:`~wsss_blocks.cam.fuse_cams` takes. The logits pool the scores before it. That the
        convolution has a bias is inferred. ``valid`` restricts the pooling only.

    Args:
        dim: number of feature channels D.
        num_classes: number of foreground classes K.
        background: add a background channel before the classes.
        kernel_size: side of the kernel, odd.
        pool: callable ``(maps, *, valid) -> (B, C)``, a function or module of
            :mod:`wsss_blocks.pooling`; :func:`~wsss_blocks.pooling.global_average_pool` if None.
        device: device of the weights.
        dtype: dtype of the weights.

    Shape:
        - features: ``(B, D, h, w)``; valid: ``(B, h, w)`` bool
        - output: ``ClassHeadOutput`` of ``(B, K)`` and ``(B, K, h, w)``, with ``background``
          ``(B, K + 1, h, w)``

    Raises:
        ValueError: a size is less than 1, or ``kernel_size`` is even.

    Example:
        >>> import torch
        >>> head = PatchCAMHead(384, 20, background=True)
        >>> logits, cam = head(torch.randn(2, 384, 14, 14))
        >>> logits.shape, cam.shape
        (torch.Size([2, 20]), torch.Size([2, 21, 14, 14]))
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        background: bool = False,
        kernel_size: int = 3,
        pool: Pool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_int("dim", dim, least=1)
        check_int("num_classes", num_classes, least=1)
        check_int("kernel_size", kernel_size, least=1)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}.")
        self.dim, self.num_classes, self.background = dim, num_classes, background
        self.kernel_size = kernel_size
        self.pool: Pool = global_average_pool if pool is None else pool
        channels = num_classes + int(background)
        shape = (channels, dim, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias as :class:`torch.nn.Conv2d` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(self.dim * self.kernel_size**2)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, features: Tensor, *, valid: Tensor | None = None) -> ClassHeadOutput:
        """Return logits and class maps, both raw and differentiable.

        Args:
            features: ``(B, D, h, w)`` patch tokens as a map.
            valid: ``(B, h, w)`` bool, the positions that the pooling sees; all of them if None.

        Returns:
            Logits ``(B, K)`` and maps, background first where there is one; an image without any
            valid position has zero logits with the poolings of this library.

        Raises:
            ValueError: a shape or device does not fit, ``features`` are not finite, or the pooling
                returns another shape.
            TypeError: ``features`` is not floating-point or, outside autocast, not of the dtype of
                the weights, or ``valid`` is not bool.
        """
        check_features(features, valid, self.weight)
        maps = F.conv2d(features, self.weight, self.bias, padding=self.kernel_size // 2)
        logits = self.pool(maps[:, int(self.background) :], valid=valid)
        check_shape("the output of pool", logits, "B C", B=len(features), C=self.num_classes)
        return ClassHeadOutput(logits, maps)

    def extra_repr(self) -> str:
        """Show the settings in the repr."""
        pool = "" if isinstance(self.pool, nn.Module) else f", pool={pool_name(self.pool)}"
        return (
            f"{self.dim}, {self.num_classes}, background={self.background}, "
            f"kernel_size={self.kernel_size}{pool}"
        )
