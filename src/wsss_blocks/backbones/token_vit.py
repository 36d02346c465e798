"""A vision transformer with a token per class (MCTformer, arXiv 2203.02891; CTI, CVPR 2024)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wsss_blocks._validate import check_choice, check_shape
from wsss_blocks.backbones._common import (
    layer_numbers,
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
from wsss_blocks.backbones.class_tokens import ClassTokens
from wsss_blocks.backbones.features import Features, SizePolicy

__all__ = ["TokenViT"]

Infusion = Callable[[Tensor], Tensor]


class TokenViT(nn.Module):
    """Encode images with a timm vision transformer whose class token became one per class.

    The sequence is the tokens of :class:`ClassTokens`, then the patches. The last tokens come raw
    from the last block: MCTformer and CTI leave out the final LayerNorm. A token of the model is
    copied to all classes with its position; other prefix tokens, the final norm and the classifier
    are taken out of the model.

    Attention is asked for per call: ``encoder(images, attention_layers=(9, 10, 11)).attention`` is
    what :func:`~wsss_blocks.cam.class_to_patch_attention` and
    :func:`~wsss_blocks.refine.attention_affinity_refine` read. It costs no matrix, and survives
    ``deepcopy``, pickling, ``torch.compile``, ``torch.export`` and activation checkpointing
    (``encoder.model.set_grad_checkpointing()``; a compiled layer whose attention is asked for is
    not checkpointed). Attention dropout does not show in it. Train on several GPUs with
    ``DistributedDataParallel``: threads of one module would share the tapes.

    Reference:
        Xu et al., "Multi-class Token Transformer for Weakly Supervised Semantic Segmentation"
        (MCTformer), CVPR 2022, section 3.1, https://arxiv.org/abs/2203.02891. "Class Tokens
        Infusion for Weakly Supervised Semantic Segmentation" (CTI), CVPR 2024, released code.

    Note:
        The released codes drop the last rows and columns of an image that its patches do not fill
        and stretch the maps over all of it: that is ``size_policy="floor"``. MCTformer-V1 and V2
        resample positions by a factor that is 0.1 patches too large; here the size is exact.

    Args:
        model: timm's name, or a ``timm.models.VisionTransformer`` (taken apart, not copied).
        num_classes: K, without background.
        background: a background token comes first (CTI).
        generator: make the tokens with a perceptron (CTI); see :class:`ClassTokens`.
        pretrained: load timm's weights (by name only).
        size_policy: what to do with sizes that the patch size does not divide.
        resample: positions for another grid: ``"compat"``, plain bicubic as the released codes, or
            ``"timm"``, with antialiasing.
        mean: three numbers; default as timm's configuration of the model says.
        std: three numbers; default likewise.

    Shape:
        - images: ``(B, 3, H, W)``, RGB in ``[0, 1]``
        - feature_map: ``(B, D, ceil(H / patch), ceil(W / patch))`` (floor with ``"floor"``)
        - class_tokens: ``(B, n, D)``, n = K, with ``background`` K + 1

    Raises:
        TypeError: the model is not a ``VisionTransformer``.
        ValueError: patches are not square, patch dropout is on, the model has no position
            embedding, an unknown option or layer, a block without timm's ``Attention`` asked for
            attention, images not RGB in ``[0, 1]``, or a module together with ``pretrained``.

    Example:
        >>> import torch
        >>> from timm.models import VisionTransformer
        >>> vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2)
        >>> encoder = TokenViT(vit, 20, background=True)
        >>> features = encoder(torch.rand(1, 3, 32, 44), attention_layers=(-1,))
        >>> features.class_tokens.shape, features.feature_map.shape, features.attention[2].q.shape
        (torch.Size([1, 21, 32]), torch.Size([1, 32, 4, 6]), torch.Size([1, 2, 45, 16]))
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: str | nn.Module,
        num_classes: int,
        *,
        background: bool = False,
        generator: bool = False,
        pretrained: bool = False,
        size_policy: SizePolicy = "resize",
        resample: Literal["compat", "timm"] = "compat",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_choice("size_policy", size_policy, ("resize", "pad", "floor"))
        check_choice("resample", resample, ("compat", "timm"))
        vit = open_vit(model, pretrained=pretrained)
        if vit.pos_embed is None:
            raise ValueError("model must have a position embedding, got pos_embed='none'.")
        self.register_buffer("mean", timm_statistics(vit, "mean", mean))
        self.register_buffer("std", timm_statistics(vit, "std", std))
        self.class_tokens = ClassTokens(
            vit.embed_dim,
            num_classes,
            background=background,
            generator=generator,
            device=vit.pos_embed.device,
            dtype=vit.pos_embed.dtype,
        )
        if vit.cls_token is not None:
            first = None if vit.no_embed_class else vit.pos_embed[0, 0]
            self.class_tokens.start_from(vit.cls_token[0, 0], first)
        self.model: Any = _without_prefix(vit)
        self._tapes = attention_tapes(vit)
        self.size_policy, self.resample = size_policy, resample
        self.dim: int = vit.embed_dim
        self.layer_dims: dict[int, int] = dict.fromkeys(range(len(vit.blocks)), vit.embed_dim)
        self.stride: int = vit.patch_embed.patch_size[0]
        self.num_class_tokens: int = self.class_tokens.num_tokens

    def forward(
        self,
        images: Tensor,
        *,
        layers: Sequence[int] = (),
        attention_layers: Sequence[int] = (),
        infuse: Mapping[int, Infusion] = MappingProxyType({}),
    ) -> Features:
        """Encode images; shapes as the class says.

        ``infuse`` maps a layer to a function of the class tokens ``(B, n, D)`` that it put out:
        the next layer reads what the function returns
        (:func:`~wsss_blocks.heads.infuse_class_tokens`), ``class_tokens_at`` and ``taps`` do not
        change.
        """
        options: dict[str, Any] = {"layers": layers, "attention_layers": attention_layers}
        return self.encode_patches(self.embed(images), **options, infuse=infuse)

    def embed(self, images: Tensor) -> Tensor:
        """Cut images into patches ``(B, D, h, w)``, to which no position has been added yet."""
        x = prepare_images(
            images, self.mean, self.std, stride=self.stride, size_policy=self.size_policy
        )
        grid = (x.shape[-2] // self.stride, x.shape[-1] // self.stride)
        patches = embed_patches(self.model, x).mT
        return patches.reshape(*patches.shape[:2], *grid)

    def encode_patches(
        self,
        patches: Tensor,
        *,
        layers: Sequence[int] = (),
        attention_layers: Sequence[int] = (),
        infuse: Mapping[int, Infusion] = MappingProxyType({}),
    ) -> Features:
        """Encode what :meth:`embed` returned, or cached maps in its place ``(B, D, h, w)``."""
        check_shape("patches", patches, "B D h w", D=self.dim)
        vit, grid = self.model, (patches.shape[2], patches.shape[3])
        position = resample_position(
            vit.pos_embed,
            grid=grid,
            old_grid=tuple(vit.patch_embed.grid_size),
            prefix=0,
            antialias=self.resample == "timm",
        )
        x = patches.flatten(2).mT + position
        tokens = self.class_tokens().to(x.dtype).expand(len(x), -1, -1)
        x = vit.norm_pre(vit.pos_drop(torch.cat([tokens, x], dim=1)))
        chosen = layer_numbers(tuple(infuse), tuple(self.layer_dims), name="infuse")
        after = {
            i: partial(_infused, count=self.num_class_tokens, function=function)
            for i, function in zip(chosen, infuse.values(), strict=True)
        }
        asked: dict[str, Any] = {"layers": layers, "attention_layers": attention_layers}
        return self._run(x, grid, **asked, after=after)

    def continue_from(
        self,
        features: Features,
        layer: int,
        *,
        infuse: Infusion | None = None,
        layers: Sequence[int] = (),
        attention_layers: Sequence[int] = (),
    ) -> Features:
        """Run the blocks behind ``layer`` once more, with other class tokens.

        Equal to a pass with ``infuse={layer: infuse}``, but for dropout, at the cost of the later
        blocks alone: patches, and what came before, are those of ``features``, gradients included.

        Args:
            features: of a pass that was asked for ``layers=(layer,)``.
            layer: behind which block to go on, 0-based.
            infuse: function of the class tokens ``(B, n, D)`` that the block put out.
            layers: later ones, of which to return intermediate maps.
            attention_layers: later ones, of which to return attention.

        Raises:
            ValueError: ``features`` lack the layer, or an earlier one is asked for.
        """
        (layer,) = layer_numbers((layer,), tuple(self.layer_dims), name="layer")
        if layer not in features.taps:
            raise ValueError(
                f"features must come from a pass with layers=({layer},), got {list(features.taps)}."
            )
        x, grid = features.taps[layer], features.intermediates[layer].shape[-2:]
        if infuse is not None:
            x = _infused(x, count=self.num_class_tokens, function=infuse)
        asked: dict[str, Any] = {"layers": layers, "attention_layers": attention_layers}
        return self._run(x, (grid[0], grid[1]), **asked, first=layer + 1)

    def _run(self, x: Tensor, grid: tuple[int, int], **options: Any) -> Features:
        n = self.num_class_tokens
        x, taps, attention = run_blocks(self.model, x, self._tapes, **options)
        return token_features(x, taps, grid=grid, prefix=n, num_class_tokens=n, attention=attention)

    def project(self, tokens: Tensor) -> Tensor:
        """Return the tokens: this encoder has no joint text space."""
        return tokens


def _without_prefix(vit: Any) -> Any:
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    if prefix:
        vit.pos_embed = nn.Parameter(
            vit.pos_embed.detach()[:, prefix:].clone(), requires_grad=vit.pos_embed.requires_grad
        )
    for name in ("cls_token", "reg_token", "dist_token"):
        if getattr(vit, name, None) is not None:
            setattr(vit, name, None)
    vit.num_prefix_tokens = vit.num_reg_tokens = 0
    vit.has_class_token, vit.no_embed_class = False, True
    vit.norm, vit.fc_norm = nn.Identity(), nn.Identity()
    return vit


def _infused(x: Tensor, *, count: int, function: Infusion) -> Tensor:
    return torch.cat([function(x[:, :count]), x[:, count:]], dim=1)
