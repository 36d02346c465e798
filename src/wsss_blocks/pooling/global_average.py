"""Global average pooling over the valid positions (CAM, https://arxiv.org/abs/1512.04150)."""

from torch import Tensor, nn

from wsss_blocks._numerics import at_least_float32

from ._maps import check_maps, flatten

__all__ = ["GlobalAveragePool", "global_average_pool"]


def global_average_pool(maps: Tensor, *, valid: Tensor | None = None) -> Tensor:
    r"""Average each map over its valid positions.

    .. math:: z_k = \frac{1}{|\Omega|} \sum_{p \in \Omega} M_k(p)

    Reference:
        Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016,
        section 2: https://arxiv.org/abs/1512.04150

    Args:
        maps: ``(B, K, h, w)`` scores or features.
        valid: ``(B, h, w)`` bool, the positions that count; all of them if None.

    Returns:
        ``(B, K)`` in the dtype of ``maps``; 0 without gradient where no position is valid.

    Raises:
        ValueError: a shape or device does not fit, or ``maps`` are not finite where ``valid``.
        TypeError: ``maps`` is not floating-point or ``valid`` is not bool.

    Example:
        >>> import torch
        >>> maps = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
        >>> global_average_pool(maps)
        tensor([[3.]])
        >>> global_average_pool(maps, valid=maps[:, 0] > 2)
        tensor([[4.5000]])
    """
    check_maps("maps", maps, valid)
    values, number = flatten(maps, valid, fill=0.0)
    total = at_least_float32(values).sum(2)
    return (total / number.clamp_min(1).unsqueeze(1)).to(maps.dtype)


class GlobalAveragePool(nn.Module):
    """Apply :func:`global_average_pool`.

    Shape:
        - maps: ``(B, K, h, w)``; valid: ``(B, h, w)`` bool
        - output: ``(B, K)``

    Example:
        >>> import torch
        >>> GlobalAveragePool()(torch.ones(2, 20, 14, 14)).shape
        torch.Size([2, 20])
    """

    def forward(self, maps: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """Return the ``(B, K)`` averages."""
        return global_average_pool(maps, valid=valid)
