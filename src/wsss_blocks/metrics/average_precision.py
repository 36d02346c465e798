"""Mean average precision of image-level scores: how well an image classifier ranks."""

import torch
from torch import Tensor

from wsss_blocks._validate import check_finite, check_floating, check_labels, check_shape

__all__ = ["mean_average_precision"]


@torch.no_grad()
def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    r"""Average, over the classes, the precision at each image that shows the class.

    .. math::

        \mathrm{AP} = \sum_n (R_n - R_{n-1}) \, P_n

    with precision :math:`P_n` and recall :math:`R_n` of the images whose score is at least the n-th
    largest one; images of equal score enter together. Computed in float64.

    Reference:
        Precision is not interpolated: scikit-learn's ``average_precision_score``.

    Args:
        scores: ``(B, K)``, larger for classes that are more likely present.
        labels: ``(B, K)`` multi-hot; classes that no image shows take no part.

    Returns:
        mAP in [0, 1]; NaN if no image shows any class, or there is none.

    Raises:
        ValueError: a shape, device or label does not fit, or a score is not finite.
        TypeError: ``scores`` are not floating-point.

    Example:
        >>> scores = torch.tensor([[0.9], [0.8], [0.1]])
        >>> round(mean_average_precision(scores, torch.tensor([[1], [0], [1]])), 4)
        0.8333
    """
    check_shape("scores", scores, "B K")
    check_floating("scores", scores)
    check_labels(labels, batch=scores.shape[0], num_classes=scores.shape[1], device=scores.device)
    check_finite("scores", scores)
    values, order = scores.double().sort(dim=0, descending=True, stable=True)
    hits = (labels > 0).gather(0, order).double().cumsum(0)
    ranks = torch.arange(1, len(scores) + 1, device=scores.device)[:, None]
    # A group of equal scores counts at its last image.
    last = torch.ones_like(values, dtype=torch.bool)
    last[:-1] = values[:-1] > values[1:]
    reached = hits.where(last, 0).cummax(0).values
    gained = reached.diff(dim=0, prepend=reached.new_zeros(1, reached.shape[1]))
    positives = hits[-1:].sum(0)
    precision = (gained * hits / ranks).sum(0) / positives
    return float(precision[positives > 0].mean())
