"""What a text encoder's token ids stand for: where words begin and end, which ids are words."""

from collections.abc import Collection, Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor

__all__ = ["TextVocabulary"]

_CONTINUES, _END = "##", "</w>"  # WordPiece; CLIP's byte-pair encoding
_BEGINS = ("Ġ", "▁")  # byte-level encoding (RoBERTa); SentencePiece
_BYTES = ("Ġ", _END)


class TextVocabulary(NamedTuple):
    """Say of each of the V token ids of a text encoder what it stands for.

    A word boundary lies before an id that begins a word, behind one that ends a word, and around
    special tokens. WordPiece marks the pieces that continue a word (``##ding``), RoBERTa and
    SentencePiece those that begin one, CLIP's encoding those that end one (``cat</w>``).

    Args:
        begins: ``(V,)`` bool, True for an id before which a word boundary lies.
        ends: ``(V,)`` bool, True for an id behind which one lies.
        special: ``(V,)`` bool, True for ids that are no words (start, end, separator).
        ordinary: ``(V,)`` bool, True for a whole word of letters, at least two: what may stand in
            the place of a word.
        mask_id: id of a word that is masked; None where the vocabulary has none (CLIP).
        pad_id: id of padding.

    Example:
        >>> pieces = {"[PAD]": 0, "[CLS]": 1, "[MASK]": 2, "em": 3, "##bed": 4, "cat": 5}
        >>> vocabulary = TextVocabulary.from_pieces(pieces, special=[1], mask_id=2, pad_id=0)
        >>> vocabulary.ordinary.nonzero()[:, 0]
        tensor([3, 5])
        >>> ids = torch.tensor([[1, 3, 4, 5, 0]])
        >>> vocabulary.starts(ids, ids > 0)
        tensor([[False,  True, False,  True, False]])
    """

    begins: Tensor
    ends: Tensor
    special: Tensor
    ordinary: Tensor
    mask_id: int | None
    pad_id: int

    def starts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Find the first piece of each word in ``ids (B, T)`` with ``mask (B, T)`` bool."""
        ids = ids.long()
        word = mask & ~self.special[ids]
        # Of what stands before: nothing, a special token, padding or the end of a word.
        boundary = (self.ends[ids] | ~word).roll(1, 1)
        boundary[:, :1] = True
        return word & (boundary | self.begins[ids])

    @classmethod
    def from_pieces(
        cls,
        pieces: Mapping[str, int],
        *,
        special: Collection[int],
        mask_id: int | None,
        pad_id: int,
    ) -> Self:
        """Read it from a tokenizer's table of pieces.

        The marks of the table decide how words are told apart; without any, each id is a word.

        Args:
            pieces: piece, with its mark -> id.
            special: ids of start, end and separator.
            mask_id: of the mask, or None.
            pad_id: of padding.
        """
        size = max(pieces.values()) + 1
        texts = [""] * size
        for piece, number in pieces.items():
            texts[number] = piece
        counts = {
            _CONTINUES: sum(text.startswith(_CONTINUES) for text in texts),
            _END: sum(text.endswith(_END) for text in texts),
            **{mark: sum(text.startswith(mark) for text in texts) for mark in _BEGINS},
        }
        style = max(counts, key=lambda mark: counts[mark])
        marked = counts[style] > 0
        begins, ends = [True] * size, [False] * size
        words = texts
        if marked and style == _CONTINUES:
            begins = [not text.startswith(_CONTINUES) for text in texts]
            words = ["" if text.startswith(_CONTINUES) else text for text in texts]
        elif marked and style == _END:
            begins, ends = ends, [text.endswith(_END) for text in texts]
            words = [text.removesuffix(_END) if text.endswith(_END) else "" for text in texts]
        elif marked:
            begins = [text.startswith(style) for text in texts]
            words = [text.removeprefix(style) if text.startswith(style) else "" for text in texts]
        ascii_only = marked and style in _BYTES  # bytes of other scripts look like letters there
        ordinary = [
            len(word) > 1 and word.isalpha() and (word.isascii() or not ascii_only)
            for word in words
        ]
        is_special = torch.zeros(size, dtype=torch.bool)
        is_special[list(special)] = True
        return cls(
            begins=torch.tensor(begins),
            ends=torch.tensor(ends),
            special=is_special,
            ordinary=torch.tensor(ordinary) & ~is_special,
            mask_id=mask_id,
            pad_id=pad_id,
        )
