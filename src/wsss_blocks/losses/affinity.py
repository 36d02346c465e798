"""Affinity loss: near cells of one label alike, of others not (AffinityNet, CVPR 2018)."""

import torch
from torch import Tensor, nn

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import check_same_device, check_shape
from wsss_blocks.losses._shares import check_counts, share
from wsss_blocks.refine._stencil import check_unit
from wsss_blocks.refine.affinity import NeighbourAffinity
from wsss_blocks.refine.affinity_labels import AffinityLabels

__all__ = ["AffinityLoss", "affinity_counts", "affinity_loss"]

_EPS = 1e-5


def affinity_loss(
    affinity: NeighbourAffinity,
    labels: AffinityLabels,
    *,
    gather_distributed: bool = False,
    counts: Tensor | None = None,
) -> Tensor:
    r"""Pull affinities of cells with one label to 1 and of cells with different ones to 0.

    .. math::

        L = \frac14 \ell(P_{bg}, A) + \frac14 \ell(P_{fg}, A) + \frac12 \ell(P_{diff}, 1 - A),
        \qquad \ell(P, A) = -\frac{1}{\max(|P|, 1)} \sum_{ij \in P} \log(A_{ij} + \epsilon)

    over the pairs of the batch whose labels are both known; :math:`\epsilon = 10^{-5}`.

    Reference:
        Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for
        Weakly Supervised Semantic Segmentation" (AffinityNet), CVPR 2018, section 3.2,
        https://arxiv.org/abs/1803.10464; the same in IRN, CVPR 2019,
        https://arxiv.org/abs/1904.05044. Weights and epsilon are those of the authors' code.

    Args:
        affinity: What :func:`~wsss_blocks.refine.feature_affinity` or
            :func:`~wsss_blocks.refine.edge_affinity` returns: values ``(B, R, h, w)`` in [0, 1].
        labels: What :func:`~wsss_blocks.refine.affinity_labels` returns, of the same radius.
        gather_distributed: Count the pairs of all ranks.
        counts: ``(3,)`` numbers of pairs to divide by, those of all micro-batches of a step
            (:func:`affinity_counts`), whose losses then add up. None: those of this batch.

    Returns:
        Scalar; float32 for half inputs, else the dtype of the values. A kind without any pair is a
        differentiable zero.

    Raises:
        ValueError: If a shape or device does not fit, ``labels`` have other offsets, values are
            outside [0, 1] or ``counts`` bad.
        TypeError: If the values are not floating point or the labels not bool.

    Example:
        >>> import torch
        >>> from wsss_blocks.refine import affinity_labels, feature_affinity
        >>> labels = affinity_labels(torch.tensor([[[0, 0, 7, 7]]]), radius=2)
        >>> features = torch.tensor([[[[0.0, 0.0, 9.0, 9.0]]]])
        >>> affinity_loss(feature_affinity(features, radius=2), labels) < 1e-3
        tensor(True)
    """
    values, offsets = affinity
    check_shape("affinity.values", values, "B R h w", R=len(offsets))
    check_unit("affinity.values", values)
    _check_labels(labels)
    if tuple(offsets) != tuple(labels.offsets) or labels.background.shape != values.shape:
        raise ValueError(
            "labels must have the offsets and the shape of affinity.values, "
            f"{tuple(values.shape)}, got {tuple(labels.background.shape)}."
        )
    check_same_device("labels", labels.background, "affinity.values", values)
    check_counts(counts, "3", other_name="affinity.values", other=values)

    x = at_least_float32(values)
    alike, apart = -(x + _EPS).log(), -(1 - x + _EPS).log()
    terms = ((labels.background, alike), (labels.foreground, alike), (labels.different, apart))
    totals = torch.stack([torch.where(chosen, term, 0).sum() for chosen, term in terms])
    if counts is None:
        counts = affinity_counts(labels)
    background, foreground, different = share(
        totals, counts, gather_distributed=gather_distributed
    ).unbind()
    return (background + foreground) / 4 + different / 2


class AffinityLoss(nn.Module):
    """Pull affinities to the labels of their pairs (module form).

    See :func:`affinity_loss`.

    Args:
        gather_distributed: Count the pairs of all ranks.

    Shape:
        - affinity: values ``(B, R, h, w)``
        - labels: three times ``(B, R, h, w)``
        - output: scalar

    Example:
        >>> import torch
        >>> from wsss_blocks.refine import affinity_labels, feature_affinity
        >>> affinity, mask = feature_affinity(torch.ones(1, 4, 3, 3)), torch.zeros(1, 3, 3).long()
        >>> AffinityLoss()(affinity, affinity_labels(mask)).abs() < 1e-4
        tensor(True)
    """

    def __init__(self, *, gather_distributed: bool = False) -> None:
        super().__init__()
        self.gather_distributed = gather_distributed

    def forward(
        self, affinity: NeighbourAffinity, labels: AffinityLabels, *, counts: Tensor | None = None
    ) -> Tensor:
        """Return the loss of the affinities under the labels of their pairs."""
        return affinity_loss(
            affinity, labels, gather_distributed=self.gather_distributed, counts=counts
        )


def affinity_counts(labels: AffinityLabels) -> Tensor:
    """Count the pairs of each kind.

    The numbers that :func:`affinity_loss` divides by; those of micro-batches add up to those of
    the batch.

    Args:
        labels: What :func:`~wsss_blocks.refine.affinity_labels` returns.

    Returns:
        ``(3,)`` int64: background, foreground, different.

    Raises:
        ValueError: If a shape does not fit.
        TypeError: If the labels are not bool.

    Example:
        >>> import torch
        >>> from wsss_blocks.refine import affinity_labels
        >>> affinity_counts(affinity_labels(torch.tensor([[[0, 0, 7, 7, 255]]]), radius=2))
        tensor([1, 1, 1])
    """
    _check_labels(labels)
    return torch.stack([kind.sum() for kind in labels[:3]])


def _check_labels(labels: AffinityLabels) -> None:
    like = labels.background
    for name in ("background", "foreground", "different"):
        kind = getattr(labels, name)
        check_shape(f"labels.{name}", kind, "B R h w", R=len(labels.offsets))
        if kind.dtype != torch.bool:
            raise TypeError(f"labels.{name} must be a bool tensor, got {kind.dtype}.")
        check_same_device(f"labels.{name}", kind, "labels.background", like)
        if kind.shape != like.shape:
            raise ValueError(
                f"labels.{name} must have the shape of labels.background, {tuple(like.shape)}, "
                f"got {tuple(kind.shape)}."
            )
