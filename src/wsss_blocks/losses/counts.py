r"""What the normalised losses divide by, for losses that accumulate over micro-batches.

A loss that divides by a count of its own batch is not the mean of its micro-batches' losses: the
counts differ. Sum the counts of all micro-batches of a step first and pass the sum as ``counts``:
each micro-batch then returns its share of the loss of the undivided batch, and shares and their
gradients add up. Do not divide by the number of micro-batches. Masks that the network itself makes
want a pass without gradients first. With ``gather_distributed`` the sum is that of this rank's
micro-batches (as many on each rank), and the loss adds up the ranks.

:func:`~wsss_blocks.losses.multi_label_soft_margin_loss` needs none of this: sum the losses of
``reduction="sum"``, divided by the number of images of the step.
"""

import torch
from torch import Tensor

from wsss_blocks._validate import (
    check_int,
    check_integer,
    check_labels,
    check_mask_values,
    check_shape,
)
from wsss_blocks.losses._shares import contrasted_images
from wsss_blocks.losses._text_regions import known_ids

__all__ = [
    "balanced_segmentation_counts",
    "cross_contrastive_counts",
    "global_implicit_alignment_counts",
    "patch_token_contrast_counts",
]


def balanced_segmentation_counts(mask: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Count the background and the foreground pixels of a batch.

    The numbers that :func:`~wsss_blocks.losses.balanced_segmentation_loss` divides by; those of
    micro-batches add up to those of the batch.

    Args:
        mask: ``(B, H, W)`` ids, any integer dtype.
        ignore_index: id of pixels that take no part.

    Returns:
        ``(2,)`` int64: background, foreground.

    Raises:
        ValueError: wrong shape.
        TypeError: ``mask`` is not integer.

    Example:
        >>> import torch
        >>> from wsss_blocks.losses import balanced_segmentation_loss
        >>> logits = torch.zeros(3, 2, 1, 2, requires_grad=True)
        >>> mask = torch.tensor([[[0, 1]], [[0, 0]], [[255, 0]]])
        >>> batches = [(logits[:1], mask[:1]), (logits[1:], mask[1:])]
        >>> counts = sum(balanced_segmentation_counts(m) for _, m in batches)
        >>> for x, m in batches:
        ...     balanced_segmentation_loss(x, m, counts=counts).backward()
        >>> (whole,) = torch.autograd.grad(balanced_segmentation_loss(logits, mask), logits)
        >>> counts.tolist(), torch.allclose(logits.grad, whole)
        ([4, 1], True)
    """
    check_shape("mask", mask, "B H W")
    check_integer("mask", mask)
    check_int("ignore_index", ignore_index)
    ids = mask.long()  # uint8 wraps an ignore_index of -1 around
    known = ids != ignore_index
    return torch.stack([(known & (ids == 0)).sum(), (known & (ids != 0)).sum()])


def patch_token_contrast_counts(mask: Tensor, *, ignore_index: int = 255) -> Tensor:
    r"""Count the positive and the negative pairs of patches of a batch.

    .. math::

        n_+ = \sum_b \sum_c n_{bc} (n_{bc} - 1), \qquad
        n_- = \sum_b \Bigl( \bigl( \sum_c n_{bc} \bigr)^2 - \sum_c n_{bc}^2 \Bigr)

    with :math:`n_{bc}` patches of label :math:`c` in image :math:`b`: the numbers that
    :func:`~wsss_blocks.losses.patch_token_contrast_loss` divides by; those of micro-batches add up
    to those of the batch.

    Args:
        mask: ``(B, h, w)`` labels of any integer value.
        ignore_index: label of patches that take no part.

    Returns:
        ``(2,)`` int64: positive, negative.

    Raises:
        ValueError: wrong shape.
        TypeError: ``mask`` is not integer.

    Example:
        >>> import torch
        >>> from wsss_blocks.losses import patch_token_contrast_loss
        >>> features, mask = torch.ones(3, 4, 1, 3), torch.tensor([[[0, 0, 1]]] * 3)
        >>> batches = [(features[:1], mask[:1]), (features[1:], mask[1:])]
        >>> counts = sum(patch_token_contrast_counts(m) for _, m in batches)
        >>> shares = [patch_token_contrast_loss(*batch, counts=counts) for batch in batches]
        >>> whole = patch_token_contrast_loss(features, mask)
        >>> print(counts.tolist(), f"{sum(shares):.4f} {whole:.4f}")
        [6, 12] 0.5000 0.5000
    """
    check_shape("mask", mask, "B h w")
    check_integer("mask", mask)
    check_int("ignore_index", ignore_index)
    ids = mask.flatten(1).long().contiguous().sort(1).values  # searchsorted warns of strides
    known = ids != ignore_index
    # patches of one label lie side by side, so their number is the distance of their borders
    alike = torch.searchsorted(ids, ids, right=True) - torch.searchsorted(ids, ids)
    squares = (alike * known).sum()  # of n_bc, since each of n_bc patches brings n_bc
    num_known = known.sum(1)
    return torch.stack([squares - num_known.sum(), num_known.square().sum() - squares])


def cross_contrastive_counts(mask: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Count the images that have a region of a class with a label.

    The number that :func:`~wsss_blocks.losses.cross_contrastive_loss` divides by; those of
    micro-batches add up to that of the batch.

    Args:
        mask: ``(B, h, w)`` integer regions, 0 background.
        labels: ``(B, K)`` multi-hot, no background column.
        ignore_index: id of pixels that take no part.

    Returns:
        Scalar int64.

    Raises:
        ValueError: wrong shape, device, mask ids or label values.
        TypeError: ``mask`` is not integer.

    Example:
        >>> import torch
        >>> from wsss_blocks.losses import cross_contrastive_loss
        >>> x, mask, labels = torch.ones(3, 4, 1, 2), torch.tensor([[[0, 1]]] * 3), torch.ones(3, 1)
        >>> batches = [(x[:1], mask[:1], labels[:1]), (x[1:], mask[1:], labels[1:])]
        >>> counts = sum(cross_contrastive_counts(m, y) for _, m, y in batches)
        >>> texts = torch.ones(1, 4), torch.ones(1, 4)
        >>> shares = [cross_contrastive_loss(*batch, *texts, counts=counts) for batch in batches]
        >>> print(f"{sum(shares):.4f} {cross_contrastive_loss(x, mask, labels, *texts):.4f}")
        1.3870 1.3870
    """
    check_shape("mask", mask, "B h w")
    check_integer("mask", mask)
    check_shape("labels", labels, "B K", B=mask.shape[0])
    num_classes = labels.shape[1]
    check_labels(labels, batch=mask.shape[0], num_classes=num_classes, device=mask.device)
    check_mask_values("mask", mask, num_classes=num_classes + 1, ignore_index=ignore_index)
    ids = known_ids(mask, labels, ignore_index=ignore_index)
    return contrasted_images(ids, ignore_index=ignore_index)


def global_implicit_alignment_counts(labels: Tensor) -> Tensor:
    """Count the images that have a class.

    The number that :func:`~wsss_blocks.losses.global_implicit_alignment_loss` divides by with
    ``reduction="mean"``; those of micro-batches add up to that of the batch.

    Args:
        labels: ``(B, K)`` multi-hot, no background column.

    Returns:
        Scalar int64.

    Raises:
        ValueError: wrong shape or label values.

    Example:
        >>> import torch
        >>> from wsss_blocks.losses import global_implicit_alignment_loss
        >>> token, labels, text = torch.eye(3, 4), torch.eye(3, 2), torch.eye(4)[1:]
        >>> batches = [(token[:1], labels[:1]), (token[1:], labels[1:])]
        >>> counts = sum(global_implicit_alignment_counts(y) for _, y in batches)
        >>> texts = text[:2], text[2:]
        >>> shares = [global_implicit_alignment_loss(*b, *texts, counts=counts) for b in batches]
        >>> print(f"{sum(shares):.4f} {global_implicit_alignment_loss(token, labels, *texts):.4f}")
        3.3026 3.3026
    """
    check_shape("labels", labels, "B K")
    batch, num_classes = labels.shape
    check_labels(labels, batch=batch, num_classes=num_classes, device=labels.device)
    return (labels > 0).any(1).sum()
