"""Encoders and tokenizers of Hugging Face: built or read, with nothing silently left random."""

import os
from collections.abc import Callable
from typing import Any

from wsss_blocks._optional import require

__all__ = ["bert_parts", "build_model", "read_config", "read_model", "read_tokenizer"]


def build_model(config: Any) -> Any:
    """Build the encoder of a ``PretrainedConfig`` with random weights, without a pooler."""
    return _without_pooler(_transformers().AutoModel.from_config, config)


def read_config(name: str) -> Any:
    """Read the architecture of a name or folder."""
    return _read(name, _transformers().AutoConfig.from_pretrained, name)


def read_model(name: str) -> Any:
    """Read an encoder with its weights, in float32 and in training mode."""
    load = _transformers().AutoModel.from_pretrained
    options = {"output_loading_info": True, "trust_remote_code": False}
    model, info = _read(name, _without_pooler, load, name, **options)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"model must be a name or folder with all weights, but {name!r} lacks {len(missing)}: "
            f"{', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}."
        )
    return model.float().train()


def read_tokenizer(name: str) -> Any:
    """Read the tokenizer of a name or folder."""
    load = _transformers().AutoTokenizer.from_pretrained
    tokenizer = _read(name, load, name, trust_remote_code=False)
    # A folder without the tokenizer's files gives one that knows only its special tokens.
    if not set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids):
        raise ValueError(
            f"model must be a name or folder with a tokenizer's files, got {name!r} without them: "
            "save them there (tokenizer.save_pretrained) or give the tokenizer."
        )
    return tokenizer


def bert_parts(vocabulary: str | os.PathLike[str]) -> tuple[Any, Any]:
    """Return BERT-base's configuration and the tokenizer of a ``vocab.txt``."""
    # By position: the name of the argument changed, and the old one is ignored without a word.
    tokenizer = _transformers().BertTokenizerFast(os.fspath(vocabulary))
    return _transformers().BertConfig(vocab_size=len(tokenizer)), tokenizer


def _transformers() -> Any:
    return require("transformers", extra="text", what="A Hugging Face text encoder")


def _without_pooler(build: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Leave out the layer behind the first token: what no loss reaches stops DDP."""
    try:
        return build(*args, add_pooling_layer=False, **options)
    except TypeError:  # of a class that has none
        return build(*args, **options)


def _read(name: str, read: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return read(*args, **options)
    except OSError as error:
        raise OSError(
            f"model={name!r} is no folder here and could not be had from Hugging Face: "
            f"{str(error)[:400]} Where there is a network, read it once and write it with "
            "save_pretrained, the tokenizer too; then give that folder."
            if not os.path.isdir(name)
            else f"model={name!r} is a folder that lacks a file of the model: {str(error)[:400]}"
        ) from error
    except Exception as error:  # whatever a reader raised comes through
        raise ValueError(
            f"model must be a name or folder that transformers reads, got {name!r}: "
            f"{type(error).__name__}: {str(error)[:400]}"
        ) from error
