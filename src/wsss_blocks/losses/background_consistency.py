"""Background consistency: the background map is what the classes leave (CTI, CVPR 2024)."""

import torch
from torch import Tensor, nn

from wsss_blocks._validate import check_labels, check_positive, check_shape, check_tensor
from wsss_blocks.losses._map_pairs import check_pair, own_ranges
from wsss_blocks.losses._shares import check_counts, share

__all__ = [
    "BackgroundConsistencyLoss",
    "background_consistency_counts",
    "background_consistency_loss",
]


def background_consistency_loss(
    foreground: Tensor,
    background: Tensor,
    *,
    labels: Tensor | None = None,
    eps: float = 1e-5,
    gather_distributed: bool = False,
    counts: Tensor | None = None,
) -> Tensor:
    r"""Ask the map of a background token to be the complement of the classes' map.

    .. math::

        L_{bg} = \frac{1}{B h w} \sum_{b, p}
            \bigl| \, 1 - \hat G_b(p) - \hat K_b(p) \, \bigr|, \qquad
        \hat z = \frac{\mathrm{ReLU}(x - \min x - \epsilon)}{\max x - \min x + \epsilon}, \;
        x = \mathrm{ReLU}(z)

    with extremes over the positions of a map: :func:`~wsss_blocks.cam.normalize_cam` with mode
    "cti", in at least float32. Both maps carry gradient, so that the classes learn from the
    background too.

    Reference:
        "Class Tokens Infusion for Weakly Supervised Semantic Segmentation" (CTI), CVPR 2024,
        background loss, as in its released code: G is :func:`~wsss_blocks.cam.foreground_map` of
        the fused class maps, and both maps are propagated by the attention between patches first.

    Note:
        Where a map's range is near :math:`\epsilon` its slope is near :math:`1 / \epsilon`. For an
        image without any class G is 0: the released code then asks for background everywhere, which
        a map between its own extremes cannot give. ``labels`` leaves these images out.

    Args:
        foreground: ``(B, 1, h, w)`` map of the classes of the image, after propagation.
        background: ``(B, 1, h, w)`` map of the background token, likewise.
        labels: ``(B, K)`` multi-hot; images without any class take no part. None: all do.
        eps: the :math:`\epsilon` of the normalisation.
        gather_distributed: count the images of all ranks.
        counts: number of images to divide by, that of all micro-batches of a step
            (:func:`background_consistency_counts`), whose losses then add up. None: that of this
            batch.

    Returns:
        Scalar in ``[0, 1]``; float32 for half inputs, else the dtype of ``foreground``.

    Raises:
        ValueError: wrong shape, device, label values, ``eps`` or ``counts``, NaN or infinite maps.
        TypeError: a map is not floating-point.

    Example:
        >>> import torch
        >>> foreground = torch.tensor([[[[0.0, 2.0, 4.0]]]])
        >>> print(f"{background_consistency_loss(foreground, 4 - foreground):.4f}")
        0.0000
        >>> print(f"{background_consistency_loss(foreground, foreground):.4f}")
        0.6667
    """
    check_positive("eps", eps)
    check_shape("foreground", foreground, "B 1 h w")
    batch, _, h, w = foreground.shape
    check_shape("background", background, "B 1 h w", B=batch, h=h, w=w)
    check_pair(foreground=foreground, background=background)
    if labels is not None:
        _check_image_labels(labels)
        check_labels(labels, batch=batch, num_classes=labels.shape[1], device=foreground.device)
    check_counts(counts, "", other_name="foreground", other=foreground)

    fg, bg = own_ranges(foreground, background, eps=eps)
    each = (1 - fg - bg).abs().mean((1, 2, 3))
    if labels is not None:
        each = each.where((labels > 0).any(1), 0)
    if counts is None and labels is not None:
        counts = background_consistency_counts(labels)
    elif counts is None:
        counts = torch.full((), batch, device=each.device)
    return share(each.sum(), counts, gather_distributed=gather_distributed)


class BackgroundConsistencyLoss(nn.Module):
    """Ask the background map to be the complement of the classes' map (module form).

    See :func:`background_consistency_loss`.

    Args:
        eps: the epsilon of the normalisation.
        gather_distributed: count the images of all ranks.

    Shape:
        - foreground, background: ``(B, 1, h, w)``
        - labels: ``(B, K)``
        - output: scalar

    Example:
        >>> import torch
        >>> loss = BackgroundConsistencyLoss()
        >>> print(f"{loss(torch.rand(2, 1, 14, 14), torch.rand(2, 1, 14, 14)) < 1}")
        True
    """

    def __init__(self, *, eps: float = 1e-5, gather_distributed: bool = False) -> None:
        super().__init__()
        check_positive("eps", eps)
        self.eps, self.gather_distributed = eps, gather_distributed

    def forward(
        self,
        foreground: Tensor,
        background: Tensor,
        *,
        labels: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of the two maps."""
        return background_consistency_loss(
            foreground,
            background,
            labels=labels,
            eps=self.eps,
            gather_distributed=self.gather_distributed,
            counts=counts,
        )

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"eps={self.eps}, gather_distributed={self.gather_distributed}"


def background_consistency_counts(labels: Tensor) -> Tensor:
    """Count the images that have a class.

    The number that :func:`background_consistency_loss` divides by when it is given ``labels``
    (without them, the number of images); those of micro-batches add up to that of the batch.

    Args:
        labels: ``(B, K)`` multi-hot.

    Returns:
        Scalar int64.

    Raises:
        ValueError: wrong shape or label values.

    Example:
        >>> import torch
        >>> background_consistency_counts(torch.tensor([[1, 0], [0, 0], [1, 1]]))
        tensor(2)
    """
    _check_image_labels(labels)
    batch, num_classes = labels.shape
    check_labels(labels, batch=batch, num_classes=num_classes, device=labels.device)
    return (labels > 0).any(1).sum()


def _check_image_labels(labels: Tensor) -> None:
    check_tensor("labels", labels)
    check_shape("labels", labels, "B K")
