"""DeepLabV3+ on a convolutional encoder known by name, the decoder from smp (Chen et al., 2018)."""

import os
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from wsss_blocks import backbones
from wsss_blocks._optional import require
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_fraction,
    check_int,
    check_like_weight,
    check_sequence,
    check_shape,
)
from wsss_blocks.segmenters._checkpoint import check_encoder_name

__all__ = ["DeepLabV3PlusNetwork"]

_LOW = 2  # the layer at stride 4: it gives the decoder its edges and its grid


class DeepLabV3PlusNetwork(nn.Module):
    r"""Segment images with a dilated CNN, atrous spatial pyramid pooling and a decoder.

    .. math::

        Z = W * \mathrm{Decoder}\bigl(\mathrm{ASPP}(E_5(x)), E_2(x)\bigr)

    with :math:`E_5` the features of the encoder's last layer, :math:`E_2` those at stride 4 and
    :math:`W` a :math:`1 \times 1` convolution without bias. The encoder learns, batch norms
    included. ``recipe`` is all that builds the network again. The extra ``seg`` has the decoder.

    Reference:
        "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation"
        (DeepLabV3+), https://arxiv.org/abs/1802.02611; sizes of "DHR: Dual Features-Driven
        Hierarchical Rebalancing in Inter- and Intra-Class Regions for Weakly-Supervised Semantic
        Segmentation", released code, https://arxiv.org/abs/2404.00380

    Note:
        DHR's decoder has two plain :math:`3 \times 3` convolutions, with dropout 0.5 and 0.1,
        behind the concatenation and none behind the ASPP; segmentation_models_pytorch's has one
        separable one in either place, and here dropout 0.1 follows the last. Its interpolation
        aligns corners; here it does not, as in DHR. At output stride 8, DHR gives the first block
        of ``layer4`` of a ResNet dilation 1; timm and torchvision give it 2, the dilation that
        computes the strided network's features in between. Layer 1 is in front of the max-pooling
        (stride 2), DHR's C1 behind it (stride 4); C2 to C5 are the layers 2 to 5.

    Args:
        encoder: Name of a CNN for :func:`~wsss_blocks.backbones.create_encoder`; the default is
            the ResNet-101 whose pretrained weights are torchvision's.
        num_classes: Channels of the logits, background included.
        weights: Of the encoder, likewise; they are no part of the recipe.
        output_stride: Pixels per cell of the encoder's last layer, 8 or 16.
        rates: Dilations of the three :math:`3 \times 3` convolutions of the ASPP, beside a
            :math:`1 \times 1` one and the pooled image.
        hidden_dim: Channels of the ASPP and of the decoder.
        separable: Make those three convolutions depthwise separable.
        dropout: Share that is dropped behind the ASPP and in front of :math:`W`.

    Attributes:
        encoder: :class:`~wsss_blocks.backbones.TimmCNN`, which owns mean and std.
        decoder: ``DeepLabV3PlusDecoder`` of segmentation_models_pytorch.
        classifier: :math:`W`.
        dim: Channels of the encoder's last layer.
        num_classes: Channels of the logits.

    Shape:
        - Input: ``(B, 3, H, W)``, RGB in ``[0, 1]``
        - Output: ``(B, num_classes, H / 4, W / 4)``, of the image resized to the next multiples of
          the output stride

    Raises:
        FileNotFoundError: If there is no such file of weights.
        ImportError: If segmentation_models_pytorch is not installed.
        TypeError: If a number or sequence is something else.
        ValueError: If a number is out of range, the encoder is unknown, no CNN that can dilate or
            without a layer 2 at stride 4, or cannot take the weights; in training mode, if there
            is one image only: the ASPP normalises the pooled images over the batch
            (``network.decoder.eval()`` uses the running statistics instead).

    Example:
        >>> import torch
        >>> network = DeepLabV3PlusNetwork("resnet10t", num_classes=21, hidden_dim=32).eval()
        >>> network(torch.rand(1, 3, 96, 64)).shape
        torch.Size([1, 21, 24, 16])
        >>> x, features = network.encode(torch.rand(1, 3, 96, 64), layers=(4,))
        >>> x.shape, features.intermediates[4].shape
        (torch.Size([1, 512, 12, 8]), torch.Size([1, 256, 12, 8]))
    """

    def __init__(
        self,
        encoder: str = "resnet101.tv_in1k",
        *,
        num_classes: int,
        weights: str | os.PathLike[str] | None = None,
        output_stride: int = 8,
        rates: Sequence[int] = (12, 24, 36),
        hidden_dim: int = 256,
        separable: bool = False,
        dropout: tuple[float, float] = (0.5, 0.1),
    ) -> None:
        super().__init__()
        smp: Any = require("segmentation_models_pytorch", extra="seg", what="DeepLabV3PlusNetwork")
        check_encoder_name(encoder)
        check_int("num_classes", num_classes, least=1)
        check_int("hidden_dim", hidden_dim, least=1)
        check_int("output_stride", output_stride)
        if output_stride not in (8, 16):
            raise ValueError(f"output_stride must be 8 or 16, got {output_stride}.")
        for name, values, count in (("rates", rates, 3), ("dropout", dropout, 2)):
            check_sequence(name, values)
            if len(values) != count:
                raise ValueError(f"{name} must hold {count} numbers, got {len(values)}.")
        for rate in rates:
            check_int("rates", rate, least=1)
        for share in dropout:
            check_fraction("dropout", share)
        build: Any = backbones.create_encoder
        self.encoder = build(encoder, weights=weights, output_stride=output_stride, frozen=False)
        if _LOW not in self.encoder.layer_dims:
            known = ", ".join(map(str, self.encoder.layer_dims))
            raise ValueError(f"encoder must have a layer {_LOW}, got {encoder!r} with {known}.")
        self.dim: int = self.encoder.dim
        self.low_dim: int = self.encoder.layer_dims[_LOW]
        self.num_classes, self.scale = num_classes, output_stride // 4
        self.decoder = smp.decoders.deeplabv3.decoder.DeepLabV3PlusDecoder(
            encoder_channels=(3, 3, self.low_dim, self.dim),  # it reads the places 2 and -1 only
            encoder_depth=5,
            out_channels=hidden_dim,
            atrous_rates=tuple(rates),
            output_stride=output_stride,
            aspp_separable=separable,
            aspp_dropout=dropout[0],
        )
        self.decoder.up = nn.Upsample(scale_factor=self.scale, mode="bilinear", align_corners=False)
        self.dropout = nn.Dropout(dropout[1])
        self.classifier = nn.Conv2d(hidden_dim, num_classes, 1, bias=False)
        smp.base.initialization.initialize_decoder(self.decoder)
        smp.base.initialization.initialize_head(self.classifier)
        self._recipe = {
            "kind": "deeplabv3plus",
            "encoder": encoder,
            "num_classes": num_classes,
            "output_stride": output_stride,
            "rates": tuple(rates),
            "hidden_dim": hidden_dim,
            "separable": separable,
            "dropout": tuple(dropout),
        }

    @property
    def recipe(self) -> dict[str, object]:
        """What builds this network again, without its weights; a dictionary that JSON can hold."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self._recipe.items()}

    def encode(
        self, images: Tensor, *, layers: Sequence[int] = ()
    ) -> tuple[Tensor, backbones.Features]:
        """Return the last map ``(B, dim, h, w)`` and all that the encoder computed.

        ``layers`` asks for further intermediate maps; layer 2 is always among them.
        """
        features: backbones.Features = self.encoder(images, layers=(*layers, _LOW))
        return features.feature_map, features

    def decode(self, x: Tensor, features: backbones.Features) -> Tensor:
        """Return the logits ``(B, num_classes, H / 4, W / 4)`` of what :meth:`encode` returned."""
        low = features.intermediates.get(_LOW)
        if low is None:
            known = ", ".join(map(str, features.intermediates)) or "none"
            raise ValueError(f"features must hold layer {_LOW}, got layers: {known}.")
        check_shape("x", x, "B D h w", D=self.dim)
        batch, _, h, w = x.shape
        size = {"B": batch, "D": self.low_dim, "h": self.scale * h, "w": self.scale * w}
        check_shape(f"layer {_LOW} of features", low, "B D h w", **size)
        for name, value in (("x", x), (f"layer {_LOW} of features", low)):
            check_floating(name, value)
            check_like_weight(name, value, self.classifier.weight)
            check_finite(name, value)
        pooling = self.decoder.aspp[0].convs[-1]
        if any(isinstance(m, nn.BatchNorm2d) and m.training for m in pooling) and batch == 1:
            raise ValueError(
                "images must be at least two in training mode, where the ASPP normalises the "
                "pooled images over the batch, got 1; network.decoder.eval() stops that."
            )
        hidden = self.decoder([low, low, low, x])
        return cast(Tensor, self.classifier(self.dropout(hidden)))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images; shapes as the class says."""
        return self.decode(*self.encode(images))
