"""Patch affinity of a transformer's attention, applied to maps (MCTformer, arXiv 2203.02891)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_choice,
    check_finite,
    check_floating,
    check_sequence,
    check_shape,
)
from wsss_blocks.backbones.features import Features
from wsss_blocks.backbones.query_key import QueryKey, chosen_layers
from wsss_blocks.cam.box import box_to_valid
from wsss_blocks.refine import _present

__all__ = ["AttentionAffinityRefine", "attention_affinity_refine"]

Reduce = Literal["sum", "mean"]


def attention_affinity_refine(
    maps: Tensor,
    attention: Mapping[int, QueryKey],
    *,
    layers: Sequence[int] | None = None,
    reduce: Reduce = "sum",
) -> Tensor:
    r"""Let each patch take the scores of the patches it attends to.

    .. math::

        R_i = \sum_{l \in S} \frac1H \sum_{h=1}^{H} \sum_{j \in \text{patches}}
            \operatorname{softmax}_j\bigl(s\, q^{lh}_i \cdot k^{lh}_j\bigr)\, M_j

    The softmax runs over all tokens, and what a patch gives to class tokens is lost: rows sum to
    less than one and are not normalised again. The products are linear in the maps, so they are
    fused attention (:func:`torch.nn.functional.scaled_dot_product_attention`) with the maps as
    values, zero at the class tokens, and no N x N matrix is made: memory is O(B heads N d), time
    that of the attention itself, for each d maps (the width of a head) once.

    Reference:
        Xu et al., "Multi-class Token Transformer for Weakly Supervised Semantic Segmentation"
        (MCTformer), CVPR 2022, section 3.3, https://arxiv.org/abs/2203.02891: all layers. CTI
        (CVPR 2024, released code) takes all for its seeds and those behind the infusion in its
        background loss.

    Args:
        maps: ``(B, C, h, w)`` scores on the grid of the patches, with background or without.
        attention: ``Features.attention``: the layers that the encoder was asked for; patches last.
        layers: which of them, 0-based. None: all.
        reduce: ``"sum"`` or ``"mean"`` over layers.

    Returns:
        ``(B, C, h, w)`` in the dtype of ``maps``, computed in at least float32. Differentiable in
        ``maps``, q and k.

    Raises:
        ValueError: If there is no layer, an unknown one, a shape, device or option does not fit, or
            a value is not finite.
        TypeError: If ``maps`` are not floating point or ``attention`` does not hold
            :class:`~wsss_blocks.backbones.QueryKey`.

    Example:
        >>> import torch
        >>> from wsss_blocks.backbones import QueryKey
        >>> q, k = torch.zeros(1, 2, 1 + 4, 8), torch.zeros(1, 2, 1 + 4, 8)
        >>> maps = torch.tensor([[[[0.0, 1.0, 2.0, 7.0]]]])
        >>> attention_affinity_refine(maps, {0: QueryKey(q, k, 1.0)}).flatten().tolist()
        [2.0, 2.0, 2.0, 2.0]
    """
    check_shape("maps", maps, "B C h w")
    check_floating("maps", maps)
    check_finite("maps", maps)
    check_choice("reduce", reduce, ("sum", "mean"))
    batch, channels, height, width = maps.shape
    patches = height * width
    chosen = chosen_layers(attention, layers, patches=patches)
    q = chosen[0].q
    if q.shape[0] != batch or q.device != maps.device:
        raise ValueError(
            f"attention must have the batch and device of maps ({batch}, {maps.device}), got "
            f"{q.shape[0]} and {q.device}."
        )
    total = torch.stack([_applied(maps, one, patches)[:, :, :channels] for one in chosen]).sum(0)
    total = total if reduce == "sum" else total / len(chosen)
    return total.mT.reshape(maps.shape).to(maps.dtype)


def _applied(maps: Tensor, one: QueryKey, patches: int) -> Tensor:
    """Return the product of one layer's mean matrix with the maps ``(B, N, C or more)``."""
    q, k = at_least_float32(one.q), at_least_float32(one.k)
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), at_least_float32(maps).dtype)
    q, k = q.to(dtype), k.to(dtype)
    heads, tokens, dim = q.shape[1:]
    prefix = tokens - patches
    # Fused kernels want values as wide as the keys.
    values = F.pad(maps.to(dtype).flatten(2).mT, (0, -maps.shape[1] % dim, prefix, 0))
    with torch.autocast(maps.device.type, enabled=False):
        parts = [
            F.scaled_dot_product_attention(
                q[:, :, prefix:],
                k,
                part.unsqueeze(1).expand(-1, heads, -1, -1),
                scale=one.scale,
            ).mean(1)
            for part in torch.split(values, dim, dim=2)
        ]
    return torch.cat(parts, 2)


class AttentionAffinityRefine(nn.Module):
    """Refine maps with :func:`attention_affinity_refine` by the attention in ``features``.

    Maps are resized to the grid of the features, refined, and resized to the images (bilinear,
    ``align_corners=False``). All channels of a cell lose the same share to the class tokens, so
    background and classes stay comparable.

    Args:
        layers: which layers, 0-based. None: all that the encoder was asked for.
        reduce: ``"sum"`` or ``"mean"`` over layers; the mean keeps scores in [0, 1] there.

    Shape:
        - images: ``(B, 3, H, W)``; maps: ``(B, K+1, h, w)`` or ``(B, G, K+1, h, w)``
        - output: ``(B, K+1, H, W)`` or ``(B, G, K+1, H, W)``

    Raises:
        ValueError: If ``reduce`` is unknown, or there is no attention in ``features``.
        TypeError: If ``layers`` is no sequence.

    Example:
        >>> import torch
        >>> from timm.models import VisionTransformer
        >>> from wsss_blocks.backbones import TokenViT
        >>> vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2)
        >>> images = torch.rand(1, 3, 32, 32)
        >>> features = TokenViT(vit, 2)(images, attention_layers=(1, 2))
        >>> maps = torch.rand(1, 3, 4, 4)
        >>> AttentionAffinityRefine()(images, maps, features=features).shape
        torch.Size([1, 3, 32, 32])
    """

    def __init__(self, *, layers: Sequence[int] | None = None, reduce: Reduce = "sum") -> None:
        super().__init__()
        check_choice("reduce", reduce, ("sum", "mean"))
        if layers is not None:
            check_sequence("layers", layers)
        self.layers = None if layers is None else tuple(layers)
        self.reduce: Reduce = reduce

    def forward(
        self,
        images: Tensor,
        maps: Tensor,
        *,
        labels: Tensor | None = None,
        box: Tensor | None = None,
        features: Features | None = None,
    ) -> Tensor:
        """Return refined maps at the size of the images.

        Arguments as in :class:`~wsss_blocks.refine.Refiner`; ``features`` must hold attention.
        Cells whose centre is outside ``box`` give nothing to the others.
        """
        _present.check_refiner_inputs(images, maps, labels, box)
        if not isinstance(features, Features):
            raise ValueError(
                "features must be given: what an encoder returned for attention_layers, "
                f"got {type(features).__name__}."
            )
        size = (images.shape[-2], images.shape[-1])
        grid = (features.feature_map.shape[-2], features.feature_map.shape[-1])
        taken = _present.take_present(_present.as_sets(maps), labels)
        scores = at_least_float32(_present.resize_sets(taken.maps, grid))
        if box is not None:
            inside = box_to_valid(box, image_size=size, size=grid)
            scores = scores * inside[:, None, None].to(scores.dtype)
        refined = attention_affinity_refine(
            scores.flatten(1, 2), features.attention, layers=self.layers, reduce=self.reduce
        )
        resized = _present.resize_sets(refined.view_as(scores), size)
        return _present.put_back(resized, taken.channels, like=maps)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"layers={self.layers}, reduce={self.reduce!r}"
