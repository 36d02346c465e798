"""Any timm vision transformer as an encoder (Dosovitskiy et al., ICLR 2021)."""

from collections.abc import Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from wsss_blocks._validate import check_choice
from wsss_blocks.backbones._common import (
    prepare_images,
    resample_position,
    timm_statistics,
    token_features,
)
from wsss_blocks.backbones._vit_blocks import (
    attention_tapes,
    embed_patches,
    open_vit,
    run_blocks,
)
from wsss_blocks.backbones.features import Features, SizePolicy

__all__ = ["TimmViT"]


class TimmViT(nn.Module):
    """Encode images with a timm vision transformer at any size.

    The final tokens come after the last LayerNorm; an intermediate is the raw output of its block,
    before any norm. The position embedding is resampled to each grid (bicubic). Activation
    checkpointing follows timm's switch: ``encoder.model.set_grad_checkpointing()``. Attention that
    is asked for is the queries and keys as fused attention reads them, which goes on being fused.

    Reference:
        "An Image is Worth 16x16 Words", section 3.1, https://arxiv.org/abs/2010.11929

    Note:
        Register and distillation tokens take part in the attention and in ``taps`` but are not
        class tokens. timm resamples position embeddings with antialiasing; this module does not,
        as the authors' code of ToCo, MCTformer and CTI does not. Models that pool before
        their norm (``fc_norm``) get that norm per token. Rotary and windowed models (EVA, Swin)
        are other classes in timm and are refused.

    Args:
        model: timm's name, or a ``timm.models.VisionTransformer`` (its classifier is removed).
        pretrained: load timm's weights (by name only).
        size_policy: what to do with sizes that the patch size does not divide.
        freeze_pos_embed: keep the position embedding out of the gradient, as ToCo does.
        frozen: no parameter takes a gradient and ``train()`` leaves the model in eval mode.
        mean: three numbers; default as timm's configuration of the model says.
        std: three numbers; default likewise.

    Shape:
        - images: ``(B, 3, H, W)``, RGB in ``[0, 1]``
        - feature_map: ``(B, D, ceil(H / patch), ceil(W / patch))`` (floor with ``"floor"``)

    Raises:
        TypeError: the model is not a ``VisionTransformer``.
        ValueError: patches are not square, patch dropout is on, an unknown size policy or layer,
            images not RGB in ``[0, 1]``, or a module together with ``pretrained``.

    Example:
        >>> import torch
        >>> from timm.models import VisionTransformer
        >>> vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2)
        >>> features = TimmViT(vit)(torch.rand(1, 3, 32, 44), layers=(-2,))
        >>> features.feature_map.shape, list(features.intermediates)
        (torch.Size([1, 32, 4, 6]), [1])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: str | nn.Module,
        *,
        pretrained: bool = False,
        size_policy: SizePolicy = "resize",
        freeze_pos_embed: bool = False,
        frozen: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_choice("size_policy", size_policy, ("resize", "pad", "floor"))
        vit = open_vit(model, pretrained=pretrained)
        self.register_buffer("mean", timm_statistics(vit, "mean", mean))
        self.register_buffer("std", timm_statistics(vit, "std", std))
        self.model: Any = vit
        self.size_policy = size_policy
        self.frozen = frozen
        self.dim: int = vit.embed_dim
        self.layer_dims: dict[int, int] = dict.fromkeys(range(len(vit.blocks)), vit.embed_dim)
        self.stride: int = vit.patch_embed.patch_size[0]
        self.num_class_tokens = int(vit.cls_token is not None)
        self._tapes = attention_tapes(vit)
        if freeze_pos_embed and vit.pos_embed is not None:
            vit.pos_embed.requires_grad_(False)
        if frozen:
            self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Switch the mode; a frozen encoder stays in eval mode."""
        return super().train(mode and not self.frozen)

    def forward(
        self, images: Tensor, *, layers: Sequence[int] = (), attention_layers: Sequence[int] = ()
    ) -> Features:
        """Encode images; shapes as the class says."""
        x = prepare_images(
            images, self.mean, self.std, stride=self.stride, size_policy=self.size_policy
        )
        grid = (x.shape[-2] // self.stride, x.shape[-1] // self.stride)
        x, taps, attention = run_blocks(
            self.model,
            self._embed(x, grid),
            self._tapes,
            layers=layers,
            attention_layers=attention_layers,
        )
        return token_features(
            self.model.fc_norm(self.model.norm(x)),
            taps,
            grid=grid,
            prefix=self.model.num_prefix_tokens,
            num_class_tokens=self.num_class_tokens,
            attention=attention,
        )

    def project(self, tokens: Tensor) -> Tensor:
        """Return the tokens: this encoder has no joint text space."""
        return tokens

    def _embed(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        vit = self.model
        patches = embed_patches(vit, x)
        prefix = [
            token.expand(patches.shape[0], -1, -1)
            for token in (vit.cls_token, getattr(vit, "dist_token", None), vit.reg_token)
            if token is not None
        ]
        if vit.pos_embed is None:
            tokens = torch.cat([*prefix, patches], dim=1)
            return cast(Tensor, vit.norm_pre(vit.pos_drop(tokens)))
        position = resample_position(
            vit.pos_embed,
            grid=grid,
            old_grid=tuple(vit.patch_embed.grid_size),
            prefix=0 if vit.no_embed_class else vit.num_prefix_tokens,
        )
        if vit.no_embed_class:
            tokens = torch.cat([*prefix, patches + position], dim=1)
        else:
            tokens = torch.cat([*prefix, patches], dim=1) + position
        return cast(Tensor, vit.norm_pre(vit.pos_drop(tokens)))
