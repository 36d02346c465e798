"""Global implicit alignment: class token towards its classes' text, away from background text.

DALNet, "DIAL: Dense Image-text ALignment for Weakly Supervised Semantic Segmentation", ECCV 2024.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from wsss_blocks._numerics import l2_normalize
from wsss_blocks._validate import check_choice, check_labels, check_same_device, check_tensor
from wsss_blocks.losses._shares import check_counts, share
from wsss_blocks.losses._text_regions import check_embeddings, check_text
from wsss_blocks.losses.counts import global_implicit_alignment_counts

__all__ = ["GlobalImplicitAlignmentLoss", "global_implicit_alignment_loss"]

Similarity = Literal["tangent", "clamp", "shifted"]
Reduction = Literal["mean", "sum", "none"]

_KNEE = 0.1  # where -log goes over into its tangent: the slope is at most 1 / _KNEE
_EPS = 1e-4  # CLIMS' clamp


def global_implicit_alignment_loss(
    token: Tensor,
    labels: Tensor,
    class_text: Tensor,
    background_text: Tensor,
    *,
    similarity: Similarity = "tangent",
    reduction: Reduction = "mean",
    class_reduction: Literal["sum", "mean"] = "sum",
    gather_distributed: bool = False,
    counts: Tensor | None = None,
) -> Tensor:
    r"""Pull the class token to the text of its classes and push it off the background text.

    .. math::

        L_{im} = -\sum_{c} y_c \log s(v, t_c) - \log \bigl( 1 - \max_m s(v, b_m) \bigr)

    with the cosine similarity :math:`s`, the class token :math:`v` in the text space, class texts
    :math:`t_c` and background texts :math:`b_m`.

    Reference:
        DIAL, https://arxiv.org/abs/2409.15801, its global alignment loss (one background text),
        known from a third-party transcription. What happens at :math:`s \le 0` is inferred.

    Note:
        The cosine of two unrelated vectors is zero or less half of the time. "tangent" is the
        formula for :math:`s \ge 0.1` and its tangent below, so that there is no dead zone and no
        slope above 10; the background term is its mirror at ``1 - max(s, 0)``. "clamp" is CLIMS'
        clamp to ``[1e-4, 1 - 1e-4]``, without gradient outside; "shifted" uses ``(1 + s) / 2``,
        clamped likewise. Images without any class add nothing: they may show background.

    Args:
        token: ``(B, D)`` class token, projected to the text space; normalised here, like the texts.
        labels: ``(B, K)`` multi-hot, no background column.
        class_text: ``(K, D)`` text embedding per class.
        background_text: ``(M, D)`` background prompts: one in the paper; with a word list the most
            similar one counts; ``M = 0`` drops the term.
        similarity: "tangent", "clamp" or "shifted".
        reduction: "mean" over the images that have a class, "sum" or "none".
        class_reduction: "sum" over the classes of an image as in the paper, or their "mean".
        gather_distributed: with "mean", count the images of all ranks.
        counts: with "mean", number to divide by, that of all micro-batches of a step
            (:func:`~wsss_blocks.losses.global_implicit_alignment_counts`), whose losses then add
            up. None: that of this batch.

    Returns:
        Scalar, or ``(B,)`` for "none"; float32 for half inputs, else the dtype of ``token``.

    Raises:
        ValueError: wrong shape, device, label values, counts or option, NaN or infinite values.
        TypeError: ``token`` or a text is not floating-point.

    Example:
        >>> import torch
        >>> text = torch.eye(4)
        >>> token = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
        >>> labels = torch.tensor([[1, 1, 0]])
        >>> print(f"{global_implicit_alignment_loss(token, labels, text[:3], text[3:]):.4f}")
        0.6931
    """
    _check_options(similarity, reduction, class_reduction)
    check_embeddings("token", token, "B D")
    check_text("class_text", class_text, "K D", other_name="token", other=token)
    check_tensor("background_text", background_text)
    check_same_device("background_text", background_text, "token", token)
    prompts = len(background_text) if background_text.ndim else 1
    if prompts:
        check_text("background_text", background_text, "M D", other_name="token", other=token)
    check_labels(labels, batch=token.shape[0], num_classes=len(class_text), device=token.device)
    check_counts(counts, "", other_name="token", other=token)
    if counts is not None and reduction != "mean":
        raise ValueError(f'counts must be None without reduction="mean", got {reduction!r}.')

    with torch.autocast(token.device.type, enabled=False):
        v = l2_normalize(token)
        y = labels.to(v.dtype)
        loss = (y * _attract(v @ l2_normalize(class_text).to(v.dtype).T, similarity)).sum(1)
        if class_reduction == "mean":
            loss = loss / y.sum(1).clamp_min(_EPS)
        if prompts:
            background = (v @ l2_normalize(background_text).to(v.dtype).T).amax(1)
            loss = loss + torch.where((y > 0).any(1), _repel(background, similarity), 0.0)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if counts is None:
        counts = global_implicit_alignment_counts(labels)
    return share(loss.sum(), counts, gather_distributed=gather_distributed)


class GlobalImplicitAlignmentLoss(nn.Module):
    """Pull the class token to its classes' text, off the background text (module form).

    Takes the keyword arguments of :func:`global_implicit_alignment_loss`; ``counts`` per call.

    Shape:
        - token: ``(B, D)``
        - labels: ``(B, K)``
        - class_text: ``(K, D)``
        - background_text: ``(M, D)``
        - output: scalar, or ``(B,)`` for "none"

    Example:
        >>> import torch
        >>> loss = GlobalImplicitAlignmentLoss(reduction="none")
        >>> loss(torch.ones(2, 4), torch.ones(2, 3), torch.eye(4)[:3], torch.eye(4)[3:]).shape
        torch.Size([2])
    """

    def __init__(
        self,
        *,
        similarity: Similarity = "tangent",
        reduction: Reduction = "mean",
        class_reduction: Literal["sum", "mean"] = "sum",
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        _check_options(similarity, reduction, class_reduction)
        self.similarity = similarity
        self.reduction = reduction
        self.class_reduction = class_reduction
        self.gather_distributed = gather_distributed

    def forward(
        self,
        token: Tensor,
        labels: Tensor,
        class_text: Tensor,
        background_text: Tensor,
        *,
        counts: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of the class tokens."""
        return global_implicit_alignment_loss(
            token,
            labels,
            class_text,
            background_text,
            similarity=self.similarity,
            reduction=self.reduction,
            class_reduction=self.class_reduction,
            gather_distributed=self.gather_distributed,
            counts=counts,
        )


def _check_options(similarity: str, reduction: str, class_reduction: str) -> None:
    check_choice("similarity", similarity, ("tangent", "clamp", "shifted"))
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    check_choice("class_reduction", class_reduction, ("sum", "mean"))


def _attract(s: Tensor, similarity: Similarity) -> Tensor:
    if similarity == "tangent":
        return _log_with_tangent(s)
    return -_probability(s, similarity).log()


def _repel(s: Tensor, similarity: Similarity) -> Tensor:
    if similarity == "tangent":
        return _log_with_tangent(1 - s.relu())
    return -(1 - _probability(s, similarity)).log()


def _log_with_tangent(p: Tensor) -> Tensor:
    # each branch is constant where the other is used, so neither sends back an infinite slope
    return -p.clamp_min(_KNEE).log() + (_KNEE - p).relu() / _KNEE


def _probability(s: Tensor, similarity: Similarity) -> Tensor:
    return (s if similarity == "clamp" else (1 + s) / 2).clamp(_EPS, 1 - _EPS)
