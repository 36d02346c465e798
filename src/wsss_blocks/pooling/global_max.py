"""Global max pooling over the valid positions (ToCo, https://arxiv.org/abs/2303.01267)."""

from torch import Tensor, nn

from ._maps import check_maps, flatten

__all__ = ["GlobalMaxPool", "global_max_pool"]


def global_max_pool(maps: Tensor, *, valid: Tensor | None = None) -> Tensor:
    r"""Take the maximum of each map over its valid positions.

    .. math:: z_k = \max_{p \in \Omega} M_k(p)

    Reference:
        Ru et al., "Token Contrast for Weakly-Supervised Semantic Segmentation", CVPR 2023:
        https://arxiv.org/abs/2303.01267 pools its patch tokens this way before the classifier.

    Note:
        Positions that tie for the maximum share the gradient evenly, where
        ``adaptive_max_pool2d`` gives all of it to one of them. An even split does not depend on
        the order of the positions.

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
        >>> global_max_pool(maps)
        tensor([[6.]])
        >>> global_max_pool(maps, valid=maps[:, 0] < 3)
        tensor([[2.]])
    """
    check_maps("maps", maps, valid)
    values, number = flatten(maps, valid, fill=float("-inf"))
    return values.amax(2).masked_fill((number == 0).unsqueeze(1), 0)


class GlobalMaxPool(nn.Module):
    """Apply :func:`global_max_pool`.

    Shape:
        - maps: ``(B, K, h, w)``; valid: ``(B, h, w)`` bool
        - output: ``(B, K)``

    Example:
        >>> import torch
        >>> GlobalMaxPool()(torch.ones(2, 20, 14, 14)).shape
        torch.Size([2, 20])
    """

    def forward(self, maps: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """Return the ``(B, K)`` maxima."""
        return global_max_pool(maps, valid=valid)
