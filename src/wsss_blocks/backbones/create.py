"""The encoders that every example can be asked for by name."""

import os
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from wsss_blocks.backbones._weights_file import load_weights_file
from wsss_blocks.backbones.mobilenet import mobilenet_v1
from wsss_blocks.backbones.small_cnn import SmallCNN
from wsss_blocks.backbones.timm_cnn import TimmCNN
from wsss_blocks.backbones.timm_vit import TimmViT

__all__ = ["create_encoder"]


def create_encoder(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    output_stride: int | None = None,
    frozen: bool | None = None,
) -> nn.Module:
    """Build an image encoder under the contract :class:`wsss_blocks.backbones.Encoder`.

    Note:
        A file must hold timm's own key names, as the checkpoints of timm, DeiT and DINO do. The
        classifier in it is left out, and a position embedding of another square grid is resampled
        (bicubic, without the antialiasing of timm's own loader; see :class:`TimmViT`). Nothing in
        a file is executed. The colour statistics are those of the name, not of the file: ask for
        ``"deit_base_patch16_224"`` to load DeiT's weights.

    Args:
        name: ``"small-cnn"`` (:class:`SmallCNN`, from scratch); ``"small-vit"`` (three transformer
            blocks on its stages, from scratch); ``"mobilenet"`` (MobileNetV1 0.75 at stride 16,
            frozen); otherwise the name of a timm ViT, to be fine-tuned but for its position
            embedding, or of a timm CNN, frozen, at stride 16.
        weights: None for random ones; ``"pretrained"`` for those that timm downloads; the path of
            a file (``.pth``, ``.bin``, ``.safetensors``), also for ``"mobilenet"``. torchvision's
            files of its plain ResNets have timm's key names.
        output_stride: 8, 16 or 32 for ``"mobilenet"`` and timm's CNNs; None is 16 there.
        frozen: False to train those, batch norms included; None is True there.

    Returns:
        The encoder.

    Raises:
        ValueError: an unknown name, an output stride that the network cannot have, either option
            for an encoder that does not take it, or weights that it cannot take; the file is
            named, and what it lacks.
        FileNotFoundError: there is no such file.

    Example:
        >>> encoder = create_encoder("small-cnn")
        >>> encoder.dim, encoder.stride, encoder.layer_dims
        (128, 8, {1: 32, 2: 64, 3: 128})
    """
    if name in ("small-cnn", "small-vit"):
        weights_file(name, weights)
        _check_left_out(name, output_stride, frozen)
        if name == "small-cnn":
            return SmallCNN()
        small, statistics = small_vit()
        return TimmViT(small, **statistics)
    is_vit = name != "mobilenet" and is_timm_vit(name, own=("small-cnn", "small-vit", "mobilenet"))
    file = weights_file(name, weights)
    download = weights is not None and file is None
    stride, freeze = 16 if output_stride is None else output_stride, frozen is not False
    if stride not in (8, 16, 32):
        raise ValueError(f"output_stride must be None, 8, 16 or 32, got {output_stride!r}.")
    if name == "mobilenet":
        return TimmCNN(mobilenet_v1(output_stride=stride, weights=file), frozen=freeze)
    if is_vit:
        _check_left_out(name, output_stride, frozen)
        vit = TimmViT(name, pretrained=download, freeze_pos_embed=True)
        if file is not None:
            load_weights_file(file, vit.model, name=name)
        return vit
    cnn = _dilated(name, stride, download)  # with the classifier that a file has, too
    if file is not None:
        load_weights_file(file, cnn, name=name)
    return TimmCNN(cnn, output_stride=stride, frozen=freeze)


def _check_left_out(name: str, output_stride: int | None, frozen: bool | None) -> None:
    if output_stride is not None or frozen is not None:
        raise ValueError(
            f"output_stride and frozen must be None for {name!r}, which is no CNN of timm, "
            f"got {output_stride!r} and {frozen!r}."
        )


def _dilated(name: str, output_stride: int, download: bool) -> nn.Module:
    options: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
    try:
        return timm.create_model(name, download, **options)
    except (AssertionError, TypeError) as error:  # what networks without dilation raise
        raise ValueError(
            f"output_stride must be 32 for {name!r}, which cannot dilate, got {output_stride}."
        ) from error


def weights_file(
    name: str, weights: str | os.PathLike[str] | None
) -> str | os.PathLike[str] | None:
    """Return the file to read weights from, None for those that timm downloads or for none."""
    if weights is not None and name in ("small-cnn", "small-vit"):
        raise ValueError(
            f"weights must be None for {name!r}, which starts from scratch, got {weights!r}."
        )
    if weights is None or (weights == "pretrained" and name != "mobilenet"):
        return None
    if not os.path.isfile(weights):
        choices = "None" if name == "mobilenet" else "None, 'pretrained'"
        raise FileNotFoundError(
            f"weights must be {choices} or a file for {name!r}, got {str(weights)!r}: no such file."
        )
    return weights


def is_timm_vit(name: str, *, own: Sequence[str]) -> bool:
    """Tell whether timm's network of this name is a vision transformer; ``own`` are ours."""
    if ":" not in name and not timm.is_model(name):  # "hf-hub:..."
        near = ", ".join(repr(n) for n in get_close_matches(name, timm.list_models(), n=3))
        raise ValueError(
            f"name must be {', '.join(map(repr, own))} or a name of timm, "
            f"got {name!r}{f' (near: {near})' if near else ''}."
        )
    try:
        with torch.device("meta"):  # what it is, without its memory
            return isinstance(timm.create_model(name), VisionTransformer)
    except RuntimeError as error:
        raise ValueError(f"name must be one that timm can build, got {name!r}: {error}") from error


def small_vit() -> tuple[VisionTransformer, dict[str, Any]]:
    """Return three blocks on the stages of :class:`SmallCNN`, and its colour statistics."""
    # Patches cut from pixels learn too slowly from scratch; a convolutional stem does not
    # ("Early Convolutions Help Transformers See Better", https://arxiv.org/abs/2106.14881).
    stem = SmallCNN()
    vit = VisionTransformer(
        img_size=96,
        patch_size=stem.stride,
        embed_dim=stem.dim,
        depth=3,
        num_heads=4,
        mlp_ratio=3.0,
        num_classes=0,
    )
    vit.patch_embed.proj = nn.Sequential(*stem.stages)
    return vit, {"mean": stem.mean.tolist(), "std": stem.std.tolist()}
