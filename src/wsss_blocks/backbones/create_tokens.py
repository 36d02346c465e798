"""The encoders with class tokens that every example can be asked for by name."""

import os
from typing import Any, cast

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from wsss_blocks.backbones.class_token_weights import load_class_token_weights
from wsss_blocks.backbones.create import create_encoder, is_timm_vit, small_vit, weights_file
from wsss_blocks.backbones.token_vit import TokenViT

__all__ = ["EncoderPatches", "create_token_encoder"]

_WIDTH, _GRID = 256, 24  # of the transformer on frozen features; positions are resampled


class EncoderPatches(nn.Module):
    """Make the patches of a transformer from the cells of another encoder's feature map.

    In the place of ``patch_embed.proj`` of a timm ``VisionTransformer`` whose ``patch_size`` is the
    stride of the encoder (a hybrid, as in ViT's paper, section 3.1).

    Args:
        encoder: under the contract :class:`~wsss_blocks.backbones.Encoder`; it normalises colours
            itself.
        dim: D, the width of the transformer.

    Shape:
        - images: ``(B, 3, H, W)``, RGB in ``[0, 1]``; output: ``(B, D, h, w)``

    Example:
        >>> import torch
        >>> from wsss_blocks.backbones import SmallCNN
        >>> EncoderPatches(SmallCNN(), 32)(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 32, 8, 8])
    """

    def __init__(self, encoder: nn.Module, dim: int) -> None:
        super().__init__()
        self.encoder = cast(Any, encoder)
        self.project = nn.Conv2d(int(self.encoder.dim), dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Encode and project; ``project`` alone takes cached feature maps of the encoder."""
        patches: Tensor = self.project(self.encoder(images).feature_map)
        return patches


def create_token_encoder(
    name: str,
    num_classes: int,
    *,
    weights: str | os.PathLike[str] | None = None,
    background: bool = False,
    generator: bool = False,
) -> TokenViT:
    """Build a transformer with a token per class: the encoder of MCTformer and CTI.

    Args:
        name: ``"small-vit"`` (three blocks of width 128 on the stages of
            :class:`~wsss_blocks.backbones.SmallCNN`, from scratch); ``"mobilenet"`` or the name of
            a timm CNN (three blocks of width 256, from scratch, on its frozen features); otherwise
            the name of a timm ViT, in the papers ``"deit_small_patch16_224"``.
        num_classes: K, without background.
        weights: None for random ones; ``"pretrained"`` for those that timm downloads; a file: of
            the CNN for :func:`~wsss_blocks.backbones.create_encoder`, of a ViT for
            :func:`~wsss_blocks.backbones.load_class_token_weights` (MCTformer, CTI, DeiT).
        background: a background token comes first.
        generator: make the tokens with a perceptron; see
            :class:`~wsss_blocks.backbones.ClassTokens`.

    Returns:
        The encoder.

    Raises:
        ValueError: an unknown name, or weights that the encoder cannot take.
        FileNotFoundError: there is no such file.

    Example:
        >>> encoder = create_token_encoder("small-vit", 10, background=True)
        >>> encoder.dim, encoder.stride, encoder.num_class_tokens, len(encoder.layer_dims)
        (128, 8, 11, 3)
    """
    tokens: dict[str, Any] = {"background": background, "generator": generator}
    if name == "small-vit":
        weights_file(name, weights)
        small, statistics = small_vit()
        return TokenViT(small, num_classes, **tokens, **statistics)
    if name != "mobilenet" and is_timm_vit(name, own=("small-vit", "mobilenet")):
        file = weights_file(name, weights)
        download = weights is not None and file is None
        encoder = TokenViT(name, num_classes, pretrained=download, **tokens)
        if file is not None:
            load_class_token_weights(file, encoder)
        return encoder
    patches = EncoderPatches(create_encoder(name, weights=weights), _WIDTH)
    stride: int = patches.encoder.stride
    vit = VisionTransformer(
        img_size=_GRID * stride,
        patch_size=stride,
        embed_dim=_WIDTH,
        depth=3,
        num_heads=4,
        mlp_ratio=3.0,
        num_classes=0,
    )
    vit.patch_embed.proj = patches
    return TokenViT(vit, num_classes, mean=(0.0,) * 3, std=(1.0,) * 3, **tokens)
