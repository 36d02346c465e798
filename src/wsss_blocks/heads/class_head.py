"""Classifier whose weight is also its class activation map (ToCo, arXiv 2303.01267)."""

import math
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsss_blocks._validate import (
    check_choice,
    check_finite,
    check_floating,
    check_int,
    check_like_weight,
    check_shape,
    check_valid,
)
from wsss_blocks.pooling import global_max_pool

__all__ = ["ClassHead", "ClassHeadOutput"]


class Pool(Protocol):
    """A pooling of maps ``(B, C, h, w)`` to ``(B, C)``: see :mod:`wsss_blocks.pooling`."""

    def __call__(self, maps: Tensor, /, *, valid: Tensor | None) -> Tensor:
        """Return one value per map."""
        ...


class ClassHeadOutput(NamedTuple):
    """Class logits ``(B, K)`` and raw class activation maps ``(B, K, h, w)``.

    A :class:`PatchCAMHead` with background gives maps ``(B, K + 1, h, w)``, background first.
    """

    logits: Tensor
    cam: Tensor


class ClassHead(nn.Module):
    r"""Classify a feature map with a bias-free 1x1 convolution and return its class maps.

    .. math::

        A_k(p) = \langle w_k, F(p) \rangle, \qquad
        z_k = \langle w_k, \operatorname{pool}_p F(p) \rangle
        \;\text{ or }\; \operatorname{pool}_p A_k(p)

    The maps of all classes cost one small convolution in the same forward, where gradient-based
    maps need a backward per class.

    Reference:
        Ru et al., "Token Contrast for Weakly-Supervised Semantic Segmentation", CVPR 2023
        (maximum over the patch tokens, then a bias-free 1x1 convolution):
        https://arxiv.org/abs/2303.01267. The class map is that of Zhou et al., CVPR 2016, eq. 2:
        https://arxiv.org/abs/1512.04150.

    Note:
        With average pooling both values of ``pool_at`` give the same logits. Otherwise they do
        not: only with ``"cam"`` is a logit a pooled value of the map that is returned. Maps are
        not masked by ``valid``, which only restricts the pooling.

    Args:
        dim: number of feature channels D.
        num_classes: number of foreground classes K.
        pool: callable ``(maps, *, valid) -> (B, C)``, a function or module of
            :mod:`wsss_blocks.pooling`; :func:`~wsss_blocks.pooling.global_max_pool` if None.
        pool_at: ``"features"`` pools the D channels and classifies the vector, ``"cam"``
            classifies each position and pools the K maps.
        device: device of the weight.
        dtype: dtype of the weight.

    Shape:
        - features: ``(B, D, h, w)``; valid: ``(B, h, w)`` bool
        - output: ``ClassHeadOutput`` of ``(B, K)`` and ``(B, K, h, w)``

    Raises:
        ValueError: ``dim`` or ``num_classes`` is less than 1, or ``pool_at`` is unknown.

    Example:
        >>> import torch
        >>> head = ClassHead(384, 20)
        >>> logits, cam = head(torch.randn(2, 384, 14, 14))
        >>> logits.shape, cam.shape
        (torch.Size([2, 20]), torch.Size([2, 20, 14, 14]))
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        pool: Pool | None = None,
        pool_at: Literal["features", "cam"] = "features",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_int("dim", dim, least=1)
        check_int("num_classes", num_classes, least=1)
        check_choice("pool_at", pool_at, ("features", "cam"))
        self.dim, self.num_classes, self.pool_at = dim, num_classes, pool_at
        self.pool: Pool = global_max_pool if pool is None else pool
        self.weight = nn.Parameter(torch.empty(num_classes, dim, 1, 1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight as :class:`torch.nn.Conv2d` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, features: Tensor, *, valid: Tensor | None = None) -> ClassHeadOutput:
        """Return logits and class maps, both raw and differentiable.

        Args:
            features: ``(B, D, h, w)``.
            valid: ``(B, h, w)`` bool, the positions that the pooling sees; all of them if None.

        Returns:
            Logits ``(B, K)`` and maps ``(B, K, h, w)``; an image without any valid position has
            zero logits with the poolings of this library.

        Raises:
            ValueError: a shape or device does not fit, ``features`` are not finite, or the pooling
                returns another shape.
            TypeError: ``features`` is not floating-point or, outside autocast, not of the dtype of
                the weight, or ``valid`` is not bool.
        """
        check_features(features, valid, self.weight)
        batch = features.shape[0]
        cam = F.conv2d(features, self.weight)
        maps = cam if self.pool_at == "cam" else features
        pooled = self.pool(maps, valid=valid)
        check_shape("the output of pool", pooled, "B C", B=batch, C=maps.shape[1])
        if self.pool_at == "features":
            pooled = F.linear(pooled, self.weight.flatten(1))
        return ClassHeadOutput(pooled, cam)

    def extra_repr(self) -> str:
        """Show the settings in the repr."""
        pool = "" if isinstance(self.pool, nn.Module) else f", pool={pool_name(self.pool)}"
        return f"{self.dim}, {self.num_classes}{pool}, pool_at={self.pool_at!r}"


def check_features(features: Tensor, valid: Tensor | None, weight: Tensor) -> None:
    """Raise unless the input of a head fits its convolution ``(C, D, k, k)``."""
    check_shape("features", features, "B D h w", D=weight.shape[1])
    check_floating("features", features)
    check_like_weight("features", features, weight)
    check_finite("features", features)
    check_valid(valid, batch=features.shape[0], size=(features.shape[2], features.shape[3]))


def pool_name(pool: Pool) -> str:
    """Name a pooling in a repr."""
    return getattr(pool, "__name__", type(pool).__name__)
