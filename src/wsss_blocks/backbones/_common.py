"""What the encoders share: image preparation, layer numbers, tokens to grids."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._symbols import are_symbols
from wsss_blocks._validate import (
    check_images,
    check_int,
    check_number,
    check_same_device,
    check_sequence,
)
from wsss_blocks.backbones.features import Features, SizePolicy, resize_to_stride
from wsss_blocks.backbones.query_key import QueryKey

__all__ = [
    "channel_statistics",
    "layer_numbers",
    "map_features",
    "no_attention",
    "prepare_images",
    "resample_position",
    "timm_statistics",
    "token_features",
]


_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def channel_statistics(name: str, values: Sequence[float]) -> Tensor:
    """Return three numbers, one per colour, as a float32 tensor."""
    check_sequence(name, values)
    if len(values) != 3:
        raise ValueError(f"{name} must hold 3 numbers (R, G, B), got {len(values)}.")
    for value in values:
        check_number(name, value)
        if not math.isfinite(value) or (name == "std" and value <= 0):
            wanted = "positive" if name == "std" else "finite"
            raise ValueError(f"{name} must hold {wanted} numbers, got {tuple(values)}.")
    return torch.tensor(values, dtype=torch.float32)


def timm_statistics(model: object, name: str, values: Sequence[float] | None) -> Tensor:
    """Return ``values``, else what timm's configuration of the model says, else ImageNet's."""
    known = getattr(model, "pretrained_cfg", None) or {}
    return channel_statistics(name, values or known.get(name) or _IMAGENET[name])


def prepare_images(
    images: Tensor, mean: Tensor, std: Tensor, *, stride: int, size_policy: SizePolicy
) -> Tensor:
    """Check, normalise and fit ``(B, 3, H, W)`` images; padding is 0, the mean colour."""
    check_images("images", images)
    check_same_device("images", images, "the weights", mean)
    promoted = torch.promote_types(images.dtype, mean.dtype)
    if promoted != mean.dtype and not torch.is_autocast_enabled(images.device.type):
        raise TypeError(
            f"images must have the dtype of the weights ({mean.dtype}) or a smaller one outside "
            f"autocast, got {images.dtype}."
        )
    images = (images - mean[:, None, None]) / std[:, None, None]
    return resize_to_stride(images, stride=stride, policy=size_policy)


def layer_numbers(
    layers: Sequence[int], available: Sequence[int], *, name: str = "layers"
) -> tuple[int, ...]:
    """Resolve negative layers from the end and refuse unknown ones."""
    check_sequence(name, layers)
    for i in layers:
        check_int(name, i)
    count = len(available)
    wanted = tuple(available[i] if -count <= i < 0 else i for i in layers)
    for i in wanted:
        if i not in available:
            raise ValueError(
                f"{name} must lie in {available[0]}..{available[-1]} "
                f"(or -{count}..-1, from the end), got {i}."
            )
    return wanted


def no_attention(attention_layers: Sequence[int], owner: str) -> None:
    """Refuse to be asked for attention where there is none to be had."""
    check_sequence("attention_layers", attention_layers)
    if len(attention_layers):
        raise ValueError(
            f"attention_layers must be empty: {owner} gives no attention, "
            f"got {tuple(attention_layers)}."
        )


def resample_position(
    position: Tensor,
    *,
    grid: tuple[int, int],
    old_grid: tuple[int, int],
    prefix: int,
    antialias: bool = False,
) -> Tensor:
    """Resize the grid part of a position embedding ``(1, prefix + N, D)``: plain bicubic.

    No antialiasing, as in the released code of ToCo, MCTformer and CTI; timm's own resampling
    antialiases and differs by 8 % (larger grids) to 58 % (half the grid) of the embedding.
    """
    if not are_symbols(*grid) and grid == old_grid:
        return position
    head, body = position[:, :prefix], position[:, prefix:]
    body = at_least_float32(body).mT.reshape(1, -1, *old_grid)
    body = F.interpolate(body, size=grid, mode="bicubic", align_corners=False, antialias=antialias)
    return torch.cat([head, body.flatten(2).mT.to(position.dtype)], dim=1)


def token_features(
    tokens: Tensor,
    taps: dict[int, Tensor],
    *,
    grid: tuple[int, int],
    prefix: int,
    num_class_tokens: int,
    attention: Mapping[int, QueryKey] | None = None,
) -> Features:
    """Split prefix and patch tokens of the final and the tapped sequences."""

    def grid_of(x: Tensor) -> Tensor:
        maps = x[:, prefix:].mT
        if are_symbols(*grid):  # as a view, torch.export would refuse images of a single patch
            maps = maps.contiguous()
        return maps.reshape(x.shape[0], x.shape[2], *grid)

    return Features(
        feature_map=grid_of(tokens),
        class_tokens=tokens[:, :num_class_tokens],
        intermediates={layer: grid_of(tap) for layer, tap in taps.items()},
        class_tokens_at={layer: tap[:, :num_class_tokens] for layer, tap in taps.items()},
        taps=taps,
        attention=attention or {},
    )


def map_features(final: Tensor, taps: dict[int, Tensor]) -> Features:
    """Wrap the maps of a convolutional network, which has no class tokens."""

    def none(x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], 0, x.shape[1])

    return Features(
        feature_map=final,
        class_tokens=none(final),
        intermediates=dict(taps),
        class_tokens_at={layer: none(tap) for layer, tap in taps.items()},
        taps=taps,
    )
