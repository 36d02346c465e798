"""Cross-contrastive loss: image regions against class and background text, both ways.

DALNet, "DIAL: Dense Image-text ALignment for Weakly Supervised Semantic Segmentation", ECCV 2024.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsss_blocks._numerics import l2_normalize
from wsss_blocks.distributed import all_gather_with_grad
from wsss_blocks.losses._shares import check_counts, contrasted_images, share
from wsss_blocks.losses._text_regions import check_options, check_regions, known_ids, region_anchors

__all__ = ["CrossContrastiveLoss", "cross_contrastive_loss"]

Variant = Literal["background", "classes", "denominator", "batch"]
Pool = Literal["region", "token"]

_NEVER = -1e9  # logit of what does not exist; finite, because logsumexp of -inf has a NaN gradient


def cross_contrastive_loss(
    features: Tensor,
    mask: Tensor,
    labels: Tensor,
    class_text: Tensor,
    background_text: Tensor,
    *,
    temperature: float = 1.0,
    background_weight: float = 1e-3,
    variant: Variant = "background",
    pool: Pool = "region",
    ignore_index: int = 255,
    gather_distributed: bool = False,
    counts: Tensor | None = None,
) -> Tensor:
    r"""Contrast the regions of an image with the text of their classes and of the background.

    With region embeddings :math:`v_c, v_b` (mean of the normalised features of a class, of the
    background, normalised again), texts :math:`t_c, t_b`, :math:`e(x, y) = \exp(\cos(x, y) / \tau)`
    and the classes :math:`C^+` that have both a label and a region:

    .. math::

        L_{v2t} &= -\frac{1}{|C^+|} \sum_{c \in C^+}
                   \log \frac{e(v_c, t_c)}{e(v_c, t_c) + e(v_c, t_b)} \\
        L_{t2v} &= -\frac{1}{|C^+|} \sum_{c \in C^+}
                   \log \frac{e(t_c, v_c)}{e(t_c, v_c) + e(t_c, v_b)} \\
        L_{bg} &= -\log \frac{e(v_b, t_b)}{e(v_b, t_b) + \sum_{c \in C^+} e(v_b, t_c)} \\
        L &= L_{v2t} + L_{t2v} + \lambda L_{bg}

    averaged over the images with a :math:`C^+`. Without :math:`v_b`, :math:`L = L_{v2t}`.

    Reference:
        DIAL, https://arxiv.org/abs/2409.15801, Eq. (6). The text of Eq. (6) was **not recovered**:
        this loss is inferred from the abstract and the supplementary (what is pulled and pushed;
        :math:`\tau`, best at 1.0; :math:`\lambda`, "related to the background", best at 0.001).

    Note:
        Other readings, most plausible first: ``variant="classes"`` adds the texts of all other
        classes to the negatives of :math:`L_{v2t}`; ``variant="denominator"`` moves :math:`\lambda`
        onto the background in the denominators of :math:`L_{v2t}` and :math:`L_{t2v}`
        (:math:`L_{bg}` then has weight 1); ``pool="token"`` makes each patch an anchor and averages
        the losses of a region, with the mean of :math:`e(t_c, v_i)` over the background patches as
        :math:`e(t_c, v_b)`; ``variant="batch"`` takes the background of every image in the batch
        (with ``gather_distributed``: of all ranks) as a negative in :math:`L_{t2v}`, so that its
        shares with ``counts`` do not add up: a micro-batch lacks the negatives of the others.

    Args:
        features: ``(B, D, h, w)`` patch embeddings in the text space; normalised here, like texts.
        mask: ``(B, h, w)`` integer regions, 0 background; pixels of a class that ``labels`` says
            is absent are ignored.
        labels: ``(B, K)`` multi-hot, no background column.
        class_text: ``(K, D)`` text embedding per class; not detached.
        background_text: ``(M, D)`` prompts, not detached; :math:`e(v, t_b)` is the mean over them.
        temperature: :math:`\tau`.
        background_weight: :math:`\lambda`.
        variant: "background", "classes", "denominator" or "batch".
        pool: "region" or "token".
        ignore_index: id of pixels that take no part.
        gather_distributed: count the images of all ranks ("batch" needs one ``B`` on all ranks).
        counts: number to divide by, :func:`~wsss_blocks.losses.cross_contrastive_counts` of all
            micro-batches of a step, whose losses then add up. None: that of this batch.

    Returns:
        Scalar; float32 for half inputs, else the dtype of ``features``.

    Raises:
        ValueError: wrong shape, device, ids, labels, counts or option, NaN or infinite values.
        TypeError: ``features`` or a text is not floating-point, or ``mask`` is not integer.

    Example:
        >>> import torch
        >>> features, text = torch.ones(1, 4, 2, 2), torch.eye(4)
        >>> mask, labels = torch.tensor([[[0, 1], [1, 1]]]), torch.tensor([[1, 0]])
        >>> loss = cross_contrastive_loss(features, mask, labels, text[:2], text[2:3])
        >>> print(f"{loss:.4f}")  # (2 + 0.001) log 2: all similarities are equal
        1.3870
    """
    check_options(temperature, background_weight, variant, pool)
    check_regions(features, mask, labels, class_text, background_text, ignore_index=ignore_index)
    check_counts(counts, "", other_name="features", other=features)
    with torch.autocast(features.device.type, enabled=False):
        ids = known_ids(mask, labels, ignore_index=ignore_index)
        anchors = region_anchors(
            features, ids, num_classes=len(class_text) + 1, pool=pool, ignore_index=ignore_index
        )
        v, own, background = anchors.embedding, anchors.own, anchors.background
        to_class = v @ l2_normalize(class_text).to(v.dtype).T / temperature  # (B, A, K)
        to_prompt = v @ l2_normalize(background_text).to(v.dtype).T / temperature
        to_background = to_prompt.logsumexp(-1) - math.log(len(background_text))  # (B, A)
        hit = (own * to_class).sum(-1)
        shift, weight_bg = 0.0, background_weight
        if variant == "denominator":
            shift, weight_bg = (math.log(weight_bg) if weight_bg > 0 else _NEVER), 1.0

        if variant == "classes":
            loss_v2t = torch.cat([to_class, to_background[..., None]], -1).logsumexp(-1) - hit
        else:
            loss_v2t = F.softplus(to_background - hit + shift)
        region = to_class.masked_fill(background[..., None] == 0, _NEVER).logsumexp(1)
        region = region - anchors.num_background.log()  # (B, K): text c to the background region
        if variant == "batch":
            region = all_gather_with_grad(region) if gather_distributed else region
            region = region.logsumexp(0, keepdim=True)
        loss_t2v = F.softplus((own * region[:, None]).sum(-1) - hit + shift)
        rivals = to_class.masked_fill(~anchors.present[:, None], _NEVER).logsumexp(-1)
        loss_bg = F.softplus(rivals - to_background) * background / anchors.num_background
        total = (anchors.weight * (loss_v2t + loss_t2v) + weight_bg * loss_bg).sum()
    counts = contrasted_images(ids, ignore_index=ignore_index) if counts is None else counts
    return share(total, counts, gather_distributed=gather_distributed)


class CrossContrastiveLoss(nn.Module):
    """Contrast image regions with class and background text (module form).

    Takes the keyword arguments of :func:`cross_contrastive_loss`; ``counts`` per call.

    Shape:
        - features: ``(B, D, h, w)``
        - mask: ``(B, h, w)``
        - labels: ``(B, K)``
        - class_text, background_text: ``(K, D)``, ``(M, D)``
        - output: scalar

    Example:
        >>> import torch
        >>> args = torch.ones(1, 3, 1, 2), torch.tensor([[[0, 1]]]), torch.ones(1, 1)
        >>> print(f"{CrossContrastiveLoss()(*args, torch.ones(1, 3), torch.ones(1, 3)):.4f}")
        1.3870
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        background_weight: float = 1e-3,
        variant: Variant = "background",
        pool: Pool = "region",
        ignore_index: int = 255,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        check_options(temperature, background_weight, variant, pool)
        self.temperature = temperature
        self.background_weight = background_weight
        self.variant = variant
        self.pool = pool
        self.ignore_index = ignore_index
        self.gather_distributed = gather_distributed

    def forward(
        self,
        features: Tensor,
        mask: Tensor,
        labels: Tensor,
        class_text: Tensor,
        background_text: Tensor,
        *,
        counts: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of the patch features under the regions of ``mask``."""
        return cross_contrastive_loss(
            features,
            mask,
            labels,
            class_text,
            background_text,
            temperature=self.temperature,
            background_weight=self.background_weight,
            variant=self.variant,
            pool=self.pool,
            ignore_index=self.ignore_index,
            gather_distributed=self.gather_distributed,
            counts=counts,
        )
