"""The encoders that every example can be asked for by name."""

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from wsss_blocks.backbones.mobilenet import mobilenet_v1
from wsss_blocks.backbones.small_cnn import SmallCNN
from wsss_blocks.backbones.timm_cnn import TimmCNN
from wsss_blocks.backbones.timm_vit import TimmViT

__all__ = ["create_encoder"]


def create_encoder(name: str, *, weights: str | None = None) -> nn.Module:
    """Build an image encoder under the contract :class:`wsss_blocks.backbones.Encoder`.

    Args:
        name: ``"small-cnn"`` (:class:`SmallCNN`, from scratch); ``"small-vit"`` (three transformer
            blocks on its stages, from scratch); ``"mobilenet"`` (MobileNetV1 0.75 at stride 16,
            frozen); otherwise the name of a timm ViT, fine-tuned with a frozen position embedding.
        weights: None for random ones; ``"pretrained"`` for those that timm downloads; for
            ``"mobilenet"`` the path of a safetensors file.

    Returns:
        The encoder.

    Raises:
        ValueError: weights that this encoder cannot take.
        RuntimeError: timm does not know the name.

    Example:
        >>> encoder = create_encoder("small-cnn")
        >>> encoder.dim, encoder.stride, encoder.layer_dims
        (128, 8, {1: 32, 2: 64, 3: 128})
    """
    if name in ("small-cnn", "small-vit"):
        if weights is not None:
            raise ValueError(f"weights must be None for {name!r}, which starts from scratch.")
        return SmallCNN() if name == "small-cnn" else _small_vit()
    if name == "mobilenet":
        return TimmCNN(mobilenet_v1(weights=weights, output_stride=16), frozen=True)
    if weights not in (None, "pretrained"):
        raise ValueError(f"weights must be None or 'pretrained' for {name!r}, got {weights!r}.")
    return TimmViT(name, pretrained=weights is not None, freeze_pos_embed=True)


def _small_vit() -> TimmViT:
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
    return TimmViT(vit, mean=stem.mean.tolist(), std=stem.std.tolist())
