"""Released checkpoints of other systems, taken apart for the blocks (ToCo, CVPR 2023)."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from wsss_blocks.training.weights import _read_weights

__all__ = ["ToCoCheckpoint", "read_toco_checkpoint"]

# ToCo normalises outside of its network, with ImageNet's statistics.
_STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_LAYERS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_DECODER = {"conv6": "conv1", "conv7": "conv2", "conv8": "classifier"}


class ToCoCheckpoint(NamedTuple):
    """Hold the state of each block, for ``load_state_dict``, and what no block takes.

    Args:
        encoder: for :class:`~wsss_blocks.backbones.TimmViT`, colour statistics included.
        head: for :class:`~wsss_blocks.heads.ClassHead` on the final map, weight ``(K, D, 1, 1)``.
        aux_head: the same, for the map of an earlier block.
        decoder: for :class:`~wsss_blocks.decoders.LargeFOV`, with K + 1 classes.
        rest: keys as in the file without "module.": projection heads, the unused classifier.
    """

    encoder: dict[str, Tensor]
    head: dict[str, Tensor]
    aux_head: dict[str, Tensor]
    decoder: dict[str, Tensor]
    rest: dict[str, Tensor]


def read_toco_checkpoint(path: str | os.PathLike[str]) -> ToCoCheckpoint:
    """Read a checkpoint that ToCo's training wrote, without executing anything in it.

    Reference:
        "Token Contrast for Weakly-Supervised Semantic Segmentation", CVPR 2023,
        https://arxiv.org/abs/2303.01267; key names of the released code.

    Note:
        ToCo normalises images with ImageNet's mean and std, which its checkpoint does not hold and
        an encoder here does: they are filled in, so that the load is strict and an encoder with
        other statistics (timm's ``vit_base_patch16_224`` has 0.5) is set right. The auxiliary head
        reads block -3 by default; both heads pool the maximum before they classify
        (``ClassHead(D, K)``). The sizes can be read off: K and D from ``head["weight"]``, the
        number of position tokens, which the encoder must share, from
        ``encoder["model.pos_embed"]``.

    Args:
        path: ``.pth``, with or without "module." before each key (as saved from
            ``DistributedDataParallel``).

    Returns:
        The states.

    Raises:
        ValueError: the file is no such checkpoint (it is named, with the missing keys), is
            damaged, or holds more than tensors.
        FileNotFoundError: there is no such file.

    Example:
        >>> import tempfile
        >>> from timm.models import VisionTransformer
        >>> vit = VisionTransformer(img_size=32, embed_dim=8, depth=1, num_heads=2)
        >>> state = {f"module.encoder.{k}": v for k, v in vit.state_dict().items()}
        >>> for name in ("classifier", "aux_classifier", "decoder.conv8"):
        ...     state[f"module.{name}.weight"] = torch.zeros(20, 8, 1, 1)
        >>> for name in ("decoder.conv6", "decoder.conv7"):
        ...     state[f"module.{name}.weight"] = torch.zeros(8, 8, 3, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(state, f"{folder}/toco.pth")
        ...     read_toco_checkpoint(f"{folder}/toco.pth").head["weight"].shape
        torch.Size([20, 8, 1, 1])
    """
    state = {k.removeprefix("module."): v for k, v in _read_weights(Path(path)).items()}
    expected = _expected_keys(state)
    missing = [key for key in expected if key not in state]
    if missing:
        raise ValueError(
            f"{path} must be a checkpoint of ToCo: {len(missing)} of {len(expected)} keys are "
            f"missing ({_shown(missing)}), it holds {_shown(state)}."
        )
    statistics = {name: torch.tensor(values) for name, values in _STATISTICS.items()}
    parts = ToCoCheckpoint(encoder=statistics, head={}, aux_head={}, decoder={}, rest={})
    heads = {"classifier.weight": parts.head, "aux_classifier.weight": parts.aux_head}
    decoder = {f"decoder.{old}.weight": f"{new}.weight" for old, new in _DECODER.items()}
    for key, value in state.items():
        if key.startswith("encoder.") and not key.startswith("encoder.head."):
            parts.encoder["model." + key.removeprefix("encoder.")] = value
        elif key in heads:
            heads[key]["weight"] = value
        elif key in decoder:
            parts.decoder[decoder[key]] = value
        else:
            parts.rest[key] = value
    return parts


def _expected_keys(state: Iterable[str]) -> list[str]:
    numbers = {key.split(".")[2] for key in state if key.startswith("encoder.blocks.")}
    depth = 1 + max((int(n) for n in numbers if n.isdigit()), default=0)
    layers = [f"blocks.{i}.{layer}" for i in range(depth) for layer in _LAYERS]
    layers = ["patch_embed.proj", *layers, "norm"]
    keys = ["encoder.cls_token", "encoder.pos_embed"]
    keys += [f"encoder.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    keys += [f"decoder.{name}.weight" for name in _DECODER]
    return [*keys, "classifier.weight", "aux_classifier.weight"]


def _shown(keys: Iterable[str], *, most: int = 4) -> str:
    keys = list(keys)
    return ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")
