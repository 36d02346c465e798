"""A small residual network, to train from scratch on small images on a CPU."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsss_blocks._validate import check_choice, check_int, check_sequence
from wsss_blocks.backbones._common import (
    channel_statistics,
    layer_numbers,
    map_features,
    no_attention,
    prepare_images,
)
from wsss_blocks.backbones.features import Features, SizePolicy

__all__ = ["SmallCNN"]


class SmallCNN(nn.Module):
    r"""Encode small images with strided 3x3 convolutions and residual blocks.

    Stage :math:`i` halves the resolution, then refines:

    .. math::

        x_i = R_i\bigl(\mathrm{ReLU}(\mathrm{BN}(W_i *_2 x_{i-1}))\bigr), \qquad
        R(x) = \mathrm{ReLU}\bigl(x + \mathrm{BN}(V * \mathrm{ReLU}(\mathrm{BN}(U * x)))\bigr)

    The default (strides 2, 4, 8; a block at 4 and one at 8) learns the ``scenes`` data from
    scratch in minutes. With group norm (8 groups, and half as many as channels) it was still near
    chance when batch norm classified nearly perfectly, so batch norm it is: in training mode the
    features of an image depend on its batch.

    Reference:
        Residual blocks: "Deep Residual Learning for Image Recognition", figure 2,
        https://arxiv.org/abs/1512.03385

    Args:
        widths: channels of the stages; the stride is ``2 ** len(widths)``.
        blocks: residual blocks of each stage.
        size_policy: what to do with sizes that the stride does not divide.
        mean: three numbers, subtracted from the images.
        std: three numbers that divide the images.

    Shape:
        - images: ``(B, 3, H, W)``, RGB in ``[0, 1]``
        - feature_map: ``(B, widths[-1], ceil(H / stride), ceil(W / stride))``
        - layers 1..len(widths): ``(B, widths[i - 1], H / 2 ** i, W / 2 ** i)``

    Raises:
        ValueError: no stage, widths and blocks of different length, a width below 1, an unknown
            size policy or layer, or images not RGB in ``[0, 1]``.

    Example:
        >>> import torch
        >>> features = SmallCNN()(torch.rand(2, 3, 96, 96), layers=(2,))
        >>> features.feature_map.shape, features.intermediates[2].shape
        (torch.Size([2, 128, 12, 12]), torch.Size([2, 64, 24, 24]))
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128),
        *,
        blocks: Sequence[int] = (0, 1, 1),
        size_policy: SizePolicy = "resize",
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.25, 0.25, 0.25),
    ) -> None:
        super().__init__()
        check_choice("size_policy", size_policy, ("resize", "pad", "floor"))
        check_sequence("widths", widths)
        check_sequence("blocks", blocks)
        if not widths or len(widths) != len(blocks):
            raise ValueError(
                "widths and blocks must hold one number per stage, "
                f"got {len(widths)} widths and {len(blocks)} blocks."
            )
        for width, count in zip(widths, blocks, strict=True):
            check_int("widths", width, least=1)
            check_int("blocks", count, least=0)
        self.register_buffer("mean", channel_statistics("mean", mean))
        self.register_buffer("std", channel_statistics("std", std))
        self.size_policy = size_policy
        self.layer_dims: dict[int, int] = dict(enumerate(widths, start=1))
        self.dim: int = widths[-1]
        self.stride: int = 2 ** len(widths)
        self.num_class_tokens = 0
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                *(_Residual(width) for _ in range(count)),
            )
            for before, width, count in zip((3, *widths[:-1]), widths, blocks, strict=True)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw He-normal convolutions (fan-out); each norm starts as the identity map."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()

    def forward(
        self, images: Tensor, *, layers: Sequence[int] = (), attention_layers: Sequence[int] = ()
    ) -> Features:
        """Encode images; shapes as the class says."""
        no_attention(attention_layers, "a CNN")
        wanted = layer_numbers(layers, tuple(self.layer_dims))
        x = prepare_images(
            images, self.mean, self.std, stride=self.stride, size_policy=self.size_policy
        )
        taps = {}
        for i, stage in enumerate(self.stages, start=1):
            x = stage(x)
            if i in wanted:
                taps[i] = x
        return map_features(x, taps)

    def project(self, tokens: Tensor) -> Tensor:
        """Return the tokens: this encoder has no joint text space."""
        return tokens


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(y)))
