"""Class maps from the attention of class tokens to patches (MCTformer, arXiv 2203.02891)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import check_choice, check_int, check_size
from wsss_blocks.backbones.query_key import QueryKey, chosen_layers

__all__ = ["class_to_patch_attention"]


def class_to_patch_attention(
    attention: Mapping[int, QueryKey],
    *,
    num_class_tokens: int,
    grid: tuple[int, int],
    layers: Sequence[int] | None = None,
    reduce: Literal["sum", "mean"] = "sum",
) -> Tensor:
    r"""Show what each class token looks at: the rows of the class tokens in the attention.

    .. math::

        M_c = \sum_{l \in S} \frac1H \sum_{h=1}^{H} \operatorname{softmax}_j
            \bigl(s\, q^{lh}_c \cdot k^{lh}_j\bigr)\Big|_{j \in \text{patches}}

    The softmax runs over all tokens, class tokens included; then the patches are kept. Only n rows
    of each N x N matrix are made, so time and memory are O(B heads n N) per layer.

    Reference:
        Xu et al., "Multi-class Token Transformer for Weakly Supervised Semantic Segmentation"
        (MCTformer), CVPR 2022, section 3.2, https://arxiv.org/abs/2203.02891: V1 and V2 use the
        last three layers. MCTformer+, https://arxiv.org/abs/2308.03005, takes the mean over
        layers. CTI (CVPR 2024, released code) sums the last six in its background loss, those
        behind the infusion in its cross-image loss, and all for its seeds.

    Args:
        attention: ``Features.attention``: the layers that the encoder was asked for. The class
            tokens come first, the patches last; register tokens may stand between.
        num_class_tokens: n, the encoder's.
        grid: ``(h, w)`` of the feature map.
        layers: which of them, 0-based. None: all.
        reduce: ``"sum"`` or ``"mean"`` over layers.

    Returns:
        ``(B, n, h, w)``, >= 0; float32 for half inputs, since it is multiplied and normalised
        next. Differentiable in q and k.

    Raises:
        ValueError: If there is no layer, an unknown one, a shape or option does not fit, or a value
            is not finite.
        TypeError: If ``attention`` does not hold :class:`~wsss_blocks.backbones.QueryKey`.

    Example:
        >>> import torch
        >>> from wsss_blocks.backbones import QueryKey
        >>> q, k = torch.zeros(1, 6, 21 + 12, 64), torch.zeros(1, 6, 21 + 12, 64)
        >>> cam = class_to_patch_attention(
        ...     {11: QueryKey(q, k, 0.125)}, num_class_tokens=21, grid=(3, 4)
        ... )
        >>> cam.shape, round(cam[0, 0, 0, 0].item() * 33)
        (torch.Size([1, 21, 3, 4]), 1)
    """
    check_int("num_class_tokens", num_class_tokens, least=1)
    check_size("grid", grid)
    check_choice("reduce", reduce, ("sum", "mean"))
    patches = grid[0] * grid[1]
    chosen = chosen_layers(attention, layers, patches=num_class_tokens + patches)
    rows = []
    with torch.autocast(chosen[0].q.device.type, enabled=False):
        for q, k, scale in chosen:
            query = at_least_float32(q[:, :, :num_class_tokens]) * scale
            logits = query @ at_least_float32(k).to(query.dtype).mT
            rows.append(logits.softmax(-1)[..., -patches:].mean(1))
    total = torch.stack(rows).sum(0)
    total = total if reduce == "sum" else total / len(rows)
    return total.view(*total.shape[:2], *grid)
