"""Released checkpoints of MCTformer, CTI and DeiT for a transformer with class tokens."""

import os
from collections.abc import Mapping

from torch import Tensor

from wsss_blocks.backbones._weights_file import fitted_position, read_tensors
from wsss_blocks.backbones.token_vit import TokenViT

__all__ = ["load_class_token_weights"]

_TOKENS = ("cls_token", "dist_token", "bg_token", "pos_embed", "pos_embed_cls", "pos_embed_pat")
_GENERATOR = "tokenizer."


def load_class_token_weights(path: str | os.PathLike[str], encoder: TokenViT) -> dict[str, Tensor]:
    """Load a checkpoint of MCTformer (V1, V2, +), CTI or DeiT; return what is not the encoder's.

    Nothing in the file is executed; "model" and "state_dict" are unwrapped and "module." taken
    off. Positions of another square grid are resampled (bicubic). DeiT has one class token: it is
    copied to all classes with its position, as both systems start; a generator stays as it is.

    Reference:
        Key names of the released code of "Multi-class Token Transformer for Weakly Supervised
        Semantic Segmentation", CVPR 2022, and "Class Tokens Infusion for Weakly Supervised Semantic
        Segmentation", CVPR 2024.

    Note:
        The colour statistics are those of the encoder, not of the file: all of these systems
        normalise with ImageNet's. Checked on generated files of the released layout, not on trained
        weights.

    Args:
        path: ``.pth`` or ``.safetensors``.
        encoder: takes the weights in place. CTI's need ``background=True, generator=True``;
            :meth:`~wsss_blocks.backbones.ClassTokens.fold` the tokens afterwards.

    Returns:
        The classifier (``head.weight``, ``(C, D, 3, 3)`` in V2, + and CTI) and unused weights
        (``norm``), by their names in the file.

    Raises:
        ValueError: the file is damaged, holds more than tensors, lacks a weight, or one does not
            fit the encoder.

    Example:
        >>> import tempfile, torch
        >>> from timm.models import VisionTransformer
        >>> vit = VisionTransformer(img_size=32, embed_dim=8, depth=1, num_heads=2, num_classes=9)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"model": vit.state_dict()}, f"{folder}/deit.pth")
        ...     encoder = TokenViT(vit, 20)
        ...     list(load_class_token_weights(f"{folder}/deit.pth", encoder))
        ['norm.weight', 'norm.bias', 'head.weight', 'head.bias']
    """
    state = read_tensors(path)
    own = encoder.state_dict()
    new, rest = _tokens(state, own, path), {}
    for key, value in state.items():
        if f"model.{key}" in own and key not in _TOKENS:
            new[f"model.{key}"] = value
        elif key not in _TOKENS and not key.startswith(_GENERATOR):
            rest[key] = value
    new["model.pos_embed"] = _patch_position(state, encoder, path)
    statistics = {"mean": own["mean"], "std": own["std"]}
    unknown = [key for key in rest if key.startswith(("blocks.", "patch_embed."))]
    missing = [key for key in own if key not in new and key not in statistics]
    if missing or unknown:
        raise ValueError(
            f"path must hold weights for this encoder: {path} lacks {missing[:4]} "
            f"({len(missing)} in all), got {unknown[:4]} ({len(unknown)}) that it has not."
        )
    for key, value in new.items():
        if value.shape != own[key].shape:
            raise ValueError(
                f"path must hold weights for this encoder: {key} must have shape "
                f"{tuple(own[key].shape)}, got {tuple(value.shape)} in {path}."
            )
    encoder.load_state_dict(new | statistics)
    return rest


def _tokens(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: object
) -> dict[str, Tensor]:
    """Map the class tokens and their positions; what is not in the file is not in the result."""
    generated = "class_tokens.token" in own
    cti = f"{_GENERATOR}0.weight" in state
    token = state.get("cls_token")
    if token is None or token.ndim != 3 or (cti and not generated):
        got = "none" if token is None else f"{tuple(token.shape)}{' of CTI' if cti else ''}"
        wanted = "a generator" if cti else "cls_token (1, n, D)"
        raise ValueError(f"path and encoder must both have {wanted}, got {got} in {path}.")
    positions = state.get("pos_embed_cls", state.get("pos_embed"))
    new = {}
    count = own["class_tokens.position"].shape[0]
    if "pos_embed_cls" not in state and positions is not None:
        positions = positions[:, : token.shape[1]]
    if positions is not None:
        new["class_tokens.position"] = positions[0].expand(
            count if positions.shape[1] == 1 else -1, -1
        )
    if not generated:
        new["class_tokens.tokens"] = token[0].expand(count if token.shape[1] == 1 else -1, -1)
        return new
    if token.shape[1] == 1:
        new["class_tokens.token"] = token[0, 0]
    kept = {k: v for k, v in own.items() if k.startswith(("class_tokens.g", "class_tokens.b"))}
    if cti:
        kept = {
            f"class_tokens.generator.{key.removeprefix(_GENERATOR)}": value
            for key, value in state.items()
            if key.startswith(_GENERATOR)
        }
        if "bg_token" in state:
            kept["class_tokens.background_token"] = state["bg_token"][0, 0]
    return new | kept


def _patch_position(state: Mapping[str, Tensor], encoder: TokenViT, path: object) -> Tensor:
    position = state.get("pos_embed_pat")
    if position is None:
        position = state.get("pos_embed")
        prefix = state["cls_token"].shape[1] + int("dist_token" in state)
        position = None if position is None else position[:, prefix:]
    if position is None:
        raise ValueError(f"path must hold pos_embed or pos_embed_pat, got neither in {path}.")
    return fitted_position(position, encoder.model)
