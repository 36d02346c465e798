"""A small text encoder over whole words, for toy data and tests: no file and no download."""

import re
from collections.abc import Iterable, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_blocks._validate import check_int, check_sequence
from wsss_blocks.backbones._token_ids import check_token_ids
from wsss_blocks.backbones.features import TextFeatures
from wsss_blocks.backbones.text_vocabulary import TextVocabulary

__all__ = ["SmallTextEncoder"]

_PAD, _UNKNOWN, _MASK = 0, 1, 2
_OWN = 3  # ids before the first word
_WORD = re.compile(r"[^\W\d_]+")


class SmallTextEncoder(nn.Module):
    """Encode captions with a transformer of a few layers over a list of words.

    A text is lower-cased and cut at everything that is no letter. Each word of the list has an id,
    in its order from 3 on; 0 is padding, 1 any other word, 2 a masked word. There is no start and
    no end: the global token is the mean over the real tokens. An empty text is one unknown word.

    Note:
        The list is not in the ``state_dict``: keep ``words`` beside the weights, and give the same
        list to the encoder that loads them.

    Args:
        words: distinct, in small letters; see ``from_captions``.
        dim: D, the width.
        depth: number of transformer layers (normalised before attention and perceptron).
        heads: of the attention.
        max_length: T of ``tokenize``; what exceeds it is cut.

    Shape:
        - ids, mask: ``(B, T)`` with T at most ``max_length``
        - tokens: ``(B, T, D)``; global_token: ``(B, D)``, 0 where no token is real

    Raises:
        ValueError: no word, a word twice or not of small letters, a ``dim`` that ``heads`` does not
            divide, a number below 1, or ids and mask that do not fit.
        TypeError: ``words`` are not a sequence of texts, a number is none, or ids are not integers.

    Example:
        >>> encoder = SmallTextEncoder.from_captions(["a red seven", "A seven, and a 3!"])
        >>> encoder.words
        ('a', 'and', 'red', 'seven')
        >>> ids, mask = encoder.tokenize(["a red dog"])
        >>> ids[0, :4], mask[0, :4]
        (tensor([3, 5, 1, 0]), tensor([ True,  True,  True, False]))
        >>> encoder(ids, mask).tokens.shape
        torch.Size([1, 16, 64])
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        dim: int = 64,
        depth: int = 1,
        heads: int = 4,
        max_length: int = 16,
    ) -> None:
        super().__init__()
        check_sequence("words", words)
        for word in words:
            if not isinstance(word, str):
                raise TypeError(f"words must be texts, got {word!r}.")
            if _WORD.fullmatch(word) is None or word != word.lower():
                raise ValueError(f"words must be of small letters alone, got {word!r}.")
        if not len(words) or len(set(words)) < len(words):
            raise ValueError(f"words must be distinct and one at least, got {list(words)[:8]}.")
        for name, value in (("dim", dim), ("depth", depth), ("heads", heads)):
            check_int(name, value, least=1)
        check_int("max_length", max_length, least=1)
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads={heads}, got {dim}.")
        self.words = tuple(words)
        self.dim, self.max_length = dim, max_length
        self._number = {word: i for i, word in enumerate(self.words, start=_OWN)}
        self.embedding = nn.Embedding(_OWN + len(self.words), dim)
        self.position = nn.Parameter(torch.empty(max_length, dim))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.layers = nn.ModuleList(_Layer(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    @classmethod
    def from_captions(
        cls,
        captions: Iterable[str],
        *,
        dim: int = 64,
        depth: int = 1,
        heads: int = 4,
        max_length: int = 16,
    ) -> Self:
        """Build it for all words of ``captions``, sorted."""
        words = sorted({word for caption in captions for word in _WORD.findall(caption.lower())})
        return cls(words, dim=dim, depth=depth, heads=heads, max_length=max_length)

    @property
    def vocabulary(self) -> TextVocabulary:
        """What the ids stand for; each is a word, those of the list are ordinary."""
        one = torch.ones(_OWN + len(self.words), dtype=torch.bool)
        ordinary = one.clone()
        ordinary[:_OWN] = False
        return TextVocabulary(
            begins=one,
            ends=~one,
            special=~one,
            ordinary=ordinary,
            mask_id=_MASK,
            pad_id=_PAD,
        )

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Turn B texts into ``ids (B, T)`` int64 and ``mask (B, T)`` bool, False at padding."""
        ids = torch.full((len(texts), self.max_length), _PAD)
        for row, text in zip(ids, texts, strict=True):
            found = [self._number.get(word, _UNKNOWN) for word in _WORD.findall(text.lower())]
            found = (found or [_UNKNOWN])[: self.max_length]
            row[: len(found)] = torch.tensor(found)
        return ids, ids != _PAD

    def forward(self, ids: Tensor, mask: Tensor) -> TextFeatures:
        """Encode token ids; shapes as the class says."""
        size, weight = self.embedding.num_embeddings, self.embedding.weight
        check_token_ids(ids, mask, size=size, most=self.max_length, weight=weight)
        x = self.embedding(ids.long()) + self.position[: ids.shape[1]]
        # Attention over nothing is not defined; without a real token all positions are read.
        keys = (mask | ~mask.any(1, keepdim=True))[:, None, None]
        for layer in self.layers:
            x = layer(x, keys)
        x = self.norm(x)
        real = x.where(mask[..., None], 0)
        number = mask.sum(1, keepdim=True).clamp_min(1)
        mean = real.sum(1, dtype=torch.promote_types(x.dtype, torch.float32)) / number
        return TextFeatures(
            tokens=x, mask=mask, special=torch.zeros_like(mask), global_token=mean.to(x.dtype)
        )

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"{len(self.words)} words, max_length={self.max_length}"


class _Layer(nn.Module):
    """Attention and a perceptron, each on normalised tokens and added to them.

    Torch's own layer cannot take an empty batch with a mask.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """Change tokens ``(B, T, D)``; ``keys (B, 1, 1, T)`` may be attended to."""
        parts = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        changed: Tensor = x + self.mlp(self.norm2(x))
        return changed
