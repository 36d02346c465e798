"""open_clip's text transformers as text encoders (CLIP: Radford et al., ICML 2021)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from wsss_blocks.backbones._open_clip import create_open_clip
from wsss_blocks.backbones._token_ids import check_token_ids
from wsss_blocks.backbones.features import TextFeatures
from wsss_blocks.backbones.text_vocabulary import TextVocabulary

__all__ = ["OpenCLIPTextEncoder"]


class OpenCLIPTextEncoder(nn.Module):
    """Encode token ids with the text tower of an open_clip model.

    All tokens come after ``ln_final`` and the projection into the joint space, so that pooling
    over words (maximum response) meets the space of the image tower's ``project``; the global token
    is the row at the end-of-text token, what ``model.encode_text`` returns.

    Reference:
        "Learning Transferable Visual Models From Natural Language Supervision", section 2.4,
        https://arxiv.org/abs/2103.00020

    Note:
        The padding id 0 is also the word "!", so the mask ends at the end-of-text token, never at
        ``ids != 0``. The attention is causal: padding behind the end cannot change any word, and
        captions may be shorter than the tower's context. Towers that are bidirectional or pool
        elsewhere (SigLIP, CoCa) and Hugging Face towers are refused.

    Args:
        model: open_clip's name, a CLIP model with a causal text tower, or that tower (its parts
            are shared, not copied).
        pretrained: open_clip's tag or a file of weights (by name only).
        tokenizer: list of texts to ids ``(B, context)``; default CLIP's byte-pair encoding, which
            open_clip carries with it.

    Shape:
        - ids, mask: ``(B, T)`` with T at most the context length (77)
        - tokens: ``(B, T, D)``; global_token: ``(B, D)``

    Raises:
        TypeError: the tower is not a text transformer of open_clip, or ids are not integers.
        ValueError: the tower is not causal or does not pool at the end-of-text token; ids and
            mask do not fit each other or the vocabulary; a module together with ``pretrained``.

    Example:
        >>> from open_clip.transformer import TextTransformer
        >>> tower = TextTransformer(width=16, heads=2, layers=1, output_dim=8)
        >>> encoder = OpenCLIPTextEncoder(tower)
        >>> features = encoder(*encoder.tokenize(["a photo of a cat!", "a dog"]))
        >>> features.global_token.shape, features.mask.sum(1)
        (torch.Size([2, 8]), tensor([8, 4]))
    """

    attn_mask: Tensor

    def __init__(
        self,
        model: str | nn.Module,
        *,
        pretrained: str | None = None,
        tokenizer: Callable[[list[str]], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(model, str):
            tokenizer = tokenizer or open_clip.get_tokenizer(model)
            model = create_open_clip(model, pretrained)
        elif pretrained is not None:
            raise ValueError("pretrained must be None for a model that is already built.")
        text: Any = getattr(model, "text", model)
        if not hasattr(text, "token_embedding") or not hasattr(text, "ln_final"):
            raise TypeError(
                f"model must have a text transformer of open_clip, got {type(text).__name__}."
            )
        pool = getattr(text, "text_pool_type", getattr(text, "pool_type", None))
        if text.attn_mask is None or pool not in ("argmax", "eos"):
            raise ValueError(
                "model must have a causal text tower that pools at the end of text, got "
                f"{'bidirectional' if text.attn_mask is None else 'causal'} with pool {pool!r}."
            )
        if getattr(text, "cls_emb", None) is not None:
            raise ValueError("model must pool at the end of text, got a class embedding (CoCa).")
        if not text.transformer.batch_first:
            raise ValueError("model must be built with batch_first=True.")
        self.token_embedding: nn.Embedding = text.token_embedding
        self.positional_embedding: nn.Parameter = text.positional_embedding
        self.transformer: Any = text.transformer
        self.ln_final: nn.Module = text.ln_final
        self.text_projection = text.text_projection
        self.register_buffer("attn_mask", text.attn_mask, persistent=False)
        self.context_length: int = text.context_length
        # None: the end of text is the largest id of the vocabulary, as in CLIP's encoding.
        eos = getattr(text, "text_eos_id", getattr(text, "eos_id", None))
        self.eos_id: int | None = eos if pool == "eos" else None
        self.tokenizer = tokenizer or partial(
            open_clip.tokenize, context_length=self.context_length
        )

    @property
    def dim(self) -> int:
        """Length D of a token's vector, in the joint space where there is a projection."""
        projection = self.text_projection
        if isinstance(projection, nn.Linear):
            return int(projection.out_features)
        return int((self.positional_embedding if projection is None else projection).shape[1])

    @property
    def vocabulary(self) -> TextVocabulary:
        """What the ids of CLIP's byte-pair encoding stand for; it has no id for a masked word.

        Raises:
            ValueError: the tokenizer is another one.
        """
        encoding: Any = getattr(self.tokenizer, "func", self.tokenizer)  # of the default's partial
        if encoding is open_clip.tokenize:
            encoding = open_clip.SimpleTokenizer()
        if not isinstance(encoding, open_clip.SimpleTokenizer):
            raise ValueError(
                "tokenizer must be open_clip's SimpleTokenizer for a vocabulary, "
                f"got {type(encoding).__name__}."
            )
        return TextVocabulary.from_pieces(
            encoding.encoder, special=encoding.all_special_ids, mask_id=None, pad_id=0
        )

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Turn texts into ids and mask.

        Args:
            texts: B strings; what exceeds the context is cut.

        Returns:
            ``ids (B, T)`` int64 and ``mask (B, T)`` bool, True up to the end-of-text token.
        """
        ids = self.tokenizer(list(texts))
        return ids, self.token_mask(ids)

    def token_mask(self, ids: Tensor) -> Tensor:
        """Return the mask ``(B, T)`` of ids, True up to the end-of-text token."""
        position = torch.arange(ids.shape[1], device=ids.device)
        return position <= self._end(ids)[:, None]

    def forward(self, ids: Tensor, mask: Tensor) -> TextFeatures:
        """Encode token ids; shapes as the class says."""
        check_token_ids(
            ids,
            mask,
            size=self.token_embedding.num_embeddings,
            most=self.context_length,
            weight=self.positional_embedding,
        )
        ids = ids.long()
        length = ids.shape[1]
        dtype = self.transformer.get_cast_dtype()
        x = self.token_embedding(ids).to(dtype)
        x = x + self.positional_embedding[:length].to(dtype)
        x = self.ln_final(self.transformer(x, attn_mask=self.attn_mask[:length, :length]))
        if isinstance(self.text_projection, nn.Linear):
            x = self.text_projection(x)
        elif self.text_projection is not None:
            x = x @ self.text_projection
        end = self._end(ids)
        position = torch.arange(length, device=ids.device)
        ends = (position == 0) | (position == end[:, None])
        rows = end[:, None, None].expand(-1, 1, x.shape[-1])
        return TextFeatures(
            tokens=x, mask=mask, special=ends & mask, global_token=x.gather(1, rows)[:, 0]
        )

    def _end(self, ids: Tensor) -> Tensor:
        return (ids if self.eos_id is None else (ids == self.eos_id).int()).argmax(1)
