"""Class logits of class tokens without a classifier (MCTformer, arXiv 2203.02891)."""

from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import check_finite, check_floating, check_shape

__all__ = ["class_token_logits"]


def class_token_logits(tokens: Tensor, *, background: bool = False) -> Tensor:
    r"""Average the channels of each class token to the logit of its class.

    .. math:: z_c = \frac{1}{D} \sum_d T_{cd}

    No weight is shared between classes, so that each token has to say itself whether its class is
    there.

    Reference:
        Xu et al., "Multi-class Token Transformer for Weakly Supervised Semantic Segmentation"
        (MCTformer), CVPR 2022: https://arxiv.org/abs/2203.02891. CTI (CVPR 2024) leaves out its
        background token, which has no image label.

    Note:
        MCTformer and CTI take the tokens of the last block without its final norm. A layer norm
        without affine weights has mean zero: there each logit would vanish.

    Args:
        tokens: ``(B, n, D)``, one token per class.
        background: token 0 is a background token, which gets no logit.

    Returns:
        ``(B, K)`` in the dtype of ``tokens``; K is n, with ``background`` n - 1.

    Raises:
        ValueError: the shape does not fit, ``background`` leaves no class, or ``tokens`` are not
            finite.
        TypeError: ``tokens`` is not floating-point.

    Example:
        >>> import torch
        >>> tokens = torch.tensor([[[9.0, 9.0], [1.0, 3.0], [-1.0, 0.0]]])
        >>> class_token_logits(tokens, background=True)
        tensor([[ 2.0000, -0.5000]])
    """
    check_shape("tokens", tokens, "B n D")
    check_floating("tokens", tokens)
    if background and tokens.shape[1] < 2:
        raise ValueError(
            f"tokens must have n >= 2 with a background token, got n={tokens.shape[1]}."
        )
    check_finite("tokens", tokens)
    return at_least_float32(tokens[:, int(background) :]).mean(2).to(tokens.dtype)
