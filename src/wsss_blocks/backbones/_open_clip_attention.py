"""Queries and keys of open_clip's transformer blocks."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from wsss_blocks.backbones.query_key import QueryKey

__all__ = ["open_clip_query_key"]


def open_clip_query_key(block: Any, x: Tensor, *, layer: int) -> QueryKey:
    """Compute what a block attends with from its input ``(B, tokens, D)``.

    The block itself keeps its fused attention, so the two projections are computed twice: a
    fraction of the block, and only where they were asked for.
    """
    attention = getattr(block, "attn", None)
    if not isinstance(attention, nn.MultiheadAttention) or attention.in_proj_weight is None:
        raise ValueError(
            f"attention_layers must be blocks with plain attention, got {layer}: "
            f"{type(block).__name__} with {type(attention).__name__}."
        )
    # Past the hooks of the norm: a tap on it is to catch the call that the scores come from.
    x = block.ln_1.forward(x)
    dim, heads, bias = attention.embed_dim, attention.num_heads, attention.in_proj_bias
    rows = attention.in_proj_weight[: 2 * dim], None if bias is None else bias[: 2 * dim]
    both = F.linear(x, *rows).view(*x.shape[:2], 2, heads, dim // heads)
    q, k = both.permute(2, 0, 3, 1, 4).unbind(0)
    return QueryKey(q, k, (dim // heads) ** -0.5)
