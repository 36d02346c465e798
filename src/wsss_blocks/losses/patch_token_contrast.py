"""Patch token contrast: same-label patches alike, others not (ToCo, CVPR 2023)."""

import torch
from torch import Tensor, nn

from wsss_blocks._numerics import l2_normalize
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_int,
    check_integer,
    check_same_device,
    check_shape,
)
from wsss_blocks.losses._shares import check_counts, share
from wsss_blocks.losses.counts import patch_token_contrast_counts

__all__ = ["PatchTokenContrastLoss", "patch_token_contrast_loss"]


def patch_token_contrast_loss(
    features: Tensor,
    mask: Tensor,
    *,
    ignore_index: int = 255,
    gather_distributed: bool = False,
    counts: Tensor | None = None,
) -> Tensor:
    r"""Make patches of one label alike and patches of different labels orthogonal.

    .. math::

        L = \frac{1}{2} \Bigl( 1 - \frac{1}{n_+} \sum_{M_i = M_j} S_{ij} \Bigr)
          + \frac{1}{2} \, \frac{1}{n_-} \sum_{M_i \ne M_j} S_{ij}, \qquad
        S_{ij} = |\cos(z_i, z_j)|

    over the pairs :math:`i \ne j` of patches of one image whose labels are both known; the counts
    :math:`n_+, n_-` are those of the batch.

    Reference:
        Token Contrast for Weakly-Supervised Semantic Segmentation (patch token contrast),
        https://arxiv.org/abs/2303.01267

    Note:
        The released code divides by the counts plus one, so that a batch without a positive pair
        costs a constant 0.5 and a small region is pulled less. Here the counts divide, and a half
        without any pair vanishes.

    Args:
        features: ``(B, D, h, w)`` patch tokens as a map; normalised here.
        mask: ``(B, h, w)`` integer labels on the same grid, background included.
        ignore_index: label of patches that take no part.
        gather_distributed: count the pairs of all ranks.
        counts: ``(2,)`` numbers of pairs to divide by, those of all micro-batches of a step
            (:func:`~wsss_blocks.losses.patch_token_contrast_counts`), whose losses then add up.
            None: those of this batch.

    Returns:
        Scalar in ``[0, 1]``; float32 for half inputs, else the dtype of ``features``.

    Raises:
        ValueError: wrong shape or device, NaN or infinite ``features``, bad ``counts``.
        TypeError: ``features`` are not floating-point or ``mask`` is not integer.

    Example:
        >>> import torch
        >>> features = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).view(1, 2, 1, 3)
        >>> patch_token_contrast_loss(features, torch.tensor([[[0, 0, 1]]]))
        tensor(0.)
        >>> patch_token_contrast_loss(features, torch.tensor([[[0, 1, 255]]]))
        tensor(0.5000)
    """
    check_shape("features", features, "B D h w")
    check_floating("features", features)
    batch, _, h, w = features.shape
    check_shape("mask", mask, "B h w", B=batch, h=h, w=w)
    check_integer("mask", mask)
    check_same_device("mask", mask, "features", features)
    check_int("ignore_index", ignore_index)
    check_finite("features", features)
    check_counts(counts, "2", other_name="features", other=features)

    with torch.autocast(features.device.type, enabled=False):
        tokens = l2_normalize(features.flatten(2), dim=1)
        similarity = (tokens.transpose(1, 2) @ tokens).abs()
    ids = mask.flatten(1)
    known = ids.long() != ignore_index  # uint8 wraps an ignore_index of -1 around
    pair = known[:, :, None] & known[:, None, :]
    pair = pair & ~torch.eye(h * w, dtype=torch.bool, device=mask.device)
    same = ids[:, :, None] == ids[:, None, :]
    positive, negative = pair & same, pair & ~same
    pull = torch.where(positive, 1 - similarity, 0.0).sum()
    push = torch.where(negative, similarity, 0.0).sum()
    if counts is None:
        counts = patch_token_contrast_counts(mask, ignore_index=ignore_index)
    totals = torch.stack([pull, push])
    return share(totals, counts, gather_distributed=gather_distributed).sum() / 2


class PatchTokenContrastLoss(nn.Module):
    """Make patches of one label alike, others orthogonal (module form).

    See :func:`patch_token_contrast_loss`.

    Args:
        ignore_index: label of patches that take no part.
        gather_distributed: count the pairs of all ranks.

    Shape:
        - features: ``(B, D, h, w)``
        - mask: ``(B, h, w)``
        - output: scalar

    Example:
        >>> import torch
        >>> PatchTokenContrastLoss()(torch.ones(1, 4, 2, 2), torch.zeros(1, 2, 2).long())
        tensor(0.)
    """

    def __init__(self, *, ignore_index: int = 255, gather_distributed: bool = False) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.gather_distributed = gather_distributed

    def forward(self, features: Tensor, mask: Tensor, *, counts: Tensor | None = None) -> Tensor:
        """Return the loss of the patch tokens under the labels of ``mask``."""
        return patch_token_contrast_loss(
            features,
            mask,
            ignore_index=self.ignore_index,
            gather_distributed=self.gather_distributed,
            counts=counts,
        )

    def extra_repr(self) -> str:
        """Name the ignored label."""
        return f"ignore_index={self.ignore_index}"
