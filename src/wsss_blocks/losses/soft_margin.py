"""Multi-label soft margin loss: the classification loss of image labels."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_choice,
    check_finite,
    check_floating,
    check_labels,
    check_shape,
)

__all__ = ["MultiLabelSoftMarginLoss", "multi_label_soft_margin_loss"]

_REDUCTIONS = ("mean", "sum", "none")


def multi_label_soft_margin_loss(
    logits: Tensor, labels: Tensor, *, reduction: Literal["mean", "sum", "none"] = "mean"
) -> Tensor:
    r"""Average the binary cross-entropy of the classes.

    .. math::

        L_b = -\frac{1}{K} \sum_{k=1}^{K} \bigl[ y_{bk} \log \sigma(x_{bk})
              + (1 - y_{bk}) \log (1 - \sigma(x_{bk})) \bigr]

    Note:
        :func:`torch.nn.functional.multilabel_soft_margin_loss` with argument checks and at least
        float32. As there, an image without any class is not skipped: it says that each class is
        absent.

    Args:
        logits: ``(B, K)`` class scores before the sigmoid.
        labels: ``(B, K)`` multi-hot, no background column; fractions are soft targets.
        reduction: over the batch: "mean", "sum" or "none".

    Returns:
        Scalar, or ``(B,)`` for "none"; float32 for half inputs, else the dtype of ``logits``.

    Raises:
        ValueError: wrong shape, device, label values or reduction, NaN or infinite ``logits``.
        TypeError: ``logits`` are not floating-point.

    Example:
        >>> import torch
        >>> logits = torch.zeros(2, 20)
        >>> labels = torch.eye(20)[:2]
        >>> print(f"{multi_label_soft_margin_loss(logits, labels):.4f}")
        0.6931
    """
    check_choice("reduction", reduction, _REDUCTIONS)
    check_shape("logits", logits, "B K")
    check_floating("logits", logits)
    batch, num_classes = logits.shape
    check_labels(labels, batch=batch, num_classes=num_classes, device=logits.device)
    check_finite("logits", logits)
    logits = at_least_float32(logits)
    loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    loss = loss.mean(1)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / max(batch, 1)


class MultiLabelSoftMarginLoss(nn.Module):
    """Average the binary cross-entropy of the classes (module form).

    See :func:`multi_label_soft_margin_loss`.

    Args:
        reduction: over the batch: "mean", "sum" or "none".

    Shape:
        - logits: ``(B, K)``
        - labels: ``(B, K)``
        - output: scalar, or ``(B,)`` for "none"

    Example:
        >>> import torch
        >>> MultiLabelSoftMarginLoss(reduction="none")(torch.zeros(2, 3), torch.ones(2, 3)).shape
        torch.Size([2])
    """

    def __init__(self, *, reduction: Literal["mean", "sum", "none"] = "mean") -> None:
        super().__init__()
        check_choice("reduction", reduction, _REDUCTIONS)
        self.reduction = reduction

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of ``logits`` against ``labels``."""
        return multi_label_soft_margin_loss(logits, labels, reduction=self.reduction)

    def extra_repr(self) -> str:
        """Name the reduction."""
        return f"reduction={self.reduction!r}"
