"""Class token infusion: mix class tokens with those of another view or image (CTI, CVPR 2024)."""

import torch
from torch import Tensor

from wsss_blocks._numerics import at_least_float32, l2_normalize
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_fraction,
    check_labels,
    check_same_device,
    check_shape,
    check_tensor,
)

__all__ = ["infuse_class_tokens"]


def infuse_class_tokens(
    tokens: Tensor,
    source: Tensor,
    *,
    labels: Tensor | None = None,
    weight: float = 0.5,
    rescale: bool = False,
) -> Tensor:
    r"""Mix class tokens with given ones, between two blocks of a transformer.

    .. math:: T_c' = (1 - \omega) \, T_c + \omega \, S_c

    Intra-image infusion takes the tokens :math:`S` of another view of the image from the same
    layer, cross-image infusion those of other images of the class
    (:class:`~wsss_blocks.memory.ClassTokenBank`). The later blocks then have to find in the patches
    what the given tokens stand for.

    Reference:
        "Class Tokens Infusion for Weakly Supervised Semantic Segmentation" (CTI), CVPR 2024:
        :math:`\omega = 1/2`, before the fifth of twelve blocks (released code).

    Note:
        For cross-image infusion the released code fills absent classes with their own detached
        tokens: the same values, but half the gradient. ``labels`` leaves these classes alone. It
        also mixes normalised bank tokens with raw ones, so that the statistics of the data choose
        their share; ``rescale`` gives them the norm of the tokens that they meet.

    Args:
        tokens: ``(B, n, D)`` class tokens; a background token comes first.
        source: tokens of the same classes, ``(B, n, D)``, or ``(B, n - 1, D)`` where the first
            token, the background, stays as it is; without the axis B for tokens of all images.
        labels: ``(B, K)`` multi-hot; absent classes stay as they are, and with K = n - 1 a
            background token in ``source`` is always mixed. None: all are mixed.
        weight: the share :math:`\omega` of ``source``.
        rescale: scale each token of ``source`` to the norm of the one that it is mixed with.

    Returns:
        ``(B, n, D)`` in the dtype of ``tokens``, never in place; differentiable in both.

    Raises:
        ValueError: a shape, device or label does not fit, a value is not finite, or ``weight`` is
            outside [0, 1].
        TypeError: ``tokens`` or ``source`` is not floating-point.

    Example:
        >>> import torch
        >>> tokens, source = torch.zeros(1, 3, 2), torch.ones(1, 2, 2)
        >>> infuse_class_tokens(tokens, source, labels=torch.tensor([[0, 1]]))[0, :, 0]
        tensor([0.0000, 0.0000, 0.5000])
    """
    check_shape("tokens", tokens, "B n D")
    check_floating("tokens", tokens)
    check_fraction("weight", weight)
    given = _check_source(source, tokens)
    check_finite("tokens", tokens)
    check_finite("source", source)
    batch, number, _ = tokens.shape
    x, s = at_least_float32(tokens), at_least_float32(source)
    own = x[:, number - given :]
    if rescale:
        s = l2_normalize(s) * own.square().sum(-1, keepdim=True).clamp_min(1e-12).sqrt()
    mixed = (1 - weight) * own + weight * s
    if labels is not None:
        check_tensor("labels", labels)
        kinds = labels.shape[1] if labels.ndim == 2 else 0
        legal = kinds in {given, number - 1} and kinds > 0
        check_labels(
            labels, batch=batch, num_classes=kinds if legal else given, device=tokens.device
        )
        kept = torch.nn.functional.pad(labels > 0, (given - kinds, 0), value=True)
        mixed = mixed.where(kept.unsqueeze(2), own)
    return torch.cat([x[:, : number - given], mixed], 1).to(tokens.dtype)


def _check_source(source: Tensor, tokens: Tensor) -> int:
    """Return the number of tokens in ``source``, or raise."""
    check_tensor("source", source)
    batch, number, dim = tokens.shape
    axes, sizes = ("B n D", {"B": batch}) if source.ndim == 3 else ("n D", {})
    given = source.shape[-2] if source.ndim >= 2 else number
    if given != number - 1 or given == 0:
        sizes["n"] = number
    check_shape("source", source, axes, D=dim, **sizes)
    check_floating("source", source)
    check_same_device("source", source, "tokens", tokens)
    return int(given)
