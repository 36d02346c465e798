"""Refined class maps as the released codes of MCTformer and CTI do: every attention matrix, kept.

Written from a description: unfused attention, all heads and layers stacked, then the means.
"""

import torch
from torch import Tensor

from wsss_blocks.backbones import TokenViT

__all__ = ["refined"]


def refined(encoder: TokenViT, images: Tensor, maps: Tensor) -> Tensor:
    """Return (sum of affinities) times (sum of class rows x maps), like the library's blocks."""
    kept: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept.append(inputs[0])

    blocks = encoder.model.blocks
    hooks = [block.attn.attn_drop.register_forward_pre_hook(keep) for block in blocks]
    try:
        for block in blocks:
            block.attn.fused_attn = False
        encoder(images)
    finally:
        for block, hook in zip(blocks, hooks, strict=True):
            block.attn.fused_attn = True
            hook.remove()
    matrices = torch.stack(kept).mean(2)  # layers x B x N x N
    n = encoder.num_class_tokens
    rows = matrices.sum(0)[:, :n, n:].reshape(maps.shape)
    affinity = matrices[:, :, n:, n:].sum(0)
    return (affinity @ (rows * maps).flatten(2).mT).mT.reshape(maps.shape)
