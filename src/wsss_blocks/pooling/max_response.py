"""Maximum response selection of SimSeg's locality-driven alignment (LoDA), CVPR 2023."""

import torch
from torch import Tensor, nn

from wsss_blocks._validate import check_finite, check_floating, check_same_device, check_shape

from ._maps import mean_of_largest

__all__ = ["MaxResponsePool", "max_response_pool"]


def max_response_pool(tokens: Tensor, *, k: int, mask: Tensor | None = None) -> Tensor:
    r"""Average the ``k`` largest responses of each channel over the tokens.

    .. math::

        z_{b,c} = \frac{1}{k_b} \sum_{m=1}^{k_b} \operatorname{top}_m \{P_{b,n,c} : n \in V_b\},
        \qquad k_b = \min(k, |V_b|)

    Each channel selects its own tokens, so a pooled vector mixes several patches. ``k=1`` is max
    pooling over the tokens, ``k`` at least N mean pooling.

    Reference:
        Yi et al., "A Simple Framework for Text-Supervised Semantic Segmentation", CVPR 2023,
        eq. 2-3: https://doi.org/10.1109/CVPR52729.2023.00683. The mean over the selected
        responses stands for eq. 4: the mean of all pairwise products is the product of the means.

    Note:
        The released code lowers ``k`` for the whole batch to its shortest caption and overwrites
        padding in its input. Here ``k`` follows each sample and the input is left alone. The
        result is not normalised; the loss does that.

    Args:
        tokens: ``(B, N, D)`` projected patch or text tokens.
        k: number of responses kept per channel.
        mask: ``(B, N)`` bool, True for a real token; all of them if None.

    Returns:
        ``(B, D)`` in the dtype of ``tokens``; 0 without gradient where no token is real.

    Raises:
        ValueError: a shape or device does not fit, ``tokens`` are not finite where ``mask`` is
            True, or ``k`` is less than 1.
        TypeError: ``tokens`` is not floating-point, ``mask`` not bool, or ``k`` not an int.

    Example:
        >>> import torch
        >>> tokens = torch.tensor([[[1.0, 0.0], [3.0, -2.0], [5.0, 4.0]]])
        >>> max_response_pool(tokens, k=2)
        tensor([[4., 2.]])
        >>> max_response_pool(tokens, k=2, mask=torch.tensor([[True, False, False]]))
        tensor([[1., 0.]])
    """
    check_shape("tokens", tokens, "B N D")
    check_floating("tokens", tokens)
    _check_k(k)
    batch, count, _ = tokens.shape
    values = tokens
    number = torch.full((batch,), count, device=tokens.device)
    if mask is not None:
        check_shape("mask", mask, "B N", B=batch, N=count)
        check_same_device("mask", mask, "tokens", tokens)
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be a bool tensor, got {mask.dtype}.")
        values, number = tokens.masked_fill(~mask.unsqueeze(2), float("-inf")), mask.sum(1)
    check_finite("tokens", tokens, where=None if mask is None else mask.unsqueeze(2))
    most = min(k, count)
    return mean_of_largest(values, number.clamp_max(most), most=most, dim=1)


class MaxResponsePool(nn.Module):
    """Apply :func:`max_response_pool`.

    Args:
        k: number of responses kept per channel.

    Shape:
        - tokens: ``(B, N, D)``; mask: ``(B, N)`` bool
        - output: ``(B, D)``

    Raises:
        ValueError: ``k`` is less than 1.
        TypeError: ``k`` is not an int.

    Example:
        >>> import torch
        >>> MaxResponsePool(k=5)(torch.ones(2, 196, 512)).shape
        torch.Size([2, 512])
    """

    def __init__(self, *, k: int) -> None:
        super().__init__()
        _check_k(k)
        self.k = k

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Return the ``(B, D)`` pooled tokens."""
        return max_response_pool(tokens, k=self.k, mask=mask)

    def extra_repr(self) -> str:
        """Show the settings in the repr."""
        return f"k={self.k}"


def _check_k(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an int, got {type(k).__name__}.")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
