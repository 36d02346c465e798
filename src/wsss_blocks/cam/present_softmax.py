"""Softmax in which only an image's classes and background words compete (CLIP-ES)."""

import torch
from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_labels,
    check_same_device,
    check_shape,
)

__all__ = ["present_softmax_scores"]


def present_softmax_scores(
    logits: Tensor, labels: Tensor, *, background: Tensor | None = None
) -> Tensor:
    r"""Return each present class's probability among the present classes and background words.

    With present classes P and background words M,

    .. math::

        s^c = \frac{\exp y^c}{\sum_{k \in P} \exp y^k + \sum_{m \in M} \exp y^m},
        \qquad c \in P

    As the target of :func:`gradient_cam` it makes the classes of an image compete: the map of one
    is lowered where another, or the background, is more likely.

    Reference:
        Lin et al., "CLIP is Also an Efficient Segmenter" (CLIP-ES), CVPR 2023, section 3.2
        (number inferred), https://arxiv.org/abs/2212.09506

    Note:
        With one present class and no background the score is 1 whatever the logit, and its
        gradient 0: give ``background``.

    Args:
        logits: ``(B, K)``, for CLIP the cosines times its logit scale (100).
        labels: ``(B, K)`` multi-hot.
        background: ``(B, M)`` logits of background words; None for no word.

    Returns:
        ``(B, K)`` probabilities in the dtype of ``logits``, 0 for absent classes.

    Raises:
        ValueError: a shape or device does not fit or a value is not finite.
        TypeError: ``logits`` or ``background`` is not floating-point.

    Example:
        >>> import torch
        >>> labels = torch.tensor([[1.0, 0.0, 1.0]])
        >>> present_softmax_scores(torch.zeros(1, 3), labels, background=torch.zeros(1, 2))
        tensor([[0.2500, 0.0000, 0.2500]])
    """
    check_shape("logits", logits, "B K")
    check_floating("logits", logits)
    check_finite("logits", logits)
    batch, classes = logits.shape
    check_labels(labels, batch=batch, num_classes=classes, device=logits.device)
    present = labels > 0
    x = at_least_float32(logits)
    # Not -inf: the softmax of an image in which nothing competes must be a number.
    x = x.masked_fill(~present, torch.finfo(x.dtype).min)
    if background is not None:
        check_shape("background", background, "B M", B=batch)
        check_floating("background", background)
        check_same_device("background", background, "logits", logits)
        check_finite("background", background)
        x = torch.cat([x, background.to(x.dtype)], dim=1)
    probabilities = torch.softmax(x, dim=1)[:, :classes]
    return probabilities.masked_fill(~present, 0).to(logits.dtype)
