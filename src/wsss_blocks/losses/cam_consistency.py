"""Consistency of class maps with and without infused class tokens (CTI, CVPR 2024)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsss_blocks._validate import check_labels, check_positive, check_shape
from wsss_blocks.losses._map_pairs import check_pair, own_ranges
from wsss_blocks.losses._shares import check_counts, share

__all__ = ["CAMConsistencyLoss", "cam_consistency_counts", "cam_consistency_loss"]


def cam_consistency_loss(
    cam: Tensor,
    other: Tensor,
    *,
    labels: Tensor | None = None,
    eps: float = 1e-5,
    gather_distributed: bool = False,
    counts: Tensor | None = None,
) -> Tensor:
    r"""Average the absolute difference of two sets of maps, each brought to its own range.

    .. math::

        L = \frac{1}{n} \sum_{(b, c) \in P} \frac{1}{h w} \sum_p
            \bigl| \hat M_{bc}(p) - \hat M'_{bc}(p) \bigr|, \qquad
        \hat z = \frac{\mathrm{ReLU}(x - \min x - \epsilon)}{\max x - \min x + \epsilon}, \;
        x = \mathrm{ReLU}(z)

    over the n maps of P, by default all of them;
    :func:`~wsss_blocks.cam.normalize_cam` with mode "cti", in at least float32. Both sides carry
    gradient.

    Reference:
        "Class Tokens Infusion for Weakly Supervised Semantic Segmentation" (CTI), CVPR 2024, as in
        its released code. Intra-image: all patch CAMs, background included, against those of the
        same image with the class tokens of another view. Cross-image: the patch CAMs of the classes
        against :func:`~wsss_blocks.cam.fuse_cams` of the pass with tokens of other images.

    Note:
        The released code compares absent classes too, whose noise the normalisation stretches to
        [0, 1]; ``labels`` leaves them out. Where a map's range is near :math:`\epsilon` its slope
        is near :math:`1 / \epsilon`.

    Args:
        cam: ``(B, K, h, w)`` maps, or ``(B, K + 1, h, w)`` with background at channel 0.
        other: maps of the same shape.
        labels: ``(B, K)`` multi-hot; maps of absent classes take no part, that of background always
            does. None: all maps do.
        eps: the :math:`\epsilon` of the normalisation.
        gather_distributed: count the maps of all ranks.
        counts: number of maps to divide by, that of all micro-batches of a step
            (:func:`cam_consistency_counts`), whose losses then add up. None: that of this batch.

    Returns:
        Scalar in ``[0, 1]``; float32 for half inputs, else the dtype of ``cam``.

    Raises:
        ValueError: wrong shape, device, label values, ``eps`` or ``counts``, NaN or infinite maps.
        TypeError: the maps are not floating-point.

    Example:
        >>> import torch
        >>> cam = torch.tensor([[[[0.0, 4.0]], [[0.0, 1.0]]]])
        >>> other = torch.tensor([[[[0.0, 9.0]], [[1.0, 0.0]]]])
        >>> print(f"{cam_consistency_loss(cam, other):.4f}")
        0.5000
        >>> print(f"{cam_consistency_loss(cam, other, labels=torch.tensor([[1, 0]])):.4f}")
        0.0000
    """
    check_positive("eps", eps)
    check_shape("cam", cam, "B K h w")
    batch, kinds, h, w = cam.shape
    check_shape("other", other, "B K h w", B=batch, K=kinds, h=h, w=w)
    check_pair(cam=cam, other=other)
    background = False
    if labels is not None:
        background = (
            isinstance(labels, Tensor) and labels.ndim == 2 and 0 < labels.shape[1] == kinds - 1
        )
        num_classes = kinds - int(background)
        check_labels(labels, batch=batch, num_classes=num_classes, device=cam.device)
    check_counts(counts, "", other_name="cam", other=cam)

    x, y = own_ranges(cam, other, eps=eps)
    each = (x - y).abs().mean((2, 3))
    if labels is not None:
        each = each.where(F.pad(labels > 0, (int(background), 0), value=True), 0)
    if counts is None and labels is not None:
        counts = cam_consistency_counts(labels, background=background)
    elif counts is None:
        counts = torch.full((), batch * kinds, device=each.device)
    return share(each.sum(), counts, gather_distributed=gather_distributed)


class CAMConsistencyLoss(nn.Module):
    """Average the absolute difference of two sets of maps (module form).

    See :func:`cam_consistency_loss`.

    Args:
        eps: the epsilon of the normalisation.
        gather_distributed: count the maps of all ranks.

    Shape:
        - cam, other: ``(B, K, h, w)`` or ``(B, K + 1, h, w)``
        - labels: ``(B, K)``
        - output: scalar

    Example:
        >>> import torch
        >>> cam = torch.rand(2, 20, 14, 14)
        >>> CAMConsistencyLoss()(cam, cam)
        tensor(0.)
    """

    def __init__(self, *, eps: float = 1e-5, gather_distributed: bool = False) -> None:
        super().__init__()
        check_positive("eps", eps)
        self.eps, self.gather_distributed = eps, gather_distributed

    def forward(
        self,
        cam: Tensor,
        other: Tensor,
        *,
        labels: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of the two sets of maps."""
        return cam_consistency_loss(
            cam,
            other,
            labels=labels,
            eps=self.eps,
            gather_distributed=self.gather_distributed,
            counts=counts,
        )

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"eps={self.eps}, gather_distributed={self.gather_distributed}"


def cam_consistency_counts(labels: Tensor, *, background: bool = False) -> Tensor:
    """Count the maps that are compared.

    The number that :func:`cam_consistency_loss` divides by when it is given ``labels`` (without
    them, B times the channels); those of micro-batches add up to that of the batch.

    Args:
        labels: ``(B, K)`` multi-hot.
        background: the maps have a background channel.

    Returns:
        Scalar int64.

    Raises:
        ValueError: wrong shape or label values.

    Example:
        >>> import torch
        >>> cam_consistency_counts(torch.tensor([[1, 1], [0, 0]]), background=True)
        tensor(4)
    """
    check_shape("labels", labels, "B K")
    batch, num_classes = labels.shape
    check_labels(labels, batch=batch, num_classes=num_classes, device=labels.device)
    return (labels > 0).sum() + batch * int(background)
