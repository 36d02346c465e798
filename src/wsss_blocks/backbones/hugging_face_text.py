"""Encoders of Hugging Face transformers as text encoders (SimSeg reads captions with BERT)."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wsss_blocks._validate import check_int
from wsss_blocks.backbones._hugging_face import build_model, read_model, read_tokenizer
from wsss_blocks.backbones._token_ids import check_token_ids
from wsss_blocks.backbones.features import TextFeatures
from wsss_blocks.backbones.text_vocabulary import TextVocabulary

__all__ = ["HuggingFaceTextEncoder"]

_SPECIAL = ("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id")


class HuggingFaceTextEncoder(nn.Module):
    r"""Encode token ids with BERT, DistilBERT, RoBERTa or another encoder of Hugging Face.

    All T positions come out, padding too: no real token attends to padding, but the vectors that
    stand there have read the caption, and SimSeg's training pools over them. The tokens are the
    last hidden states, without a projection; the global token is that of the first position.

    Reference:
        Yi et al., "A Simple Framework for Text-Supervised Semantic Segmentation", CVPR 2023,
        supplement: bert-base-uncased from scratch, 25 tokens.
        https://doi.org/10.1109/CVPR52729.2023.00683

    Note:
        BERT's pooler is left out: no loss reaches it, and DDP stops at parameters without a
        gradient. Weights that a folder lacks are an error, not drawn at random. Special tokens are
        start, end and separator; the mask and the unknown word stand for words.

    Args:
        model: a built encoder (shared, not copied), a ``transformers.PretrainedConfig`` for random
            weights, or a name or local folder to read weights and tokenizer from. A name needs a
            network, or the files that an earlier download left.
        tokenizer: a tokenizer of Hugging Face; None for that of the name or folder.
        max_length: T of ``tokenize``, special tokens included.

    Shape:
        - ids, mask: ``(B, T)`` with T at most ``max_length``
        - tokens: ``(B, T, D)``; global_token: ``(B, D)``

    Raises:
        ValueError: no tokenizer for a model that is not read, one that pads on the left or has
            more ids than the model, a model with a pooler, more positions than the model has,
            files that are damaged or incomplete, or ids and mask that do not fit.
        TypeError: the model is no encoder of Hugging Face, or ids are not integers.
        OSError: the files could not be had.
        ImportError: transformers is not installed.

    Example:
        >>> import tempfile
        >>> from transformers import BertConfig, BertTokenizerFast
        >>> pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "##s", "dog"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with open(f"{folder}/vocab.txt", "w") as file:
        ...         print(*pieces, sep="\n", file=file)
        ...     tokenizer = BertTokenizerFast(f"{folder}/vocab.txt")
        >>> size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> config = BertConfig(vocab_size=9, intermediate_size=16, **size)
        >>> encoder = HuggingFaceTextEncoder(config, tokenizer=tokenizer, max_length=6)
        >>> ids, mask = encoder.tokenize(["Cats", "a dog"])
        >>> ids
        tensor([[2, 6, 7, 3, 0, 0],
                [2, 5, 8, 3, 0, 0]])
        >>> encoder(ids, mask).tokens.shape
        torch.Size([2, 6, 8])
    """

    special_ids: Tensor

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Callable[..., Any] | None = None,
        max_length: int = 25,
    ) -> None:
        super().__init__()
        check_int("max_length", max_length, least=3)
        if isinstance(model, str | os.PathLike):
            name = os.fspath(model)
            model = read_model(name)
            tokenizer = tokenizer or read_tokenizer(name)
        if tokenizer is None:
            raise ValueError("tokenizer must be given for a model that is not read, got None.")
        if not isinstance(model, nn.Module) and hasattr(model, "model_type"):
            model = build_model(model)
        if not isinstance(model, nn.Module) or not hasattr(model, "get_input_embeddings"):
            raise TypeError(
                "model must be an encoder of Hugging Face, its config, a name or a folder, "
                f"got {type(model).__name__}."
            )
        self.model: Any = model
        self.tokenizer: Any = tokenizer
        self.max_length = max_length
        self._check_parts()
        found = (getattr(tokenizer, kind, None) for kind in _SPECIAL)
        special = torch.tensor(sorted({i for i in found if i is not None}), dtype=torch.long)
        self.register_buffer("special_ids", special, persistent=False)
        self.train(model.training)  # a model that was read for evaluation stays in it

    @property
    def dim(self) -> int:
        """Length D of a token's vector."""
        return int(self.model.config.hidden_size)

    @property
    def vocabulary(self) -> TextVocabulary:
        """What the tokenizer's ids stand for."""
        return TextVocabulary.from_pieces(
            self.tokenizer.get_vocab(),
            special=self.special_ids.tolist(),
            mask_id=getattr(self.tokenizer, "mask_token_id", None),
            pad_id=self.tokenizer.pad_token_id or 0,
        )

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Turn texts into ids and mask.

        Args:
            texts: B strings; what exceeds ``max_length`` is cut.

        Returns:
            ``ids (B, T)`` int64 and ``mask (B, T)`` bool, False at padding.
        """
        if not texts:  # tokenizers index the first
            empty = torch.zeros(0, self.max_length, dtype=torch.long)
            return empty, empty.bool()
        out = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        return out["input_ids"], out["attention_mask"].bool()

    def forward(self, ids: Tensor, mask: Tensor) -> TextFeatures:
        """Encode token ids; shapes as the class says."""
        embedding = self.model.get_input_embeddings()
        size, weight = embedding.num_embeddings, embedding.weight
        check_token_ids(ids, mask, size=size, most=self.max_length, weight=weight)
        special = torch.isin(ids, self.special_ids) & mask
        if ids.shape[0] == 0:  # the reshapes of some encoders cannot
            tokens = weight.new_zeros(*ids.shape, self.dim)
            return TextFeatures(tokens, mask, special, tokens[:, 0])
        # Attention over nothing is not defined; without a real token all positions are read.
        keys = mask | ~mask.any(1, keepdim=True)
        out = self.model(input_ids=ids.long(), attention_mask=keys.long())
        tokens = getattr(out, "last_hidden_state", None)
        if tokens is None:
            raise TypeError(
                "model must return last_hidden_state (an encoder without a head), "
                f"got {type(self.model).__name__}."
            )
        return TextFeatures(tokens=tokens, mask=mask, special=special, global_token=tokens[:, 0])

    def extra_repr(self) -> str:
        """Show the setting."""
        return f"max_length={self.max_length}"

    def _check_parts(self) -> None:
        model, tokenizer = self.model, self.tokenizer
        if getattr(model, "pooler", None) is not None:
            raise ValueError(
                "model must be built with add_pooling_layer=False, got a pooler, which no loss "
                "reaches."
            )
        positions = getattr(model.config, "max_position_embeddings", self.max_length)
        if self.max_length > positions:
            raise ValueError(
                f"max_length must be at most the model's {positions} positions, "
                f"got {self.max_length}."
            )
        if getattr(tokenizer, "padding_side", "right") != "right":
            raise ValueError(
                f"tokenizer must pad on the right, got padding_side={tokenizer.padding_side!r}."
            )
        size = model.get_input_embeddings().num_embeddings
        last = max(tokenizer.get_vocab().values())
        if last >= size:
            raise ValueError(
                f"tokenizer must have ids below {size}, those of the model, got {last}."
            )
