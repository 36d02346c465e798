"""The text encoders that every example can be asked for by name."""

import os
from collections.abc import Sequence
from typing import Any

from torch import nn

__all__ = ["create_text_encoder"]

_NAMES = "'small-text', 'bert-base', 'open_clip:ARCH' or 'hf:NAME_OR_FOLDER'"


def create_text_encoder(
    name: str,
    *,
    words: Sequence[str] = (),
    vocabulary: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    max_length: int | None = None,
) -> nn.Module:
    """Build a text encoder under the contract :class:`wsss_blocks.backbones.TextEncoder`.

    Only released weights and ``"hf:NAME"`` need a network, or the files that an earlier download
    left; ``"small-text"``, ``"bert-base"``, a folder and ``"open_clip:ARCH"`` without weights do
    not.

    Reference:
        Yi et al., "A Simple Framework for Text-Supervised Semantic Segmentation", CVPR 2023,
        supplement: bert-base-uncased from scratch is ``"hf:bert-base-uncased"``, or
        ``"bert-base"`` with its ``vocab.txt`` of 30,522 lines.
        https://doi.org/10.1109/CVPR52729.2023.00683

    Args:
        name: ``"small-text"`` (:class:`~wsss_blocks.backbones.SmallTextEncoder`, from scratch);
            ``"bert-base"`` (BERT's twelve layers of width 768, from scratch);
            ``"open_clip:ARCH"`` (:class:`~wsss_blocks.backbones.OpenCLIPTextEncoder`);
            ``"hf:NAME_OR_FOLDER"`` (:class:`~wsss_blocks.backbones.HuggingFaceTextEncoder`, with
            its tokenizer).
        words: of ``"small-text"``.
        vocabulary: file of word pieces, one a line, of ``"bert-base"``.
        weights: None for random ones; for ``"hf:..."`` also ``"pretrained"``, for
            ``"open_clip:..."`` a tag of open_clip or a file.
        max_length: T of ``tokenize``; None for 16 of ``"small-text"``, the context of CLIP (77)
            and 25 of the others.

    Returns:
        The encoder.

    Raises:
        ValueError: an unknown name, an argument that the encoder needs and lacks or does not take,
            weights that do not fit, or a ``max_length`` that the encoder cannot read.
        FileNotFoundError: there is no such file of word pieces.
        OSError: files could not be had; the message says what to give where there is no network.
        ImportError: transformers is not installed.

    Example:
        >>> encoder = create_text_encoder("small-text", words=["cat", "dog"])
        >>> ids, mask = encoder.tokenize(["A dog and a cat."])
        >>> ids[0, :6], encoder.dim
        (tensor([1, 4, 1, 1, 3, 0]), 64)
    """
    kind, _, which = name.partition(":")
    if name not in ("small-text", "bert-base") and not (kind in ("open_clip", "hf") and which):
        raise ValueError(f"name must be {_NAMES}, got {name!r}.")
    _check_given("words", bool(words), name, needed=kind == "small-text")
    _check_given("vocabulary", vocabulary is not None, name, needed=kind == "bert-base")
    length: dict[str, Any] = {} if max_length is None else {"max_length": max_length}
    if kind == "open_clip":
        return _open_clip(name, which, weights, max_length)
    if weights is not None and (kind != "hf" or weights != "pretrained"):
        choices = "None or 'pretrained'" if kind == "hf" else "None"
        raise ValueError(f"weights must be {choices} for {name!r}, got {weights!r}.")
    if kind == "small-text":
        from wsss_blocks.backbones.small_text import SmallTextEncoder

        return SmallTextEncoder(words, **length)
    from wsss_blocks.backbones import _hugging_face
    from wsss_blocks.backbones.hugging_face_text import HuggingFaceTextEncoder

    if vocabulary is not None:
        if not os.path.isfile(vocabulary):
            raise FileNotFoundError(
                "vocabulary must be a file of word pieces, such as the vocab.txt of "
                f"bert-base-uncased, got {os.fspath(vocabulary)!r}: no such file."
            )
        config, tokenizer = _hugging_face.bert_parts(vocabulary)
        return HuggingFaceTextEncoder(config, tokenizer=tokenizer, **length)
    if weights is not None:
        return HuggingFaceTextEncoder(which, **length)
    config = _hugging_face.read_config(which)
    tokenizer = _hugging_face.read_tokenizer(which)
    return HuggingFaceTextEncoder(config, tokenizer=tokenizer, **length)


def _check_given(argument: str, given: bool, name: str, *, needed: bool) -> None:
    if given != needed:
        wanted = "given" if needed else "left out"
        raise ValueError(
            f"{argument} must be {wanted} for {name!r}, got {'some' if given else 'none'}."
        )


def _open_clip(
    name: str, arch: str, weights: str | os.PathLike[str] | None, max_length: int | None
) -> nn.Module:
    # Here, not above: open_clip takes seconds to import.
    import open_clip

    from wsss_blocks._validate import check_int
    from wsss_blocks.backbones._open_clip import create_open_clip
    from wsss_blocks.backbones.create_text import named_open_clip
    from wsss_blocks.backbones.open_clip_text import OpenCLIPTextEncoder

    if arch not in open_clip.list_models():
        raise ValueError(f"name must have an ARCH of open_clip, got {name!r}.")
    model: Any = None
    if weights is None:
        model = create_open_clip(arch, None)
    else:
        named = f"{arch}/{os.fspath(weights)}"
        try:
            model, _, _ = named_open_clip(named, argument="weights", choices="a tag or a file")
        except OSError as error:
            raise OSError(
                f"weights={weights!r} for {name!r} could not be had: {error.__cause__}. Give a "
                "local file of them as weights; those that want QuickGELU (OpenAI's) need "
                f"name='open_clip:{arch.removesuffix('-quickgelu')}-quickgelu' then."
            ) from error
    context = int(OpenCLIPTextEncoder(model).context_length)
    if max_length is not None:
        check_int("max_length", max_length, least=3)
        if max_length > context:
            raise ValueError(
                f"max_length must be at most {context}, the context, got {max_length}."
            )
    tokenizer = open_clip.get_tokenizer(arch, context_length=max_length or context)
    return OpenCLIPTextEncoder(model, tokenizer=tokenizer)
