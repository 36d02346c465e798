"""Any timm convolutional network as an encoder."""

import math
from collections.abc import Sequence
from typing import Any, Self, cast

import timm
from timm.models import VisionTransformer
from torch import Tensor, nn

from wsss_blocks._validate import check_choice
from wsss_blocks.backbones._common import (
    layer_numbers,
    map_features,
    no_attention,
    prepare_images,
    timm_statistics,
)
from wsss_blocks.backbones.features import Features, SizePolicy

__all__ = ["TimmCNN"]


class TimmCNN(nn.Module):
    """Encode images with a timm convolutional network.

    Layers are the stages 1..5 (stride 2, 4, 8, 16, 32; networks whose stem has stride 4 begin at
    2). The feature map is the output of the last stage: a convolution behind it (``conv_head``)
    belongs to the classifier and is removed with it. With a smaller ``output_stride`` the late
    stages dilate instead of striding.

    Args:
        model: timm's name, or a timm model with ``feature_info`` (its classifier is removed).
        pretrained: load timm's weights (by name only).
        output_stride: 8, 16 or 32 for a name; default 32. A built model keeps its own.
        size_policy: what to do with sizes that the stride does not divide.
        frozen: no parameter takes a gradient and ``train()`` leaves the model in eval mode, so
            that the statistics of its batch norms stay.
        mean: three numbers; default as timm's configuration of the model says.
        std: three numbers; default likewise.

    Shape:
        - images: ``(B, 3, H, W)``, RGB in ``[0, 1]``
        - feature_map: ``(B, D, ceil(H / stride), ceil(W / stride))`` (floor with ``"floor"``)

    Raises:
        TypeError: the model is not convolutional (a vision transformer), or has no
            ``feature_info``.
        ValueError: a built model together with ``pretrained`` or another ``output_stride``, an
            unknown size policy or layer, or images not RGB in ``[0, 1]``.

    Example:
        >>> import torch
        >>> encoder = TimmCNN("resnet10t", output_stride=16)
        >>> features = encoder(torch.rand(1, 3, 64, 90), layers=(2,))
        >>> features.feature_map.shape, features.intermediates[2].shape
        (torch.Size([1, 512, 4, 6]), torch.Size([1, 64, 16, 24]))
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: str | nn.Module,
        *,
        pretrained: bool = False,
        output_stride: int | None = None,
        size_policy: SizePolicy = "resize",
        frozen: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_choice("size_policy", size_policy, ("resize", "pad", "floor"))
        if isinstance(model, str):
            # Networks that cannot dilate do not know the argument.
            dilated = {} if output_stride in (None, 32) else {"output_stride": output_stride}
            cnn: Any = timm.create_model(model, pretrained, **cast(dict[str, Any], dilated))
        elif pretrained:
            raise ValueError("pretrained must be False for a model that is already built.")
        else:
            cnn = model
        stages, flat = getattr(cnn, "feature_info", None), isinstance(cnn, VisionTransformer)
        if not stages or not hasattr(cnn, "forward_intermediates") or flat:
            raise TypeError(
                "model must be a convolutional timm model with feature_info, got "
                f"{type(cnn).__name__}."
            )
        self.stride: int = stages[-1]["reduction"]
        if output_stride not in (None, self.stride):
            raise ValueError(
                f"output_stride must be that of the model ({self.stride}), got {output_stride}."
            )
        cnn.prune_intermediate_layers(list(range(len(stages))))
        self.register_buffer("mean", timm_statistics(cnn, "mean", mean))
        self.register_buffer("std", timm_statistics(cnn, "std", std))
        self.model: Any = cnn
        self.size_policy = size_policy
        self.frozen = frozen
        first = int(math.log2(stages[0]["reduction"]))
        self.layer_dims: dict[int, int] = {
            first + i: stage["num_chs"] for i, stage in enumerate(stages)
        }
        self.dim: int = stages[-1]["num_chs"]
        self.num_class_tokens = 0
        if frozen:
            self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Switch the mode; a frozen encoder stays in eval mode."""
        return super().train(mode and not self.frozen)

    def forward(
        self, images: Tensor, *, layers: Sequence[int] = (), attention_layers: Sequence[int] = ()
    ) -> Features:
        """Encode images; shapes as the class says."""
        no_attention(attention_layers, "a CNN")
        wanted = layer_numbers(layers, tuple(self.layer_dims))
        x = prepare_images(
            images, self.mean, self.std, stride=self.stride, size_policy=self.size_policy
        )
        stages = self.model.forward_intermediates(x, intermediates_only=True)
        maps = dict(zip(self.layer_dims, stages, strict=True))
        return map_features(stages[-1], {layer: maps[layer] for layer in wanted})

    def project(self, tokens: Tensor) -> Tensor:
        """Return the tokens: this encoder has no joint text space."""
        return tokens
