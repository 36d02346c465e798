"""open_clip's vision transformers as encoders (CLIP: Radford et al., ICML 2021)."""

from collections.abc import Sequence
from typing import Any, Self

import open_clip
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wsss_blocks._validate import check_choice
from wsss_blocks.backbones._common import (
    channel_statistics,
    layer_numbers,
    prepare_images,
    resample_position,
    token_features,
)
from wsss_blocks.backbones._open_clip import create_open_clip
from wsss_blocks.backbones._open_clip_attention import open_clip_query_key
from wsss_blocks.backbones.features import Features, SizePolicy

__all__ = ["OpenCLIPImageEncoder"]


class OpenCLIPImageEncoder(nn.Module):
    """Encode images with the image tower of an open_clip model at any size.

    The final tokens come after ``ln_post``; ``project`` takes them, patch tokens included, into
    the joint space of images and texts, and ``project(features.global_token)`` is what
    ``model.encode_image`` returns. An intermediate is the raw output of its block. The position
    embedding is resampled to each grid (bicubic), which open_clip itself does only when it
    loads weights. Activation checkpointing follows open_clip's switch:
    ``encoder.model.set_grad_checkpointing()``.

    Reference:
        "Learning Transferable Visual Models From Natural Language Supervision", section 2.4,
        https://arxiv.org/abs/2103.00020

    Note:
        A tower that averages its patches (``pool_type="avg"``) is not trained to use its class
        token, so ``num_class_tokens`` is 0 there and the global token is that average. Towers of
        timm inside open_clip (SigLIP) are wrapped as ``TimmViT(model.visual.trunk)``.

    Args:
        model: open_clip's name, a CLIP model, or its ``visual`` tower (shared, not copied).
        pretrained: open_clip's tag or a file of weights (by name only).
        size_policy: what to do with sizes that the patch size does not divide.
        frozen: no parameter takes a gradient and ``train()`` leaves the tower in eval mode.
        mean: three numbers; default as the model's preprocessing says, else OpenAI's.
        std: three numbers; default likewise.

    Shape:
        - images: ``(B, 3, H, W)``, RGB in ``[0, 1]``
        - feature_map: ``(B, D, ceil(H / patch), ceil(W / patch))`` (floor with ``"floor"``)

    Raises:
        TypeError: the tower is not open_clip's ``VisionTransformer``.
        ValueError: the tower pools by attention or after its own norm, drops patches, or has
            patches that are not square; an unknown size policy or layer; images not RGB in
            ``[0, 1]``; a module together with ``pretrained``; attention is asked of a block
            that has another kind than ``nn.MultiheadAttention``.

    Example:
        >>> import torch
        >>> from open_clip.transformer import VisionTransformer
        >>> tower = VisionTransformer(
        ...     32, 8, width=32, layers=2, heads=2, mlp_ratio=2, output_dim=16
        ... )
        >>> encoder = OpenCLIPImageEncoder(tower)
        >>> features = encoder(torch.rand(1, 3, 32, 40))
        >>> features.feature_map.shape, encoder.project(features.patch_tokens).shape
        (torch.Size([1, 32, 4, 5]), torch.Size([1, 20, 16]))
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: str | nn.Module,
        *,
        pretrained: str | None = None,
        size_policy: SizePolicy = "resize",
        frozen: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_choice("size_policy", size_policy, ("resize", "pad", "floor"))
        if isinstance(model, str):
            model = create_open_clip(model, pretrained)
        elif pretrained is not None:
            raise ValueError("pretrained must be None for a model that is already built.")
        visual: Any = getattr(model, "visual", model)
        if not isinstance(visual, VisionTransformer):
            raise TypeError(
                "model must have open_clip's VisionTransformer as image tower, got "
                f"{type(visual).__name__}."
            )
        _check_tower(visual)
        mean = mean or getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN
        std = std or getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD
        self.register_buffer("mean", channel_statistics("mean", mean))
        self.register_buffer("std", channel_statistics("std", std))
        self.model: Any = visual
        self.size_policy = size_policy
        self.frozen = frozen
        self.dim: int = visual.transformer.width
        self.layer_dims: dict[int, int] = dict.fromkeys(
            range(len(visual.transformer.resblocks)), self.dim
        )
        self.stride: int = visual.patch_size[0]
        self.num_class_tokens = int(visual.pool_type == "tok")
        if frozen:
            self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Switch the mode; a frozen encoder stays in eval mode."""
        return super().train(mode and not self.frozen)

    def forward(
        self, images: Tensor, *, layers: Sequence[int] = (), attention_layers: Sequence[int] = ()
    ) -> Features:
        """Encode images; shapes as the class says."""
        wanted = layer_numbers(layers, tuple(self.layer_dims))
        asked = layer_numbers(attention_layers, tuple(self.layer_dims), name="attention_layers")
        x = prepare_images(
            images, self.mean, self.std, stride=self.stride, size_policy=self.size_policy
        )
        tower = self.model
        patches = tower.conv1(x)
        grid = (patches.shape[-2], patches.shape[-1])
        patches = patches.flatten(2).mT
        first = tower.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        position = resample_position(
            tower.positional_embedding[None],
            grid=grid,
            old_grid=tuple(tower.grid_size),
            prefix=1,
        )
        x = tower.ln_pre(torch.cat([first, patches], dim=1) + position.to(patches.dtype))
        taps, attention = {}, {}
        for i, block in enumerate(tower.transformer.resblocks):
            if i in asked:
                attention[i] = open_clip_query_key(block, x, layer=i)
            if tower.transformer.grad_checkpointing:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if i in wanted:
                taps[i] = x
        return token_features(
            tower.ln_post(x),
            taps,
            grid=grid,
            prefix=1,
            num_class_tokens=self.num_class_tokens,
            attention=attention,
        )

    def project(self, tokens: Tensor) -> Tensor:
        """Map final tokens ``(..., D)`` into the joint space ``(..., E)``."""
        return tokens if self.model.proj is None else tokens @ self.model.proj


def _check_tower(visual: VisionTransformer) -> None:
    if visual.attn_pool is not None or visual.pool_type not in ("tok", "avg"):
        raise ValueError("model must pool by its class token or the mean, got attention or none.")
    if visual.final_ln_after_pool and visual.pool_type == "avg":
        raise ValueError("model must normalise its tokens before averaging (final_ln_after_pool).")
    if not isinstance(visual.patch_dropout, nn.Identity):
        raise ValueError("model must keep all patches, got patch_dropout > 0.")
    if not visual.transformer.batch_first:
        raise ValueError("model must be built with batch_first=True.")
    height, width = visual.patch_size
    if height != width:
        raise ValueError(f"model must have square patches, got {height} x {width}.")
