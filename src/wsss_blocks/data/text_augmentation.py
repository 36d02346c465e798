"""Words of captions masked, replaced or deleted: SimSeg's augmentation of text, CVPR 2023."""

import torch
from torch import Generator, Tensor, nn

from wsss_blocks._validate import (
    check_fraction,
    check_integer,
    check_same_device,
    check_shape,
    values_are_checked,
)
from wsss_blocks.backbones.text_vocabulary import TextVocabulary

__all__ = ["WordAugmentation", "augment_words"]


def augment_words(
    ids: Tensor,
    mask: Tensor,
    vocabulary: TextVocabulary,
    *,
    mask_rate: float = 0.10,
    replace_rate: float = 0.02,
    delete_rate: float = 0.08,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Mask, replace or delete whole words of tokenized captions.

    With one :math:`u_w \sim U[0, 1)` per word and the rates :math:`m`, :math:`r`, :math:`d`, word w
    becomes

    .. math::

        \begin{cases}
            \text{as many masks as it has pieces} & u_w < m \\
            \text{one ordinary word, drawn evenly} & m \le u_w < m + r \\
            \text{nothing} & m + r \le u_w < m + r + d \\
            w & \text{else.}
        \end{cases}

    What follows a piece that is gone moves to the left, the end of the text too, and padding fills
    up. Where every word of a caption would go, one of them, drawn evenly, stays.

    Reference:
        Yi et al., "A Simple Framework for Text-Supervised Semantic Segmentation", CVPR 2023,
        supplement (20% of the tokens: 10% masked, 2% replaced, 8% deleted).
        https://doi.org/10.1109/CVPR52729.2023.00683

    Note:
        The released code draws for each word piece, writes the pieces down as text and reads that
        again: the rest of a word whose first piece is gone vanishes or becomes another word, and
        what is drawn may be padding, an unused piece or a part of a word. Here a word is one draw,
        its ids stay ids, and no caption is left without a word.

    Args:
        ids: ``(B, T)`` token ids, as an encoder's ``tokenize`` gives them.
        mask: ``(B, T)`` bool, True at real tokens.
        vocabulary: the encoder's ``vocabulary``, on the device of ``ids``.
        mask_rate: share m of the words to mask.
        replace_rate: share r to replace.
        delete_rate: share d to delete.
        generator: of the random numbers, on the device of ``ids``; the global one if None.

    Returns:
        ids and mask, like the arguments, which stay as they are.

    Raises:
        ValueError: shapes or devices do not fit, ids outside the vocabulary, a rate outside
            ``[0, 1]``, rates that sum to more than 1, a ``mask_rate`` for a vocabulary without a
            mask (CLIP), or a ``replace_rate`` for one without ordinary words.
        TypeError: ids are not integers, mask is not bool, or a rate is no number.

    Example:
        >>> from wsss_blocks.backbones import SmallTextEncoder
        >>> encoder = SmallTextEncoder(["a", "cat", "on", "roof", "the"], max_length=6)
        >>> ids, mask = encoder.tokenize(["a cat on the roof"])
        >>> ids
        tensor([[3, 4, 5, 7, 6, 0]])
        >>> g = torch.Generator().manual_seed(1)
        >>> ids, mask = augment_words(ids, mask, encoder.vocabulary, delete_rate=0.5, generator=g)
        >>> ids, mask.sum()
        (tensor([[3, 7, 2, 0, 0, 0]]), tensor(3))
    """
    check_shape("ids", ids, "B T")
    check_integer("ids", ids)
    check_shape("mask", mask, "B T", B=ids.shape[0], T=ids.shape[1])
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor, got {mask.dtype}.")
    check_same_device("mask", mask, "ids", ids)
    check_same_device("vocabulary", vocabulary.begins, "ids", ids)
    size = len(vocabulary.begins)
    if values_are_checked(ids) and ids.numel() and not 0 <= ids.min() <= ids.max() < size:
        raise ValueError(f"ids must lie in [0, {size}), got {int(ids.min())} to {int(ids.max())}.")
    _check_rates(mask_rate, replace_rate, delete_rate)
    choices = _choices(vocabulary, mask_rate, replace_rate)

    # The draws of a word are those at its first piece; two calls, in this order.
    u = torch.rand(ids.shape, generator=generator, device=ids.device)
    drawn = torch.randint(len(choices), ids.shape, generator=generator, device=ids.device)

    word = mask & ~vocabulary.special[ids.long()]
    start = vocabulary.starts(ids, mask)
    place = torch.arange(ids.shape[1], device=ids.device)
    first = place.where(start, 0).cummax(1).values  # of each piece, where its word starts
    own = u.gather(1, first)
    deleted = (
        word & (own >= mask_rate + replace_rate) & (own < mask_rate + replace_rate + delete_rate)
    )
    # If all are deleted, their draws are uniform in one interval: the largest is an even choice.
    emptied = (deleted == word).all(1, keepdim=True)
    spared = u.where(start, -1).argmax(1, keepdim=True)
    deleted = deleted & ~(emptied & (first == spared))
    replaced = word & (own >= mask_rate) & (own < mask_rate + replace_rate)
    masked = word & (own < mask_rate)

    out = ids.where(~replaced, choices[drawn].to(ids.dtype))
    if vocabulary.mask_id is not None:
        out = out.where(~masked, vocabulary.mask_id)
    kept = mask & ~deleted & ~(replaced & ~start)
    order = kept.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    kept = kept.gather(1, order)
    return out.gather(1, order).where(kept, vocabulary.pad_id), kept


class WordAugmentation(nn.Module):
    """Apply :func:`augment_words`, in evaluation mode too: leave it out there.

    Args:
        vocabulary: the text encoder's ``vocabulary``; it moves with the module.
        mask_rate: share of the words to mask.
        replace_rate: share to replace.
        delete_rate: share to delete.

    Shape:
        - ids: ``(B, T)`` integers; mask: ``(B, T)`` bool
        - output: the same two

    Raises:
        ValueError: a rate does not fit, to the others or to the vocabulary.
        TypeError: a rate is no number.

    Example:
        >>> from wsss_blocks.backbones import SmallTextEncoder
        >>> encoder = SmallTextEncoder(["a", "cat"], max_length=4)
        >>> augment = WordAugmentation(
        ...     encoder.vocabulary, mask_rate=1, replace_rate=0, delete_rate=0
        ... )
        >>> augment(*encoder.tokenize(["a cat"]))[0]
        tensor([[2, 2, 0, 0]])
    """

    begins: Tensor
    ends: Tensor
    special: Tensor
    ordinary: Tensor

    def __init__(
        self,
        vocabulary: TextVocabulary,
        *,
        mask_rate: float = 0.10,
        replace_rate: float = 0.02,
        delete_rate: float = 0.08,
    ) -> None:
        super().__init__()
        _check_rates(mask_rate, replace_rate, delete_rate)
        _choices(vocabulary, mask_rate, replace_rate)
        for name in ("begins", "ends", "special", "ordinary"):
            self.register_buffer(name, getattr(vocabulary, name), persistent=False)
        self.mask_id, self.pad_id = vocabulary.mask_id, vocabulary.pad_id
        self.mask_rate, self.replace_rate, self.delete_rate = mask_rate, replace_rate, delete_rate

    def forward(
        self, ids: Tensor, mask: Tensor, *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return changed ids and mask."""
        vocabulary = TextVocabulary(
            self.begins, self.ends, self.special, self.ordinary, self.mask_id, self.pad_id
        )
        return augment_words(
            ids,
            mask,
            vocabulary,
            mask_rate=self.mask_rate,
            replace_rate=self.replace_rate,
            delete_rate=self.delete_rate,
            generator=generator,
        )

    def extra_repr(self) -> str:
        """Show the settings."""
        return (
            f"mask_rate={self.mask_rate}, replace_rate={self.replace_rate}, "
            f"delete_rate={self.delete_rate}"
        )


def _check_rates(mask_rate: float, replace_rate: float, delete_rate: float) -> None:
    check_fraction("mask_rate", mask_rate)
    check_fraction("replace_rate", replace_rate)
    check_fraction("delete_rate", delete_rate)
    total = mask_rate + replace_rate + delete_rate
    if total > 1 + 1e-9:
        raise ValueError(
            f"mask_rate, replace_rate and delete_rate must sum to 1 at most, got {total:.6g}."
        )


def _choices(vocabulary: TextVocabulary, mask_rate: float, replace_rate: float) -> Tensor:
    """Return the ids of ordinary words, one dummy if none is needed; raise for what is lacking."""
    if mask_rate > 0 and vocabulary.mask_id is None:
        raise ValueError(
            f"mask_rate must be 0 for a vocabulary without a mask (CLIP has none), got {mask_rate}."
        )
    choices = vocabulary.ordinary.nonzero()[:, 0]
    if len(choices):
        return choices
    if replace_rate > 0:
        raise ValueError(
            f"replace_rate must be 0 for a vocabulary without ordinary words, got {replace_rate}."
        )
    return choices.new_zeros(1)
