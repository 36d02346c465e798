"""Global weighted rank pooling (SEC, https://arxiv.org/abs/1603.06098; MCTformer+)."""

import torch
from torch import Tensor, nn

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import check_fraction

from ._maps import check_maps, flatten

__all__ = ["GlobalWeightedRankPool", "global_weighted_rank_pool"]


def global_weighted_rank_pool(
    maps: Tensor, *, decay: float = 0.996, valid: Tensor | None = None
) -> Tensor:
    r"""Average each map with weights that decay with the rank of the score.

    With the valid scores of map :math:`k` in descending order,

    .. math:: z_k = \frac{\sum_{r=0}^{n-1} d^r \, M_k(p_r)}{\sum_{r=0}^{n-1} d^r}

    so that ``decay=0`` is max pooling and ``decay=1`` average pooling.

    Reference:
        Kolesnikov and Lampert, "Seed, Expand and Constrain", ECCV 2016 (the pooling of its
        expansion loss): https://arxiv.org/abs/1603.06098. The default decay is that of
        MCTformer+: https://arxiv.org/abs/2308.03005.

    Note:
        At the default decay a weight halves every 173 ranks, however many positions the grid
        has: a decay found on one grid does not carry over to another.

    Args:
        maps: ``(B, K, h, w)`` scores.
        decay: ratio of the weights of neighbouring ranks, in [0, 1].
        valid: ``(B, h, w)`` bool, the positions that count; all of them if None.

    Returns:
        ``(B, K)`` in the dtype of ``maps``; 0 without gradient where no position is valid.

    Raises:
        ValueError: a shape or device does not fit, ``maps`` are not finite where ``valid``, or
            ``decay`` is outside [0, 1].
        TypeError: ``maps`` is not floating-point or ``valid`` is not bool.

    Example:
        >>> import torch
        >>> maps = torch.tensor([[[[0.0, 4.0], [2.0, 1.0]]]])
        >>> global_weighted_rank_pool(maps, decay=0.5)
        tensor([[2.8000]])
        >>> global_weighted_rank_pool(maps, decay=0.0)
        tensor([[4.]])
    """
    check_maps("maps", maps, valid)
    _check_decay(decay)
    values, number = flatten(maps, valid, fill=float("-inf"))
    values = at_least_float32(values.sort(dim=2, descending=True).values)
    ranks = torch.arange(values.shape[2], device=maps.device)
    dropped = ranks >= number.unsqueeze(1)
    weights = (decay ** ranks.to(values.dtype)).masked_fill(dropped, 0)
    total = (values.masked_fill(dropped.unsqueeze(1), 0) * weights.unsqueeze(1)).sum(2)
    # The first rank weighs 1, so the clamp only touches samples without a valid position.
    return (total / weights.sum(1, keepdim=True).clamp_min(1)).to(maps.dtype)


class GlobalWeightedRankPool(nn.Module):
    """Apply :func:`global_weighted_rank_pool`.

    Args:
        decay: ratio of the weights of neighbouring ranks, in [0, 1].

    Shape:
        - maps: ``(B, K, h, w)``; valid: ``(B, h, w)`` bool
        - output: ``(B, K)``

    Raises:
        ValueError: ``decay`` is outside [0, 1].

    Example:
        >>> import torch
        >>> GlobalWeightedRankPool(decay=0.996)(torch.ones(2, 20, 14, 14)).shape
        torch.Size([2, 20])
    """

    def __init__(self, *, decay: float = 0.996) -> None:
        super().__init__()
        _check_decay(decay)
        self.decay = decay

    def forward(self, maps: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """Return the ``(B, K)`` rank-weighted averages."""
        return global_weighted_rank_pool(maps, decay=self.decay, valid=valid)

    def extra_repr(self) -> str:
        """Show the settings in the repr."""
        return f"decay={self.decay}"


def _check_decay(decay: float) -> None:
    check_fraction("decay", decay)
