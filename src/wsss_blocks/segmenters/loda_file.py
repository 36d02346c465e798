"""LoDA models by the names of their encoders, and as one file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from wsss_blocks import backbones
from wsss_blocks._validate import check_int
from wsss_blocks.segmenters._checkpoint import blamed_on, read_checkpoint, write_checkpoint
from wsss_blocks.segmenters._loda_sides import Pool
from wsss_blocks.segmenters.loda import LoDAModel

__all__ = ["create_loda", "load_loda", "save_loda"]


def create_loda(
    encoder: str = "small-cnn",
    text_encoder: str = "small-text",
    *,
    weights: str | os.PathLike[str] | None = None,
    text_weights: str | os.PathLike[str] | None = None,
    words: Sequence[str] = (),
    vocabulary: str | os.PathLike[str] | None = None,
    max_length: int | None = None,
    dim: int = 512,
    pool: Pool = "max_response",
    image_norm: bool = False,
    image_k: int = 5,
    text_k: int = 5,
    eval_text_k: int = 1,
    mask_padding: tuple[bool, bool] = (False, True),
    exclude_special: bool = False,
    temperature: float = 0.07,
    max_scale: float = 100.0,
) -> LoDAModel:
    """Build a :class:`LoDAModel` of encoders that are known by name, so that it can be saved.

    Args:
        encoder: name of the image encoder for :func:`~wsss_blocks.backbones.create_encoder`.
        text_encoder: of the other for :func:`~wsss_blocks.backbones.create_text_encoder`.
        weights: of the image encoder.
        text_weights: of the text encoder.
        words: of ``"small-text"``.
        vocabulary: file of word pieces, of ``"bert-base"``.
        max_length: of captions, in tokens.
        dim: as :class:`LoDAModel`, like all that follows.
        pool: likewise.
        image_norm: likewise.
        image_k: likewise.
        text_k: likewise.
        eval_text_k: likewise.
        mask_padding: likewise.
        exclude_special: likewise.
        temperature: likewise.
        max_scale: likewise.

    Returns:
        The model; its ``recipe`` says what it was built of.

    Raises:
        ValueError: an unknown name, or numbers, words and weights that do not fit.
        FileNotFoundError: there is no such file of weights or word pieces.
        OSError: weights could not be downloaded.
        ImportError: transformers is needed and not installed.

    Example:
        >>> model = create_loda(words=["cat", "dog"], dim=32, image_norm=True)
        >>> model.encode_image(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 32])
    """
    recipe: dict[str, Any] = {
        "encoder": encoder,
        "text_encoder": text_encoder,
        "words": list(words),
        "vocabulary": None if vocabulary is None else os.fspath(vocabulary),
        "max_length": max_length,
        "dim": dim,
        "pool": pool,
        "image_norm": image_norm,
        "image_k": image_k,
        "text_k": text_k,
        "eval_text_k": eval_text_k,
        "mask_padding": list(mask_padding),
        "exclude_special": exclude_special,
        "temperature": temperature,
        "max_scale": max_scale,
    }
    image: Any = backbones.create_encoder(encoder, weights=weights)
    text: Any = backbones.create_text_encoder(
        text_encoder,
        words=words,
        vocabulary=vocabulary,
        weights=text_weights,
        max_length=max_length,
    )
    model = LoDAModel(
        image,
        text,
        dim=dim,
        pool=pool,
        image_k=image_k,
        text_k=text_k,
        eval_text_k=eval_text_k,
        mask_padding=mask_padding,
        exclude_special=exclude_special,
        image_norm=image_norm,
        temperature=temperature,
        max_scale=max_scale,
    )
    model.recipe = {"kind": "loda", **recipe}
    return model


def save_loda(path: str | os.PathLike[str], model: LoDAModel, *, size: int | None = None) -> None:
    """Write a model of :func:`create_loda` as one safetensors file.

    Args:
        path: the file, replaced as a whole; missing folders are made.
        model: to be saved.
        size: side of the square that images are squeezed into when they are segmented; None:
            as they are.

    Raises:
        TypeError: the model was not built by :func:`create_loda`, or ``size`` is no int.
        ValueError: ``size`` is less than 1.

    Example:
        >>> import tempfile
        >>> model = create_loda(words=["cat", "dog"], dim=32, image_norm=True).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_loda(f"{folder}/model.safetensors", model, size=96)
        ...     again = load_loda(f"{folder}/model.safetensors")
        >>> x = torch.rand(1, 3, 64, 64)
        >>> torch.equal(model.encode_image(x), again.encode_image(x)), again.size
        (True, 96)
    """
    if not isinstance(model, LoDAModel) or model.recipe is None:
        built = "something else" if isinstance(model, LoDAModel) else f"a {type(model).__name__}"
        raise TypeError(
            f"model must be one of create_loda, which knows its recipe, got {built} (take the one "
            "inside torch.compile or DistributedDataParallel)."
        )
    if size is not None:
        check_int("size", size, least=1)
    write_checkpoint(Path(path), model, {"size": size})


def load_loda(
    path: str | os.PathLike[str],
    *,
    vocabulary: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
) -> LoDAModel:
    """Build a model from its file: no download but that of a tokenizer, no pickle.

    Args:
        path: what :func:`save_loda` wrote.
        vocabulary: file of word pieces, where it no longer lies where it was.
        device: where the model goes.

    Returns:
        The model in evaluation mode; its ``size`` is what :func:`save_loda` was given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, no safetensors file or of another kind, or its weights do not
            fit; the message names the file.
        OSError: the tokenizer of ``"hf:NAME"`` could not be had.
    """
    changed = {} if vocabulary is None else {"vocabulary": os.fspath(vocabulary)}
    model, about = read_checkpoint(Path(path), {"loda": create_loda}, changed)
    assert isinstance(model, LoDAModel)
    if (size := about.get("size")) is not None:
        with blamed_on(Path(path)):
            check_int("size", size, least=1)
    model.size = size
    model.source = f"LoDA {Path(path).name}"
    return model.to(device).eval()
