"""Which of many class names an image shows, from its similarity to each (SimSeg, CVPR 2023)."""

import torch
from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_int,
    check_number,
    check_shape,
)

__all__ = ["class_threshold", "select_classes"]


def class_threshold(scores: Tensor, *, top: int = 10, sigma: float = 1.0) -> Tensor:
    r"""Return the score that a class must reach: a deviation above the mean of the best.

    .. math::

        t_b = \mu_b + \lambda \sigma_b

    with :math:`\mu_b` and :math:`\sigma_b` the mean and the unbiased standard deviation of the
    ``top`` largest scores of image :math:`b`, and :math:`\lambda` = ``sigma``.

    Reference:
        Yi et al., "A Simple Framework for Text-Supervised Semantic Segmentation", CVPR 2023,
        section 4.1 and the released code; https://doi.org/10.1109/CVPR52729.2023.00683.

    Note:
        Among n scores none lies more than :math:`(n - 1) / \sqrt{n}` deviations above the mean
        (0.71 for 2, 1.15 for 3, 2.85 for 10): the rule is made for long lists of names. With
        ``sigma=1`` it takes none of two, and of three at most one.

    Args:
        scores: ``(B, C)`` similarities of images and names.
        top: how many of the largest scores count; all, where there are fewer.
        sigma: deviations above the mean.

    Returns:
        ``(B,)``, at least float32. Of a single score the deviation is 0.

    Raises:
        ValueError: a shape does not fit, a score is not finite, ``top`` is less than 1 or ``sigma``
            not finite.
        TypeError: ``scores`` is not floating-point, ``top`` no int or ``sigma`` no number.

    Example:
        >>> scores = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        >>> [round(float(t), 4) for t in class_threshold(scores, top=3)]
        [4.0]
    """
    _check(scores, top, sigma)
    best = at_least_float32(scores).amax(1)
    return best + _gap(at_least_float32(scores) - best[:, None], top, sigma)


def select_classes(
    scores: Tensor,
    *,
    top: int = 10,
    sigma: float | None = 1.0,
    most: int = 5,
    background: int | None = 0,
) -> Tensor:
    r"""Take the best classes of an image whose score reaches :func:`class_threshold`.

    .. math::

        c \in S_b \iff s_{bc} \ge \mu_b + \lambda \sigma_b,
        \quad \operatorname{rank}(s_{bc}) \le \text{most}, \quad c \ne \text{background}

    The background takes part in the statistics and in the ranks: where it is among the ``most``
    best, one class less is taken. Of equal scores the lower class has the better rank.

    Reference:
        Yi et al., "A Simple Framework for Text-Supervised Semantic Segmentation", CVPR 2023,
        section 4.1; ranks and background as in the released code.

    Note:
        The paper says the upper half of the classes; the code takes 10 for VOC (21) and COCO (81),
        30 for PASCAL Context (60). With ``top=10`` and ``sigma=1`` at most four scores can reach
        the threshold; two groups of five equal scores select none. Scores that are all equal do
        reach it, and so does a single score: there is nothing that it could be compared with.

    Args:
        scores: ``(B, C)`` similarities of images and names.
        top: how many of the largest scores give mean and deviation.
        sigma: deviations above the mean; None does without a threshold.
        most: how many of the best scores can be taken.
        background: column that is never taken, or None.

    Returns:
        ``(B, C)`` bool.

    Raises:
        ValueError: a shape does not fit, a score is not finite, ``top`` or ``most`` is less than 1,
            ``sigma`` not finite, or ``background`` no column.
        TypeError: ``scores`` is not floating-point or an option of another type.

    Example:
        >>> scores = torch.tensor([[0.15, 0.30, 0.10, 0.12, 0.11]])
        >>> select_classes(scores)
        tensor([[False,  True, False, False, False]])
    """
    _check(scores, top, 0.0 if sigma is None else sigma)
    check_int("most", most, least=1)
    values = at_least_float32(scores)
    gaps = values - values.amax(1, keepdim=True)
    order = gaps.argsort(dim=1, descending=True, stable=True)[:, :most]
    taken = torch.zeros_like(gaps, dtype=torch.bool).scatter(1, order, True)
    if sigma is not None:
        taken = taken & (gaps >= _gap(gaps, top, sigma)[:, None])
    if background is not None:
        check_int("background", background, least=0)
        if background >= scores.shape[1]:
            raise ValueError(
                f"background must be a column of scores (C={scores.shape[1]}), got {background}."
            )
        columns = torch.arange(scores.shape[1], device=scores.device)
        taken = taken & (columns != background)
    return taken


def _gap(gaps: Tensor, top: int, sigma: float) -> Tensor:
    """Return the threshold below the best score; of equal scores, whose gaps are 0, exactly 0."""
    largest = gaps.topk(min(top, gaps.shape[1]), dim=1).values
    mean = largest.mean(1)
    squares = (largest - mean[:, None]).square().sum(1)
    return mean + sigma * (squares / max(largest.shape[1] - 1, 1)).sqrt()


def _check(scores: Tensor, top: int, sigma: float) -> None:
    check_shape("scores", scores, "B C")
    check_floating("scores", scores)
    check_finite("scores", scores)
    check_int("top", top, least=1)
    check_number("sigma", sigma)
    if not -float("inf") < sigma < float("inf"):
        raise ValueError(f"sigma must be finite, got {sigma}.")
