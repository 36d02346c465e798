"""Balanced segmentation loss: background and foreground weigh the same (AFA, ToCo)."""

import torch
from torch import Tensor, nn

from wsss_blocks.losses._pixels import pixel_losses
from wsss_blocks.losses._shares import check_counts, share
from wsss_blocks.losses.counts import balanced_segmentation_counts

__all__ = ["BalancedSegmentationLoss", "balanced_segmentation_loss"]


def balanced_segmentation_loss(
    logits: Tensor,
    mask: Tensor,
    *,
    ignore_index: int = 255,
    gather_distributed: bool = False,
    counts: Tensor | None = None,
) -> Tensor:
    r"""Average the cross-entropy of background and of foreground pixels with half weight each.

    .. math::

        L = \frac{1}{2} \, \frac{1}{\max(n_0, 1)} \sum_{M_i = 0} \mathrm{CE}_i
          + \frac{1}{2} \, \frac{1}{\max(n_1, 1)} \sum_{M_i > 0} \mathrm{CE}_i

    over all pixels of the batch that are not ignored.

    Reference:
        Learning Affinity from Attention, https://arxiv.org/abs/2203.02664, and Token Contrast,
        https://arxiv.org/abs/2303.01267: the segmentation loss of their released code.

    Note:
        The released code takes the plain mean of each half, which is NaN for a crop without
        foreground, without background or wholly ignored. Here such a half is a differentiable zero.

    Args:
        logits: ``(B, C, h, w)`` with background at channel 0; resized bilinearly
            (``align_corners=False``) to the mask where the sizes differ.
        mask: ``(B, H, W)`` ids in ``[0, C)`` or ``ignore_index``, any integer dtype.
        ignore_index: id of pixels that take no part.
        gather_distributed: count the pixels of all ranks.
        counts: ``(2,)`` numbers of pixels to divide by, those of all micro-batches of a step
            (:func:`~wsss_blocks.losses.balanced_segmentation_counts`), whose losses then add up.
            None: those of this batch.

    Returns:
        Scalar; float32 for half inputs, else the dtype of ``logits``.

    Raises:
        ValueError: wrong shape, device or mask ids, NaN or infinite ``logits``, bad ``counts``.
        TypeError: ``logits`` are not floating-point or ``mask`` is not integer.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[[0, 0, 0, 1], [0, 0, 0, 255]]])
        >>> print(f"{balanced_segmentation_loss(torch.zeros(1, 2, 1, 2), mask):.4f}")
        0.6931
        >>> balanced_segmentation_loss(torch.zeros(1, 2, 1, 2), torch.full((1, 2, 2), 255))
        tensor(0.)
    """
    loss, mask = pixel_losses(logits, mask, ignore_index=ignore_index)
    check_counts(counts, "2", other_name="logits", other=logits)
    known = mask != ignore_index
    parts = known & (mask == 0), known & (mask != 0)
    totals = torch.stack([torch.where(part, loss, 0.0).sum() for part in parts])
    if counts is None:
        counts = balanced_segmentation_counts(mask, ignore_index=ignore_index)
    return share(totals, counts, gather_distributed=gather_distributed).sum() / 2


class BalancedSegmentationLoss(nn.Module):
    """Average cross-entropy of background and foreground, half weight each (module form).

    See :func:`balanced_segmentation_loss`.

    Args:
        ignore_index: id of pixels that take no part.
        gather_distributed: count the pixels of all ranks.

    Shape:
        - logits: ``(B, C, h, w)``
        - mask: ``(B, H, W)``
        - output: scalar

    Example:
        >>> import torch
        >>> loss = BalancedSegmentationLoss()(torch.zeros(1, 21, 2, 2), torch.zeros(1, 4, 4).long())
        >>> print(f"{loss:.4f}")  # half of log 21: there is no foreground
        1.5223
    """

    def __init__(self, *, ignore_index: int = 255, gather_distributed: bool = False) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.gather_distributed = gather_distributed

    def forward(self, logits: Tensor, mask: Tensor, *, counts: Tensor | None = None) -> Tensor:
        """Return the loss of ``logits`` against the pseudo-labels in ``mask``."""
        return balanced_segmentation_loss(
            logits,
            mask,
            ignore_index=self.ignore_index,
            gather_distributed=self.gather_distributed,
            counts=counts,
        )

    def extra_repr(self) -> str:
        """Name the ignored id."""
        return f"ignore_index={self.ignore_index}"
