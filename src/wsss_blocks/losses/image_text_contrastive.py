"""Contrast of whole images with whole captions, both ways (CLIP; SimSeg, CVPR 2023)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsss_blocks._numerics import l2_normalize
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_integer,
    check_positive,
    check_same_device,
    check_shape,
    values_are_checked,
)
from wsss_blocks.distributed import all_gather_with_grad, rank

__all__ = ["ImageTextContrastiveLoss", "image_text_contrastive_loss"]


def image_text_contrastive_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    *,
    positives: Tensor | None = None,
    gather_distributed: bool = False,
) -> Tensor:
    r"""Find the caption of each image among all captions, and the image of each caption.

    .. math::

        L = -\frac{1}{2B} \sum_{i,j} q_{ij} \Bigl(
            \log \frac{\exp(s \cos(z_i, t_j))}{\sum_k \exp(s \cos(z_i, t_k))} +
            \log \frac{\exp(s \cos(z_j, t_i))}{\sum_k \exp(s \cos(z_k, t_i))} \Bigr)

    with :math:`q_{ij} = 1` for :math:`i = j` and 0 elsewhere; with groups, :math:`q_{ij} = 1 / n_i`
    for the :math:`n_i` pairs of the group of :math:`i`.

    Reference:
        Yi et al., "A Simple Framework for Text-Supervised Semantic Segmentation", CVPR 2023,
        eq. 5: https://doi.org/10.1109/CVPR52729.2023.00683, on pooled features. As in CLIP,
        https://arxiv.org/abs/2103.00020, figure 3, and in the released code the similarity is a
        cosine; eq. 4 of the paper has no norm. Groups are in neither.

    Note:
        Under ranks each computes the rows of its own images and captions against those of all
        ranks, at most ``(B, W * B)`` logits per direction. The value on a rank is the mean over its
        own rows; its average over ranks, and the average of the gradients that
        DistributedDataParallel takes, are those of one process with the whole batch. A scale
        outside of DistributedDataParallel has to be averaged by its owner.

    Args:
        image: ``(B, D)`` of any norm.
        text: ``(B, D)``, caption ``i`` belongs to image ``i``.
        logit_scale: :math:`s = 1 / \tau > 0`, a number or a tensor with one value.
        positives: ``(B,)`` integer id of a group per pair: all captions of a group fit all of its
            images. Pairs of other ranks with the same id belong to it, so an id must mean the same
            on all ranks: that of an image in the data set, not a position in a batch. None: each
            pair for itself.
        gather_distributed: contrast with the pairs of all ranks; wants one B on all ranks.

    Returns:
        Scalar >= 0; float32 for half inputs, else the dtype of ``image``.

    Raises:
        ValueError: wrong shape or device, NaN or infinite values, a scale that is not positive.
        TypeError: features are not floating-point, or ids not integers.

    Example:
        >>> import torch
        >>> image, text = torch.eye(2), torch.tensor([[2.0, 0.0], [0.0, 3.0]])
        >>> print(f"{image_text_contrastive_loss(image, text, 1.0):.4f}")
        0.3133
        >>> same = torch.tensor([7, 7])  # two captions of one image
        >>> print(f"{image_text_contrastive_loss(image, text, 1.0, positives=same):.4f}")
        0.8133
    """
    check_shape("image", image, "B D")
    check_floating("image", image)
    batch, dim = image.shape
    check_shape("text", text, "B D", B=batch, D=dim)
    check_floating("text", text)
    check_same_device("text", text, "image", image)
    if positives is not None:
        check_shape("positives", positives, "B", B=batch)
        check_integer("positives", positives)
        check_same_device("positives", positives, "image", image)
    check_finite("image", image)
    check_finite("text", text)
    scale = _checked_scale(logit_scale, image)

    with torch.autocast(image.device.type, enabled=False):
        unit = l2_normalize(image)
        caption = l2_normalize(text).to(unit.dtype)
        scale = scale.to(unit.dtype) if isinstance(scale, Tensor) else scale
        images, captions, groups, first = unit, caption, positives, 0
        if gather_distributed:
            images, captions = all_gather_with_grad(unit), all_gather_with_grad(caption)
            groups = None if positives is None else all_gather_with_grad(positives)
            first = rank() * batch
        if positives is None or groups is None:
            target = torch.arange(first, first + batch, device=image.device)
        else:
            target = positives[:, None] == groups
        total = _entropy(scale * (unit @ captions.T), target) + _entropy(
            scale * (caption @ images.T), target
        )
    return total / (2 * max(batch, 1))


class ImageTextContrastiveLoss(nn.Module):
    """Contrast images with captions (module form).

    See :func:`image_text_contrastive_loss`.

    Args:
        gather_distributed: contrast with the pairs of all ranks.

    Shape:
        - image, text: ``(B, D)``
        - logit_scale: scalar
        - positives: ``(B,)``
        - output: scalar

    Example:
        >>> import torch
        >>> loss = ImageTextContrastiveLoss()
        >>> print(f"{loss(torch.ones(8, 512), torch.ones(8, 512), 1 / 0.07):.4f}")  # log 8
        2.0794
    """

    def __init__(self, *, gather_distributed: bool = False) -> None:
        super().__init__()
        self.gather_distributed = gather_distributed

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor | float,
        *,
        positives: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of the features of a batch of pairs."""
        return image_text_contrastive_loss(
            image,
            text,
            logit_scale,
            positives=positives,
            gather_distributed=self.gather_distributed,
        )

    def extra_repr(self) -> str:
        """Show the setting."""
        return f"gather_distributed={self.gather_distributed}"


def _checked_scale(value: Tensor | float, image: Tensor) -> Tensor | float:
    if not isinstance(value, Tensor):
        check_positive("logit_scale", value)
        return value
    check_floating("logit_scale", value)
    if value.numel() != 1:
        raise ValueError(f"logit_scale must hold one value, got shape {tuple(value.shape)}.")
    check_same_device("logit_scale", value, "image", image)
    check_finite("logit_scale", value)
    if values_are_checked(value) and float(value.detach()) <= 0:
        raise ValueError(f"logit_scale must be positive, got {float(value.detach()):.4g}.")
    return value.reshape(())


def _entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Sum the cross entropy of rows; ``target`` is one column (R,) or any of them (R, C) bool."""
    if target.ndim == 1:
        return F.cross_entropy(logits, target, reduction="sum")
    # not of log_softmax, which would be one more matrix: the weights of a row add up to 1
    hits = logits.where(target, 0).sum(1) / target.sum(1)
    return (logits.logsumexp(1) - hits).sum()
