"""Accuracy of classification by similarity with texts of the classes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_int,
    check_integer,
    check_same_device,
    check_sequence,
    check_shape,
    values_are_checked,
)

__all__ = ["topk_accuracy", "zero_shot_accuracy"]


@torch.no_grad()
def zero_shot_accuracy(
    features: Tensor, labels: Tensor, classes: Tensor, *, ks: Sequence[int] = (1, 5)
) -> tuple[float, ...]:
    r"""Classify images by the class whose text is most similar.

    .. math:: \mathrm{acc}_k = \frac{1}{N} \sum_i \Bigl[ \,
        \bigl| \{ c \ne y_i : \cos(x_i, t_c) \ge \cos(x_i, t_{y_i}) \} \bigr| < k \Bigr]

    The class that is right stands behind those it ties with. ``classes`` are the rows of a text
    bank, each the normalised mean over prompt templates. A folder per class is read by
    :class:`~wsss_blocks.data.FolderDataset` with ``WeakLabels.from_folders``; ``labels`` are then
    ``sample["labels"].argmax()``.

    Reference:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
        https://arxiv.org/abs/2103.00020, Section 3.1.

    Args:
        features: ``(N, D)`` features of images, of any norm.
        labels: ``(N,)`` class ids.
        classes: ``(K, D)`` features of the texts of the classes, of any norm.
        ks: for each k a prediction is right if the class is among the first k.

    Returns:
        An accuracy in [0, 1] for each k.

    Raises:
        ValueError: a shape or device does not fit, a value is not finite, an id is not in
            ``[0, K)``, or a k is below 1.
        TypeError: features are not floating-point or labels not integers.

    Example:
        >>> features = torch.tensor([[2.0, 0.1], [0.0, 1.0], [1.0, 1.1]])
        >>> zero_shot_accuracy(features, torch.tensor([0, 1, 0]), torch.eye(2), ks=(1, 2))
        (0.6666666666666666, 1.0)
    """
    check_shape("features", features, "N D")
    check_shape("classes", classes, "K D", D=features.shape[1])
    for name, value in (("features", features), ("classes", classes)):
        check_floating(name, value)
        check_finite(name, value)
    check_same_device("classes", classes, "features", features)
    dtype = torch.promote_types(torch.promote_types(features.dtype, classes.dtype), torch.float32)
    texts = F.normalize(classes.to(dtype), dim=1)
    return topk_accuracy(F.normalize(features.to(dtype), dim=1) @ texts.T, labels, ks=ks)


@torch.no_grad()
def topk_accuracy(
    scores: Tensor, labels: Tensor, *, ks: Sequence[int] = (1, 5)
) -> tuple[float, ...]:
    """Return the share of images whose class is among the k of the largest scores.

    The class that is right stands behind those it ties with.

    Args:
        scores: ``(N, K)``.
        labels: ``(N,)`` class ids.
        ks: numbers of classes that are looked at.

    Returns:
        An accuracy in [0, 1] for each k.

    Raises:
        ValueError: a shape or device does not fit, a score is not finite, an id is not in
            ``[0, K)``, or a k is below 1.
        TypeError: scores are not floating-point or labels not integers.

    Example:
        >>> topk_accuracy(torch.tensor([[0.1, 0.7, 0.2]]), torch.tensor([2]), ks=(1, 2))
        (0.0, 1.0)
    """
    check_shape("scores", scores, "N K")
    check_floating("scores", scores)
    check_finite("scores", scores)
    check_shape("labels", labels, "N", N=len(scores))
    check_integer("labels", labels)
    check_same_device("labels", labels, "scores", scores)
    if values_are_checked(labels):
        low, high = (int(v) for v in labels.aminmax())
        if low < 0 or high >= scores.shape[1]:
            bad = low if low < 0 else high
            raise ValueError(f"labels must be in [0, {scores.shape[1]}), got {bad}.")
    check_sequence("ks", ks)
    for k in ks:
        check_int("ks", k, least=1)
    own = scores.gather(1, labels.long()[:, None])
    before = (scores >= own).sum(1) - 1  # all but itself
    return tuple(float((before < k).double().mean()) for k in ks)
