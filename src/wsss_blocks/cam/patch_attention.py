"""Attention from patch to patch, layer by layer (CLIP-ES, CVPR 2023; WeCLIP, CVPR 2024)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import check_size
from wsss_blocks.backbones.query_key import QueryKey, chosen_layers

__all__ = ["patch_to_patch_attention"]


def patch_to_patch_attention(
    attention: Mapping[int, QueryKey],
    *,
    grid: tuple[int, int],
    layers: Sequence[int] | None = None,
) -> Tensor:
    r"""Make the matrix of what each patch looks at, for each layer, averaged over heads.

    .. math::

        A^l_{ij} = \frac1H \sum_{h=1}^{H} \operatorname{softmax}_j
            \bigl(s\, q^{lh}_i \cdot k^{lh}_j\bigr)\Big|_{i, j \in \text{patches}}

    The softmax runs over all tokens; then the patches are kept, so rows sum to less than one. For
    what wants the matrix itself, as :func:`~wsss_blocks.refine.class_aware_affinity` does with the
    mean over layers. Memory is O(B N^2) per layer, and that times the heads for one layer at a
    time; :func:`~wsss_blocks.refine.attention_affinity_refine` applies attention to maps without
    a matrix.

    Reference:
        Lin et al., "CLIP is Also an Efficient Segmenter" (CLIP-ES), CVPR 2023, section 3.4,
        https://arxiv.org/abs/2212.09506: the mean of the last eight layers (released code). Zhang
        et al., "Frozen CLIP: A Strong Backbone for Weakly Supervised Semantic Segmentation"
        (WeCLIP), CVPR 2024, section 3.4 (number inferred), https://arxiv.org/abs/2406.11189:
        chooses among layers.

    Args:
        attention: ``Features.attention``: the layers that the encoder was asked for. Class and
            register tokens come first, the patches last.
        grid: ``(h, w)`` of the feature map, N = h w.
        layers: which of them, 0-based. None: all.

    Returns:
        ``(B, L, N, N)``, row looks at column, >= 0; float32 for half inputs. Differentiable in q
        and k.

    Raises:
        ValueError: If there is no layer, an unknown one, a shape does not fit, or a value is not
            finite.
        TypeError: If ``attention`` does not hold :class:`~wsss_blocks.backbones.QueryKey`.

    Example:
        >>> import torch
        >>> from wsss_blocks.backbones import QueryKey
        >>> q, k = torch.zeros(1, 6, 1 + 12, 64), torch.zeros(1, 6, 1 + 12, 64)
        >>> found = patch_to_patch_attention({11: QueryKey(q, k, 0.125)}, grid=(3, 4))
        >>> found.shape, round(found[0, 0, 0, 0].item() * 13)
        (torch.Size([1, 1, 12, 12]), 1)
    """
    check_size("grid", grid)
    patches = grid[0] * grid[1]
    chosen = chosen_layers(attention, layers, patches=patches)
    found = []
    with torch.autocast(chosen[0].q.device.type, enabled=False):
        for q, k, scale in chosen:
            query = at_least_float32(q[:, :, -patches:]) * scale
            logits = query @ at_least_float32(k).to(query.dtype).mT
            found.append(logits.softmax(-1)[..., -patches:].mean(1))
    return torch.stack(found, 1)
