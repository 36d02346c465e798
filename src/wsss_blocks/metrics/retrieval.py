"""Retrieval of captions by images and of images by captions: recall among the first k."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

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
    check_tensor,
    values_are_checked,
)

__all__ = ["RetrievalScores", "retrieval_chance", "retrieval_scores"]

_CELLS = 2**23  # of a block of the similarity matrix: 64 MiB of scores and masks


class RetrievalScores(NamedTuple):
    """Recall at each of ``ks``, as fractions.

    Attributes:
        ks: the numbers of results that are looked at.
        image_to_text: share of the images that have a caption of theirs among the first k.
        text_to_image: share of the captions that have an image of theirs among the first k.
    """

    ks: tuple[int, ...]
    image_to_text: tuple[float, ...]
    text_to_image: tuple[float, ...]

    @property
    def rsum(self) -> float:
        """Sum of all recalls in per cent, as papers print it; at most 600 for three ``ks``."""
        return 100 * (sum(self.image_to_text) + sum(self.text_to_image))

    def table(self) -> str:
        """Return a table in per cent, for people to read."""
        rows = [("image to text", self.image_to_text), ("text to image", self.text_to_image)]
        lines = [f"{'':13} " + " ".join(f"{f'R@{k}':>7}" for k in self.ks)]
        lines += [f"{name} " + " ".join(f"{100 * v:7.2f}" for v in values) for name, values in rows]
        return "\n".join([*lines, f"{'RSUM':13} {self.rsum:7.2f}"])


@torch.no_grad()
def retrieval_scores(
    image: Tensor,
    text: Tensor,
    text_image: Tensor,
    *,
    ks: Sequence[int] = (1, 5, 10),
    groups: Tensor | None = None,
) -> RetrievalScores:
    r"""Score how well images find their captions, and captions their images.

    .. math::

        R@k = \frac{1}{|Q|} \sum_{q \in Q} \Bigl[ \,
            \bigl| \{ c \notin P_q : s_{qc} \ge \max_{p \in P_q} s_{qp} \} \bigr| < k \Bigr]

    with cosine similarities s and the right answers :math:`P_q` of query q. A wrong answer that
    ties with the best right one stands before it, so that features that have collapsed score 0.

    Images that no caption belongs to are candidates for captions, but no queries. The matrix of
    similarities is made in blocks; time is O(N M D).

    Where captions repeat, an image's caption is as right when it is the copy that belongs to
    another image: give equal captions one number in ``groups``. They then count as one caption,
    which all of their images match:

    >>> captions = ["a cat", "a dog", "a cat"]
    >>> number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    >>> torch.tensor([number[caption] for caption in captions])
    tensor([0, 1, 0])

    Reference:
        The protocol of Flickr30K and COCO, with one row of ``image`` per image, not per caption.
        How ties are broken is not known of published numbers.

    Args:
        image: ``(N, D)`` features of images, of any norm.
        text: ``(M, D)`` features of captions, of any norm.
        text_image: ``(M,)`` row of the image that each caption belongs to.
        ks: numbers of results.
        groups: ``(M,)`` integers, equal for captions that are the same text (and so have the same
            features, of which the first are taken); None: all are different.

    Returns:
        The scores.

    Raises:
        ValueError: a shape or device does not fit, a value is not finite, an image does not exist,
            or ``ks`` holds a number below 1.
        TypeError: features are not floating-point, or ``text_image`` or ``groups`` not integers.

    Example:
        >>> image, text = torch.eye(3), torch.eye(3)[[0, 0, 1, 1]]
        >>> scores = retrieval_scores(image, text, torch.tensor([0, 0, 1, 2]), ks=(1, 2))
        >>> scores.text_to_image, [round(r, 2) for r in scores.image_to_text]
        ((0.75, 0.75), [0.33, 0.67])
    """
    ks = _checked_ks(ks)
    check_shape("image", image, "N D")
    check_shape("text", text, "M D", D=image.shape[1])
    for name, features in (("image", image), ("text", text)):
        check_floating(name, features)
        check_finite(name, features)
    check_same_device("text", text, "image", image)
    check_tensor("text_image", text_image)
    check_same_device("text_image", text_image, "image", image)
    pairs = _pairs(text_image, groups, images=len(image), captions=len(text))
    if groups is not None:
        text = text[_first(groups)]
    dtype = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
    image, text = (F.normalize(x.to(dtype), dim=1) for x in (image, text))
    return RetrievalScores(
        ks,
        _recalls(_ranks(image, text, pairs.flip(1)), ks),
        _recalls(_ranks(text, image, pairs), ks),
    )


def retrieval_chance(
    text_image: Tensor,
    *,
    images: int,
    ks: Sequence[int] = (1, 5, 10),
    groups: Tensor | None = None,
) -> RetrievalScores:
    r"""Return what :func:`retrieval_scores` expects of results in random order.

    .. math:: R@k = \frac{1}{|Q|} \sum_{q \in Q} \Bigl(
        1 - \prod_{j=0}^{k-1} \frac{C - |P_q| - j}{C - j} \Bigr)

    with C candidates; no factor is less than 0.

    Args:
        text_image: ``(M,)`` row of the image that each caption belongs to.
        images: N, number of images.
        ks: numbers of results.
        groups: ``(M,)`` integers, equal for captions that are the same text.

    Returns:
        The expected scores.

    Raises:
        ValueError: as :func:`retrieval_scores`.

    Example:
        >>> chance = retrieval_chance(torch.arange(100), images=100)
        >>> [round(recall, 4) for recall in chance.text_to_image]
        [0.01, 0.05, 0.1]
    """
    ks = _checked_ks(ks)
    check_int("images", images, least=1)
    check_shape("text_image", text_image, "M")
    pairs = _pairs(text_image, groups, images=images, captions=len(text_image))
    captions = int(pairs[:, 0].max()) + 1

    def chance(right: Tensor, candidates: int) -> tuple[float, ...]:
        right = right[right > 0].double()
        drawn = torch.arange(candidates, device=right.device)[: max(ks), None]
        missed = ((candidates - drawn - right).clamp_min(0) / (candidates - drawn)).cumprod(0)
        return tuple(float(1 - missed[min(k, candidates) - 1].mean()) for k in ks)

    return RetrievalScores(
        ks,
        chance(torch.bincount(pairs[:, 1], minlength=images), captions),
        chance(torch.bincount(pairs[:, 0], minlength=captions), images),
    )


def _pairs(text_image: Tensor, groups: Tensor | None, *, images: int, captions: int) -> Tensor:
    """Return the different rows (caption, image) that match, sorted; check the arguments."""
    check_shape("text_image", text_image, "M", M=captions)
    check_integer("text_image", text_image)
    if values_are_checked(text_image):
        low, high = (int(v) for v in text_image.aminmax())
        if low < 0 or high >= images:
            bad = low if low < 0 else high
            raise ValueError(f"text_image must hold rows in [0, {images}), got {bad}.")
    if groups is None:
        return torch.stack([torch.arange(captions, device=text_image.device), text_image.long()], 1)
    check_shape("groups", groups, "M", M=captions)
    check_integer("groups", groups)
    check_same_device("groups", groups, "text_image", text_image)
    rows = torch.stack([_numbered(groups), text_image.long()], 1)
    found: Tensor = torch.unique(rows, dim=0)
    return found


def _first(groups: Tensor) -> Tensor:
    """Return the place of the first member of each group, in the order of their ids."""
    numbers = _numbered(groups)
    order = numbers.argsort(stable=True)
    starts = torch.ones_like(order, dtype=torch.bool)
    starts[1:] = numbers[order][1:] != numbers[order][:-1]
    return order[starts]


def _numbered(groups: Tensor) -> Tensor:
    """Number the groups from 0, in the order of their ids."""
    numbers: Tensor = torch.unique(groups, return_inverse=True)[1]
    return numbers


def _ranks(queries: Tensor, candidates: Tensor, pairs: Tensor) -> Tensor:
    """Count the wrong candidates before the best right one; queries without one are left out."""
    return torch.cat(list(_blocks(queries, candidates, pairs)))


def _blocks(queries: Tensor, candidates: Tensor, pairs: Tensor) -> Iterator[Tensor]:
    rows = max(1, _CELLS // len(candidates))
    for start in range(0, len(queries), rows):
        scores = queries[start : start + rows] @ candidates.T
        here = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + rows)]
        right = torch.zeros_like(scores, dtype=torch.bool)
        right[here[:, 0] - start, here[:, 1]] = True
        best = scores.where(right, -torch.inf).amax(1, keepdim=True)
        yield ((scores >= best) & ~right).sum(1)[right.any(1)]


def _recalls(ranks: Tensor, ks: Sequence[int]) -> tuple[float, ...]:
    return tuple(float((ranks < k).double().mean()) for k in ks)


def _checked_ks(ks: Sequence[int]) -> tuple[int, ...]:
    check_sequence("ks", ks)
    for k in ks:
        check_int("ks", k, least=1)
    if not len(ks):
        raise ValueError(f"ks must hold at least one number, got {ks!r}.")
    return tuple(ks)
