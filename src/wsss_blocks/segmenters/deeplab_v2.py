"""DeepLabV2 on an encoder known by name: the second stage of many weakly supervised systems."""

import os
from collections.abc import Sequence
from typing import Any, Self, cast

from torch import Tensor, nn

from wsss_blocks import backbones
from wsss_blocks._validate import check_int
from wsss_blocks.decoders import DeepLabV2Head
from wsss_blocks.segmenters._checkpoint import check_encoder_name

__all__ = ["DeepLabV2Network"]


class DeepLabV2Network(nn.Module):
    r"""Segment images with a dilated encoder and the sum of four dilated classifiers.

    .. math:: Z = \sum_{r \in R} \bigl(W_r *_r E(x) + b_r\bigr)

    with :math:`E` the features of the encoder's last layer. The encoder learns, while its batch
    norms stay as they are (``frozen_norms``), scales and shifts included. ``recipe`` is all that
    builds the network again.

    Reference:
        "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and
        Fully Connected CRFs", the network on a ResNet-101; https://arxiv.org/abs/1606.00915

    Note:
        The paper trains on the largest of the logits at scales 0.5, 0.75 and 1; here one scale is
        trained, and scales are fused at test time. The paper starts from weights learnt on COCO,
        weakly supervised systems from ImageNet's. timm gives the first block of a dilated stage
        the dilation of the stage before, public re-implementations that of the other blocks.

    Args:
        encoder: Name for :func:`~wsss_blocks.backbones.create_encoder`; the default is the
            ResNet-101 whose pretrained weights are torchvision's.
        num_classes: Channels of the logits, background included.
        weights: Of the encoder, likewise; they are no part of the recipe.
        output_stride: Pixels per cell of the encoder's last layer, 8, 16 or 32, for CNNs of timm
            and ``"mobilenet"``, which learn with it. None leaves the encoder as that function
            makes it: for ``"small-cnn"`` and ViTs, which cannot dilate.
        rates: Dilations of the classifiers.
        frozen_norms: Keep statistics, scales and shifts of all batch norms. Not for an encoder
            that starts from scratch.

    Attributes:
        encoder: The image encoder, which owns mean and std.
        decoder: :class:`~wsss_blocks.decoders.DeepLabV2Head`.
        dim: Channels of the encoder's last layer.
        num_classes: Channels of the logits.

    Shape:
        - Input: ``(B, 3, H, W)``, RGB in ``[0, 1]``
        - Output: ``(B, num_classes, h, w)``, on the grid of the encoder's last layer

    Raises:
        FileNotFoundError: If there is no such file of weights.
        TypeError: If a number or sequence is something else.
        ValueError: If a number is out of range, the encoder is unknown, or it cannot have the
            output stride or take the weights.

    Example:
        >>> import torch
        >>> network = DeepLabV2Network("resnet10t", num_classes=21)
        >>> network(torch.rand(1, 3, 96, 64)).shape
        torch.Size([1, 21, 12, 8])
        >>> network.recipe["kind"], network.recipe["rates"]
        ('deeplabv2', [6, 12, 18, 24])
    """

    def __init__(
        self,
        encoder: str = "resnet101.tv_in1k",
        *,
        num_classes: int,
        weights: str | os.PathLike[str] | None = None,
        output_stride: int | None = 8,
        rates: Sequence[int] = (6, 12, 18, 24),
        frozen_norms: bool = True,
    ) -> None:
        super().__init__()
        check_encoder_name(encoder)
        options: dict[str, Any] = {}
        if output_stride is not None:
            check_int("output_stride", output_stride)
            options = {"output_stride": output_stride, "frozen": False}
        self.encoder = cast(Any, backbones.create_encoder(encoder, weights=weights, **options))
        self.decoder = DeepLabV2Head(self.encoder.dim, num_classes, rates=rates)
        self.dim: int = self.encoder.dim
        self.num_classes, self.frozen_norms = num_classes, frozen_norms
        if frozen_norms:
            for norm in self._norms():
                norm.requires_grad_(False)
        self._recipe = {
            "kind": "deeplabv2",
            "encoder": encoder,
            "num_classes": num_classes,
            "output_stride": output_stride,
            "rates": tuple(rates),
            "frozen_norms": frozen_norms,
        }
        self.train()

    @property
    def recipe(self) -> dict[str, object]:
        """What builds this network again, without its weights; a dictionary that JSON can hold."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self._recipe.items()}

    def train(self, mode: bool = True) -> Self:
        """Switch the mode; frozen norms stay in eval mode."""
        super().train(mode)
        if self.frozen_norms:
            for norm in self._norms():
                norm.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images; shapes as the class says."""
        return cast(Tensor, self.decoder(self.encoder(images).feature_map))

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
