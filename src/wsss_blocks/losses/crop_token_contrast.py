"""Contrast of the class tokens of an image and of crops of it (ToCo, CVPR 2023)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsss_blocks._numerics import l2_normalize
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_positive,
    check_same_device,
    check_shape,
)

__all__ = ["CropTokenContrastLoss", "crop_token_contrast_loss"]


def crop_token_contrast_loss(
    tokens: Tensor, targets: Tensor, positive: Tensor, *, temperature: float = 0.5
) -> Tensor:
    r"""Make crops with an object like the whole image, and crops of its background unlike it.

    For one image, with the tokens :math:`p_m` of its M global views by the teacher, the positive
    :math:`q_n` and the negative :math:`q_k` of its crops by the student, all of unit length,

    .. math::

        L = \frac{1}{M N_+} \sum_{m, n} - \log
            \frac{e^{p_m^\top q_n / \tau}}
                 {e^{p_m^\top q_n / \tau} + \sum_k e^{p_m^\top q_k / \tau}}

    and the mean over images; an image without a positive or without a negative crop adds 0.

    Reference:
        "Token Contrast for Weakly-Supervised Semantic Segmentation" (ToCo, class token contrast),
        https://arxiv.org/abs/2303.01267; 0.5 is its temperature on VOC, 1 that on COCO. Inferred:
        the unit length, and the mean over the global views.

    Note:
        The released code also adds, for each image, a term without a positive, which pushes
        negatives away on its own. Here the equation counts.

    Args:
        tokens: ``(B, N, D)`` projected class tokens of N crops per image, by the student. ToCo
            has its own global views among them, as positives.
        targets: ``(B, M, D)`` of the global views, by the teacher; they get no gradient.
        positive: ``(B, N)`` bool, which crops are like the image:
            :func:`~wsss_blocks.cam.negative_crops` says it of the crops that it cuts.
        temperature: the :math:`\tau` above.

    Returns:
        Scalar >= 0; float32 for half inputs, else the dtype of ``tokens``.

    Raises:
        ValueError: wrong shape, device or temperature, NaN or infinite tokens.
        TypeError: tokens are not floating-point or ``positive`` is not bool.

    Example:
        >>> import torch
        >>> crops = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
        >>> image, positive = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[True, False]])
        >>> print(f"{crop_token_contrast_loss(crops, image, positive):.4f}")
        0.0181
        >>> print(f"{crop_token_contrast_loss(crops, image, ~positive):.4f}")
        4.0181
    """
    check_shape("tokens", tokens, "B N D")
    check_floating("tokens", tokens)
    batch, crops, dim = tokens.shape
    check_shape("targets", targets, "B M D", B=batch, D=dim)
    check_floating("targets", targets)
    check_same_device("targets", targets, "tokens", tokens)
    check_shape("positive", positive, "B N", B=batch, N=crops)
    if positive.dtype != torch.bool:
        raise TypeError(f"positive must be a bool tensor, got {positive.dtype}.")
    check_same_device("positive", positive, "tokens", tokens)
    check_positive("temperature", temperature)
    check_finite("tokens", tokens)
    check_finite("targets", targets)

    with torch.autocast(tokens.device.type, enabled=False):
        unit = l2_normalize(tokens)
        against = l2_normalize(targets.detach()).to(unit.dtype)
        alike = against @ unit.mT / temperature
    kept = positive[:, None]
    # Without a negative all of this is the least number, which the softplus turns into 0.
    others = alike.masked_fill(kept, torch.finfo(alike.dtype).min).logsumexp(2, keepdim=True)
    each = torch.where(kept, F.softplus(others - alike), 0.0).mean(1).sum(1)
    return (each / positive.sum(1).clamp_min(1)).sum() / max(batch, 1)


class CropTokenContrastLoss(nn.Module):
    """Make crops with an object like the whole image, others unlike it (module form).

    See :func:`crop_token_contrast_loss`.

    Args:
        temperature: divides the cosines.

    Shape:
        - tokens: ``(B, N, D)``
        - targets: ``(B, M, D)``
        - positive: ``(B, N)`` bool
        - output: scalar

    Raises:
        ValueError: ``temperature`` is not positive.

    Example:
        >>> import torch
        >>> positive = torch.tensor([[True, False, False]])
        >>> loss = CropTokenContrastLoss()(torch.ones(1, 3, 8), torch.ones(1, 2, 8), positive)
        >>> print(f"{loss:.4f}")  # log 3: one positive against two negatives, all alike
        1.0986
    """

    def __init__(self, *, temperature: float = 0.5) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        self.temperature = temperature

    def forward(self, tokens: Tensor, targets: Tensor, positive: Tensor) -> Tensor:
        """Return the loss of the crops' class tokens."""
        return crop_token_contrast_loss(tokens, targets, positive, temperature=self.temperature)

    def extra_repr(self) -> str:
        """Show the setting."""
        return f"temperature={self.temperature}"
