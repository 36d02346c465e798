"""Background thresholds of class activation maps from their scores alone, without masks.

Papers: Otsu, "A Threshold Selection Method from Gray-Level Histograms", IEEE Trans. SMC 1979; the
other fits a mixture of two normal distributions.
"""

from typing import Literal

import torch
from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._optional import require
from wsss_blocks._validate import (
    check_choice,
    check_finite,
    check_floating,
    check_int,
    check_labels,
    check_shape,
    check_size,
    check_tensor,
)
from wsss_blocks.ops.running_max import strongest

__all__ = ["mixture_threshold", "otsu_threshold", "strongest_scores"]

_NOTHING = 0.5  # of no scores at all: the default of cam_to_label


def strongest_scores(
    cam: Tensor,
    labels: Tensor,
    *,
    size: tuple[int, int] | None = None,
    relu: bool = True,
    normalize: Literal["minmax"] | None = "minmax",
) -> Tensor:
    r"""Return what :func:`cam_to_label` compares with its threshold, of all images in one row.

    .. math::

        s_p = \max_{k : y_k = 1} \mathrm{norm}(\mathrm{up}(M_k))_p

    for each cell :math:`p` of each image that has a class. Rows of several batches, whatever their
    sizes, are joined with ``torch.cat``. Time is O(B P H W) with P classes present in an image;
    memory 4 bytes per cell of the result and a few planes of the images in work. How long the
    result is depends on the labels: a GPU waits for it.

    Args:
        cam: ``(B, K, h, w)`` scores.
        labels: ``(B, K)`` multi-hot.
        size: ``(H, W)`` that the maps are resized to first, as :func:`cam_to_label` does; None
            takes them as they are: a sample of the same scores, many times cheaper.
        relu: Drop negative scores.
        normalize: ``"minmax"``, or None.

    Returns:
        ``(n,)`` scores in at least float32, n = (images with a class) H W.

    Raises:
        ValueError: If a shape or device does not fit, ``cam`` is not finite, or ``normalize`` is
            unknown.
        TypeError: If ``cam`` is not floating point.

    Example:
        >>> import torch
        >>> cam = torch.tensor([[[[0.0, 1.0, 2.0]], [[9.0, 0.0, 0.0]]], [[[5.0] * 3]] * 2])
        >>> labels = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> [round(s, 3) for s in strongest_scores(cam, labels).tolist()]
        [0.0, 0.5, 1.0]
    """
    check_shape("cam", cam, "B K h w")
    check_floating("cam", cam)
    check_finite("cam", cam)
    check_labels(labels, batch=len(cam), num_classes=cam.shape[1], device=cam.device)
    check_size("size", size, optional=True)
    if normalize is not None:
        check_choice("normalize", normalize, ("minmax",))
    x = at_least_float32(cam.detach())
    height, width = (x.shape[2], x.shape[3]) if size is None else size
    # Without the ReLU a score may be negative, and has to win nevertheless.
    floor = x.new_full((len(x),), 0.0 if relu else -1e29)
    parts = [
        part.best[(labels[part.images] > 0).any(1)].flatten()
        for part in strongest(
            x, labels, floor, (height, width), relu=relu, minmax=normalize == "minmax"
        )
    ]
    return torch.cat([x.new_empty(0), *parts])


def otsu_threshold(scores: Tensor, *, bins: int = 256) -> float:
    r"""Return the threshold that parts scores into the two groups with the most distant means.

    With the shares :math:`w` and means :math:`\mu` of the scores at or below :math:`t` and of those
    above it, on a histogram between the smallest and the largest score,

    .. math::

        t^* = \arg\max_t\; w_0(t)\, w_1(t)\, \bigl(\mu_1(t) - \mu_0(t)\bigr)^2

    Where several neighbouring thresholds part the scores alike, it is the middle of them. O(n).

    Reference:
        N. Otsu, "A Threshold Selection Method from Gray-Level Histograms", IEEE Transactions on
        Systems, Man, and Cybernetics 9(1), 1979, Eqs. 14 to 17.

    Note:
        Both methods assume that background and object scores form two heaps. Those of a CAM often
        do not: see the measured thresholds beside the best one in :doc:`/guides/evaluation`.

    Args:
        scores: ``(n,)``, as :func:`strongest_scores` returns them.
        bins: Cells of the histogram.

    Returns:
        A number for :func:`cam_to_label`: a score at or below it is background. Constant scores
        give their value (all background), no scores 0.5.

    Raises:
        ValueError: If the shape does not fit, a score is not finite, or ``bins`` is less than 2.
        TypeError: If ``scores`` is not floating point or ``bins`` not an int.

    Example:
        >>> import torch
        >>> round(otsu_threshold(torch.tensor([0.0, 0.1, 0.1, 0.2, 0.6, 0.7]), bins=7), 3)
        0.45
    """
    check_int("bins", bins, least=2)
    values = _values(scores)
    if (same := _constant(values)) is not None:
        return same
    low, high = (float(x) for x in values.aminmax())
    cell = ((values - low) * (bins / (high - low))).long().clamp_(0, bins - 1)
    counts = torch.bincount(cell, minlength=bins).double()
    totals = torch.zeros_like(counts).index_add_(0, cell, values)
    below, mass = counts.cumsum(0)[:-1], totals.cumsum(0)[:-1]
    # Times n ** 2: the distance of means is mass / below - (total - mass) / (n - below).
    n, total = counts.sum(), totals.sum()
    between = (mass * n - total * below).square() / (below * (n - below))
    first = between.argmax()
    alike = (below == below[first]).nonzero()
    middle = float(alike.double().mean()) + 1
    return low + middle / bins * (high - low)


def mixture_threshold(scores: Tensor, *, max_scores: int = 20_000) -> float:
    r"""Return where the upper one of two normal distributions becomes the likelier origin.

    A mixture :math:`\sum_c \pi_c \mathcal N(\mu_c, \sigma_c^2)` of two is fitted by expectation
    maximisation (scikit-learn, on a CPU); the threshold is the score between its means at which
    both have responsibility 1/2, or a mean where the other one is likelier even there. The pile
    that a ReLU leaves at the lowest score is no normal distribution and would be one of the two: it
    is left out of the fit, where other scores differ from each other.

    Reference:
        Bishop, "Pattern Recognition and Machine Learning", section 9.2. For CAMs: the "GMM" that
        users of the field's code ask for; no paper defines it, and leaving out the pile is ours.

    Args:
        scores: ``(n,)``, as :func:`strongest_scores` returns them.
        max_scores: Of more scores, so many equally spaced ones of the sorted row are fitted.

    Returns:
        A number for :func:`cam_to_label`: a score at or below it is background. Constant scores
        give their value (all background), no scores 0.5.

    Raises:
        ValueError: If the shape does not fit, a score is not finite, or ``max_scores`` is less
            than 2.
        TypeError: If ``scores`` is not floating point or ``max_scores`` not an int.
        ImportError: If scikit-learn is not installed.

    Example:
        >>> import torch
        >>> g = torch.Generator().manual_seed(0)
        >>> low, high = torch.rand(90, generator=g) / 4, 0.6 + torch.rand(30, generator=g) / 4
        >>> 0.25 < mixture_threshold(torch.cat([low, high])) < 0.6
        True
    """
    check_int("max_scores", max_scores, least=2)
    values = _values(scores)
    if (same := _constant(values)) is not None:
        return same
    ordered = values.sort().values
    above = ordered[ordered > ordered[0]]
    ordered = above if _constant(above) is None else ordered
    if len(ordered) > max_scores:
        ordered = ordered[torch.linspace(0, len(ordered) - 1, max_scores).round().long()]
    sklearn = require("sklearn.mixture", extra="examples", what="mixture_threshold")
    mixture = sklearn.GaussianMixture(2, random_state=0, max_iter=1000)
    # On a scale of its own: what is added to the variances is meant for one.
    low, span = ordered[0], ordered[-1] - ordered[0]
    mixture.fit(((ordered - low) / span)[:, None].numpy())
    upper = int(mixture.means_[:, 0].argmax())
    left, right = sorted(mixture.means_[:, 0])
    for _ in range(50):  # between the means the upper one's responsibility grows
        middle = (left + right) / 2
        if mixture.predict_proba([[middle]])[0, upper] > 0.5:
            right = middle
        else:
            left = middle
    return float(low + left * span)


def _values(scores: Tensor) -> Tensor:
    check_tensor("scores", scores)
    if scores.shape != (0,):
        check_shape("scores", scores, "n")
    check_floating("scores", scores)
    check_finite("scores", scores)
    return scores.detach().double().cpu()


def _constant(values: Tensor) -> float | None:
    """Return the result for scores that cannot be parted."""
    if not len(values):
        return _NOTHING
    low, high = (float(x) for x in values.aminmax())
    return low if high - low <= max(1e-12 * max(abs(low), abs(high)), 1e-300) else None
