"""Contrast of class tokens: those of one image unlike each other (MCTformer+)."""

import torch
from torch import Tensor, nn

from wsss_blocks._numerics import l2_normalize
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_labels,
    check_shape,
    check_tensor,
)
from wsss_blocks.losses._shares import check_counts, share

__all__ = ["ClassTokenContrastLoss", "class_token_contrast_counts", "class_token_contrast_loss"]


def class_token_contrast_loss(
    tokens: Tensor,
    labels: Tensor,
    *,
    gather_distributed: bool = False,
    counts: Tensor | None = None,
) -> Tensor:
    r"""Tell the tokens of the present classes from all other class tokens of the image.

    .. math::

        L = \frac{1}{|P|} \sum_{(b, c) \in P}
            - \log \frac{\exp S_{cc}}{\sum_k \exp S_{ck}}, \qquad
        S_{ck} = \cos(T_{bc}, T_{bk})

    over the classes P that are present in their images, and the mean over layers where there are
    several. Class tokens of a plain transformer become alike within a few layers.

    Reference:
        Xu et al., "MCTformer+: Multi-Class Token Transformer for Weakly Supervised Semantic
        Segmentation" (contrastive class token module), https://arxiv.org/abs/2308.03005. As in the
        released code there is no temperature, and the tokens of all twelve layers are taken.

    Note:
        S is at most 1 at the diagonal, so the loss is between :math:`\log(1 + (K - 1) e^{-2})` and
        :math:`\log K`, for tokens that are not zero. That P is counted over the batch is inferred.

    Args:
        tokens: ``(B, K, D)`` class tokens without background, of L layers ``(L, B, K, D)``;
            normalised here.
        labels: ``(B, K)`` multi-hot.
        gather_distributed: count the present classes of all ranks.
        counts: number of present classes to divide by, that of all micro-batches of a step
            (:func:`class_token_contrast_counts`), whose losses then add up. None: that of this
            batch.

    Returns:
        Scalar >= 0; float32 for half inputs, else the dtype of ``tokens``.

    Raises:
        ValueError: wrong shape, device, label values or ``counts``, NaN or infinite ``tokens``.
        TypeError: ``tokens`` are not floating-point.

    Example:
        >>> import torch
        >>> labels = torch.tensor([[1, 0]])
        >>> print(f"{class_token_contrast_loss(torch.ones(1, 2, 4), labels):.4f}")
        0.6931
        >>> print(f"{class_token_contrast_loss(torch.eye(2)[None], labels):.4f}")
        0.3133
    """
    check_tensor("tokens", tokens)
    several = tokens.ndim == 4
    check_shape("tokens", tokens, "L B K D" if several else "B K D")
    check_floating("tokens", tokens)
    batch, num_classes, _ = tokens.shape[-3:]
    check_labels(labels, batch=batch, num_classes=num_classes, device=tokens.device)
    check_finite("tokens", tokens)
    check_counts(counts, "", other_name="tokens", other=tokens)

    with torch.autocast(tokens.device.type, enabled=False):
        unit = l2_normalize(tokens)
        alike = unit @ unit.mT
    each = -alike.log_softmax(-1).diagonal(dim1=-2, dim2=-1)
    if several:
        each = each.mean(0)
    total = each.where(labels > 0, 0).sum()
    if counts is None:
        counts = class_token_contrast_counts(labels)
    return share(total, counts, gather_distributed=gather_distributed)


class ClassTokenContrastLoss(nn.Module):
    """Tell class tokens from each other (module form).

    See :func:`class_token_contrast_loss`.

    Args:
        gather_distributed: count the present classes of all ranks.

    Shape:
        - tokens: ``(B, K, D)`` or ``(L, B, K, D)``
        - labels: ``(B, K)``
        - output: scalar

    Example:
        >>> import torch
        >>> loss = ClassTokenContrastLoss()
        >>> print(f"{loss(torch.ones(12, 2, 20, 384), torch.ones(2, 20)):.4f}")  # log 20
        2.9957
    """

    def __init__(self, *, gather_distributed: bool = False) -> None:
        super().__init__()
        self.gather_distributed = gather_distributed

    def forward(self, tokens: Tensor, labels: Tensor, *, counts: Tensor | None = None) -> Tensor:
        """Return the loss of the class tokens."""
        return class_token_contrast_loss(
            tokens, labels, gather_distributed=self.gather_distributed, counts=counts
        )

    def extra_repr(self) -> str:
        """Show the setting."""
        return f"gather_distributed={self.gather_distributed}"


def class_token_contrast_counts(labels: Tensor) -> Tensor:
    """Count the present classes of all images.

    The number that :func:`class_token_contrast_loss` divides by; those of micro-batches add up to
    that of the batch.

    Args:
        labels: ``(B, K)`` multi-hot.

    Returns:
        Scalar int64.

    Raises:
        ValueError: wrong shape or label values.

    Example:
        >>> import torch
        >>> class_token_contrast_counts(torch.tensor([[1, 1], [0, 0]]))
        tensor(2)
    """
    check_shape("labels", labels, "B K")
    batch, num_classes = labels.shape
    check_labels(labels, batch=batch, num_classes=num_classes, device=labels.device)
    return (labels > 0).sum()
