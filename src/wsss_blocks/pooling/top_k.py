"""Mean of the largest share of each map (positive part of WILDCAT pooling)."""

from torch import Tensor, nn

from wsss_blocks._validate import check_number

from ._maps import check_maps, flatten, mean_of_largest

__all__ = ["GlobalTopKPool", "global_top_k_pool"]

# Shares are counted in millionths, so that the number of positions is integer arithmetic: the
# same in Python, in a compiled graph and on any device.
_PARTS = 1_000_000


def global_top_k_pool(
    maps: Tensor, *, fraction: float = 0.1, valid: Tensor | None = None
) -> Tensor:
    r"""Average the largest ``fraction`` of the valid positions of each map.

    .. math::

        z_k = \frac{1}{m} \sum_{r=1}^{m} M_k(p_r), \qquad
        m = \max(1, \lfloor \rho \, |\Omega| + 1/2 \rfloor)

    with the positions in descending order of :math:`M_k` and :math:`\rho` the fraction. The
    number :math:`m` is rounded to the nearest integer, halves up, and is at least 1: ten per cent
    of 144 positions are 14. It follows the valid positions of each sample.

    Reference:
        Durand et al., "WILDCAT", CVPR 2017, section 3.3 (its :math:`k^+` regions, without the
        :math:`k^-` ones): https://doi.org/10.1109/CVPR.2017.631

    Args:
        maps: ``(B, K, h, w)`` scores.
        fraction: share of the valid positions, in (0, 1], rounded to millionths.
        valid: ``(B, h, w)`` bool, the positions that count; all of them if None.

    Returns:
        ``(B, K)`` in the dtype of ``maps``; 0 without gradient where no position is valid.

    Raises:
        ValueError: a shape or device does not fit, ``maps`` are not finite where ``valid``, or
            ``fraction`` is outside (0, 1].
        TypeError: ``maps`` is not floating-point or ``valid`` is not bool.

    Example:
        >>> import torch
        >>> maps = torch.arange(12.0).view(1, 1, 3, 4)
        >>> global_top_k_pool(maps, fraction=0.25)
        tensor([[10.]])
        >>> global_top_k_pool(maps, fraction=0.25, valid=maps[:, 0] < 4)
        tensor([[3.]])
    """
    check_maps("maps", maps, valid)
    _check_fraction(fraction)
    values, number = flatten(maps, valid, fill=float("-inf"))
    parts = round(fraction * _PARTS)
    most = max(1, (2 * parts * values.shape[2] + _PARTS) // (2 * _PARTS))
    taken = (2 * parts * number + _PARTS).div(2 * _PARTS, rounding_mode="floor").clamp_min(1)
    return mean_of_largest(values, taken.minimum(number), most=most)


class GlobalTopKPool(nn.Module):
    """Apply :func:`global_top_k_pool`.

    Args:
        fraction: share of the valid positions, in (0, 1].

    Shape:
        - maps: ``(B, K, h, w)``; valid: ``(B, h, w)`` bool
        - output: ``(B, K)``

    Raises:
        ValueError: ``fraction`` is outside (0, 1].

    Example:
        >>> import torch
        >>> GlobalTopKPool(fraction=0.1)(torch.ones(2, 20, 14, 14)).shape
        torch.Size([2, 20])
    """

    def __init__(self, *, fraction: float = 0.1) -> None:
        super().__init__()
        _check_fraction(fraction)
        self.fraction = fraction

    def forward(self, maps: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """Return the ``(B, K)`` means of the largest positions."""
        return global_top_k_pool(maps, fraction=self.fraction, valid=valid)

    def extra_repr(self) -> str:
        """Show the settings in the repr."""
        return f"fraction={self.fraction}"


def _check_fraction(fraction: float) -> None:
    check_number("fraction", fraction)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}.")
