"""Segmentation loss: plain cross-entropy over the pixels that have a label (DHR, ECCV 2024)."""

from torch import Tensor, nn

from wsss_blocks._validate import check_int, check_integer, check_shape
from wsss_blocks.losses._pixels import pixel_losses
from wsss_blocks.losses._shares import check_counts, share

__all__ = ["SegmentationLoss", "segmentation_counts", "segmentation_loss"]


def segmentation_loss(
    logits: Tensor,
    mask: Tensor,
    *,
    ignore_index: int = 255,
    gather_distributed: bool = False,
    counts: Tensor | None = None,
) -> Tensor:
    r"""Average the cross-entropy of the pixels that have a label.

    .. math:: L = \frac{1}{\max(n, 1)} \sum_{M_i \ne \text{ignored}} \mathrm{CE}_i

    over the :math:`n` pixels of the batch that are not ignored. Each pixel weighs the same, so
    that background, which has most of them, weighs most:
    :func:`~wsss_blocks.losses.balanced_segmentation_loss` gives it half of the weight.

    Reference:
        "DHR: Dual Features-Driven Hierarchical Rebalancing in Inter- and Intra-Class Regions for
        Weakly-Supervised Semantic Segmentation", ECCV 2024, https://arxiv.org/abs/2404.00380: its
        segmentation loss, inferred from the released code.

    Note:
        The released code brings the mask to the size of the logits (nearest neighbour); here the
        logits are brought to that of the mask: hand over a mask of their size for the former. Its
        mean is NaN for a batch that is wholly ignored; here that is a differentiable zero.

    Args:
        logits: ``(B, C, h, w)`` with background at channel 0; resized bilinearly
            (``align_corners=False``) to the mask where the sizes differ.
        mask: ``(B, H, W)`` ids in ``[0, C)`` or ``ignore_index``, any integer dtype.
        ignore_index: id of pixels that take no part.
        gather_distributed: count the pixels of all ranks.
        counts: number of pixels to divide by, that of all micro-batches of a step
            (:func:`segmentation_counts`), whose losses then add up. None: that of this batch.

    Returns:
        Scalar; float32 for half inputs, else the dtype of ``logits``.

    Raises:
        ValueError: wrong shape, device or mask ids, NaN or infinite ``logits``, bad ``counts``.
        TypeError: ``logits`` are not floating-point or ``mask`` is not integer.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[[0, 0, 0, 1], [0, 0, 0, 255]]])
        >>> print(f"{segmentation_loss(torch.zeros(1, 2, 1, 2), mask):.4f}")
        0.6931
        >>> segmentation_loss(torch.zeros(1, 2, 1, 2), torch.full((1, 2, 2), 255))
        tensor(0.)
    """
    loss, mask = pixel_losses(logits, mask, ignore_index=ignore_index)
    check_counts(counts, "", other_name="logits", other=logits)
    if counts is None:
        counts = segmentation_counts(mask, ignore_index=ignore_index)
    return share(loss.sum(), counts, gather_distributed=gather_distributed)


class SegmentationLoss(nn.Module):
    """Average the cross-entropy of the pixels that have a label (module form).

    See :func:`segmentation_loss`.

    Args:
        ignore_index: id of pixels that take no part.
        gather_distributed: count the pixels of all ranks.

    Shape:
        - logits: ``(B, C, h, w)``
        - mask: ``(B, H, W)``
        - output: scalar

    Example:
        >>> import torch
        >>> loss = SegmentationLoss()(torch.zeros(1, 21, 2, 2), torch.zeros(1, 4, 4).long())
        >>> print(f"{loss:.4f}")  # log 21
        3.0445
    """

    def __init__(self, *, ignore_index: int = 255, gather_distributed: bool = False) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.gather_distributed = gather_distributed

    def forward(self, logits: Tensor, mask: Tensor, *, counts: Tensor | None = None) -> Tensor:
        """Return the loss of ``logits`` against the pseudo-labels in ``mask``."""
        return segmentation_loss(
            logits,
            mask,
            ignore_index=self.ignore_index,
            gather_distributed=self.gather_distributed,
            counts=counts,
        )

    def extra_repr(self) -> str:
        """Name the ignored id."""
        return f"ignore_index={self.ignore_index}"


def segmentation_counts(mask: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Count the pixels of a batch that have a label.

    The number that :func:`segmentation_loss` divides by; those of micro-batches add up to that of
    the batch.

    Args:
        mask: ``(B, H, W)`` ids, any integer dtype.
        ignore_index: id of pixels that take no part.

    Returns:
        Scalar int64.

    Raises:
        ValueError: wrong shape.
        TypeError: ``mask`` is not integer.

    Example:
        >>> import torch
        >>> logits, mask = torch.zeros(3, 2, 1, 2), torch.tensor([[[0, 1]], [[0, 0]], [[255, 0]]])
        >>> batches = [(logits[:1], mask[:1]), (logits[1:], mask[1:])]
        >>> counts = sum(segmentation_counts(m) for _, m in batches)
        >>> shares = [segmentation_loss(*batch, counts=counts) for batch in batches]
        >>> print(int(counts), f"{sum(shares):.4f} {segmentation_loss(logits, mask):.4f}")
        5 0.6931 0.6931
    """
    check_shape("mask", mask, "B H W")
    check_integer("mask", mask)
    check_int("ignore_index", ignore_index)
    return (mask.long() != ignore_index).sum()  # uint8 wraps an ignore_index of -1 around
