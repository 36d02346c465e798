"""MobileNetV1 at any width, for real features on a CPU (Howard et al., 2017)."""

import os
from functools import partial
from typing import Any, cast

import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.models.efficientnet import (  # type: ignore[attr-defined]
    EfficientNet,
    decode_arch_def,
    round_channels,
)
from torch import Tensor, nn

from wsss_blocks._validate import check_choice, check_int, check_positive
from wsss_blocks.backbones._weights_file import load_weights_file

__all__ = ["mobilenet_v1"]


def mobilenet_v1(
    multiplier: float = 0.75,
    *,
    output_stride: int = 32,
    weights: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Build timm's MobileNetV1 at a width that timm has no name for.

    "Same" padding, batch-norm epsilon 1e-3, ReLU6 and the normalisation ``2 x - 1`` (mean and std
    0.5), as in the TensorFlow original, whose ImageNet weights fit. Wrap it in
    :class:`~wsss_blocks.backbones.TimmCNN` to use it as an encoder.

    Reference:
        "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
        table 1, https://arxiv.org/abs/1704.04861

    Args:
        multiplier: width relative to the paper's network, rounded to multiples of 8 channels.
        output_stride: 8, 16 or 32; below 32 the late stages dilate instead of striding.
        weights: safetensors with timm's keys, loaded strictly.

    Returns:
        timm ``EfficientNet`` module: images ``(B, 3, H, W)`` in ``[-1, 1]`` to 1,000 logits.

    Raises:
        ValueError: the multiplier is not positive, ``output_stride`` is not 8, 16 or 32, or the
            weights are damaged or of another network.
        FileNotFoundError: there is no such file of weights.

    Example:
        >>> import torch
        >>> mobilenet_v1(0.25).forward_features(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 256, 2, 2])
    """
    check_positive("multiplier", multiplier)
    check_int("output_stride", output_stride)
    check_choice("output_stride", str(output_stride), ("8", "16", "32"))
    stages = [
        ["dsa_r1_k3_s1_c64"],
        ["dsa_r2_k3_s2_c128"],
        ["dsa_r2_k3_s2_c256"],
        ["dsa_r6_k3_s2_c512"],
        ["dsa_r2_k3_s2_c1024"],
    ]
    model: Any = EfficientNet(
        decode_arch_def(stages),  # type: ignore[no-untyped-call]
        num_features=0,
        stem_size=32,
        output_stride=output_stride,
        pad_type="same",
        act_layer=nn.ReLU6,
        norm_layer=partial(nn.BatchNorm2d, eps=1e-3),
        round_chs_fn=partial(round_channels, multiplier=multiplier),
    )
    for name, conv in list(model.named_modules()):
        if isinstance(conv, Conv2dSame):
            model.set_submodule(name, _SameConv2d(conv))
    model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    if weights is not None:
        if not os.path.isfile(weights):
            raise FileNotFoundError(f"no file of weights at {weights}.")
        load_weights_file(weights, model, name="mobilenet")
    return cast(nn.Module, model)


class _SameConv2d(nn.Conv2d):
    # timm computes this padding with ceilings, which take torch.compile(dynamic=True) minutes.
    def __init__(self, conv: nn.Conv2d) -> None:
        channels = conv.in_channels, conv.out_channels
        super().__init__(*channels, 3, stride=2, groups=conv.groups, bias=False)
        self.weight = conv.weight

    def forward(self, x: Tensor) -> Tensor:
        # One more row and column behind, in front only where the side is odd.
        return super().forward(F.pad(x, (x.shape[-1] % 2, 1, x.shape[-2] % 2, 1)))
