"""Affinity loss over all pairs of an image's cells (AFA, CVPR 2022; WeCLIP, CVPR 2024)."""

import torch
from torch import Tensor, nn

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import check_integer, check_same_device, check_shape, values_are_checked
from wsss_blocks.losses._shares import check_counts, share
from wsss_blocks.refine._stencil import check_unit

__all__ = ["AffinityMatrixLoss", "affinity_matrix_counts", "affinity_matrix_loss"]

_UNKNOWN = 255


def affinity_matrix_loss(
    affinity: Tensor,
    labels: Tensor,
    *,
    gather_distributed: bool = False,
    counts: Tensor | None = None,
) -> Tensor:
    r"""Pull affinities of pairs of one label to 1 and of pairs of different ones to 0.

    .. math::

        L = \frac{1}{2} \, \frac{1}{\max(|P|, 1)} \sum_{ij \in P} (1 - A_{ij})
          + \frac{1}{2} \, \frac{1}{\max(|Q|, 1)} \sum_{ij \in Q} A_{ij}

    with the pairs of one label P and of different labels Q, all images of the batch together.

    Reference:
        Ru et al., "Learning Affinity from Attention" (AFA), CVPR 2022, section 3.3 (number
        inferred), https://arxiv.org/abs/2203.02664; the same in "Frozen CLIP: A Strong Backbone
        for Weakly Supervised Semantic Segmentation" (WeCLIP), CVPR 2024,
        https://arxiv.org/abs/2406.11189, with :math:`A = \sigma(F^\top F)` and weight 0.1.

    Note:
        The released codes divide by the counts plus one. Here the counts divide, and a half
        without any pair vanishes.

    Args:
        affinity: ``(B, N, N)`` in [0, 1]; need not be symmetric.
        labels: What :func:`~wsss_blocks.refine.affinity_matrix_labels` returns: ``(B, N, N)``, 1
            for one label, 0 for different ones, 255 for unknown.
        gather_distributed: Count the pairs of all ranks.
        counts: ``(2,)`` numbers of pairs to divide by, those of all micro-batches of a step
            (:func:`affinity_matrix_counts`), whose losses then add up. None: those of this batch.

    Returns:
        Scalar in [0, 1]; float32 for half inputs, else the dtype of ``affinity``.

    Raises:
        ValueError: If a shape or device does not fit, values are outside [0, 1], ``labels`` hold
            another number, or ``counts`` are bad.
        TypeError: If ``affinity`` is not floating point or ``labels`` not integer.

    Example:
        >>> import torch
        >>> from wsss_blocks.refine import affinity_matrix_labels
        >>> labels = affinity_matrix_labels(torch.tensor([[[0, 0, 3]]]))
        >>> affinity_matrix_loss(torch.full((1, 3, 3), 0.25), labels)
        tensor(0.5000)
    """
    check_shape("affinity", affinity, "B N N")
    batch, n, _ = affinity.shape
    check_shape("affinity", affinity, "B N N", N=n)
    check_unit("affinity", affinity)
    _check_labels(labels, B=batch, N=n)
    check_same_device("labels", labels, "affinity", affinity)
    check_counts(counts, "2", other_name="affinity", other=affinity)
    x = at_least_float32(affinity)
    pull = torch.where(labels == 1, 1 - x, 0.0).sum()
    push = torch.where(labels == 0, x, 0.0).sum()
    if counts is None:
        counts = affinity_matrix_counts(labels)
    totals = torch.stack([pull, push])
    return share(totals, counts, gather_distributed=gather_distributed).sum() / 2


class AffinityMatrixLoss(nn.Module):
    """Pull affinities of all pairs of cells to their labels (module form).

    See :func:`affinity_matrix_loss`.

    Args:
        gather_distributed: Count the pairs of all ranks.

    Shape:
        - affinity: ``(B, N, N)``
        - labels: ``(B, N, N)``
        - output: scalar

    Example:
        >>> import torch
        >>> AffinityMatrixLoss()(torch.ones(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.uint8))
        tensor(0.)
    """

    def __init__(self, *, gather_distributed: bool = False) -> None:
        super().__init__()
        self.gather_distributed = gather_distributed

    def forward(self, affinity: Tensor, labels: Tensor, *, counts: Tensor | None = None) -> Tensor:
        """Return the loss of the affinities under the labels of their pairs."""
        return affinity_matrix_loss(
            affinity, labels, gather_distributed=self.gather_distributed, counts=counts
        )


def affinity_matrix_counts(labels: Tensor) -> Tensor:
    """Count the pairs of one label and those of different labels.

    The numbers that :func:`affinity_matrix_loss` divides by; those of micro-batches add up to
    those of the batch.

    Args:
        labels: What :func:`~wsss_blocks.refine.affinity_matrix_labels` returns, ``(B, N, N)``.

    Returns:
        ``(2,)`` int64: of one label, different.

    Raises:
        ValueError: If the shape does not fit or ``labels`` hold another number than 0, 1, 255.
        TypeError: If ``labels`` are not integer.

    Example:
        >>> import torch
        >>> from wsss_blocks.refine import affinity_matrix_labels
        >>> affinity_matrix_counts(affinity_matrix_labels(torch.tensor([[[0, 0, 7, 255]]])))
        tensor([2, 4])
    """
    _check_labels(labels)
    return torch.stack([(labels == 1).sum(), (labels == 0).sum()])


def _check_labels(labels: Tensor, **sizes: int) -> None:
    check_shape("labels", labels, "B N N")
    check_shape("labels", labels, "B N N", **({"N": labels.shape[1]} | sizes))
    check_integer("labels", labels)
    if values_are_checked(labels) and labels.numel():
        wrong = (labels != 0) & (labels != 1) & (labels != _UNKNOWN)
        if bool(wrong.any()):
            raise ValueError(
                f"labels must hold 0, 1 or 255 (unknown), got {int(labels[wrong][0])}."
            )
