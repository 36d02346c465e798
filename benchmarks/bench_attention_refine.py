"""Class maps and patch affinity from queries and keys against attention matrices of all layers.

Run ``python -m benchmarks.bench_attention_refine [--quick] [--output DIR]``.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from timm.models import VisionTransformer
from torch import Tensor

from benchmarks._harness import Options, compare, run
from benchmarks.baselines import attention_matrices
from wsss_blocks.backbones import TokenViT
from wsss_blocks.cam import class_to_patch_attention
from wsss_blocks.refine import attention_affinity_refine

EXPLICIT = "all matrices, per head (released code)"
UNASKED = "no attention asked for"
NOTE = (
    "Fused attention reads queries and keys once more per layer with the maps as values. What "
    "is left is the forward pass itself."
)


def cases(options: Options) -> Iterator[dict[str, Any]]:
    for device in options.devices:
        encoder = transformer(options.quick).to(device)
        depth = len(encoder.layer_dims)
        for side in (64,) if options.quick else (448, 1024):
            g = torch.Generator().manual_seed(0)
            images = torch.rand(1, 3, side, side, generator=g).to(device)
            grid = (side // encoder.stride, side // encoder.stride)
            maps = torch.rand(1, encoder.num_class_tokens, *grid, generator=g).to(device)
            large = side >= 1024
            yield compare(
                f"DeiT-S, K=20, 1 x {side}x{side}: forward and refined class maps, all layers",
                {
                    EXPLICIT: partial(attention_matrices.refined, encoder, images, maps),
                    "ours": partial(refined, encoder, images, maps, range(depth)),
                },
                reference="ours",
                options=options,
                device=device,
                bars={EXPLICIT: 2} if large else None,
                memory_bars={EXPLICIT: 0.1} if large else None,
                tolerance=1e-3,
                note=NOTE,
            )
            yield compare(
                f"DeiT-S, K=20, 1 x {side}x{side}: forward and class rows of the last 3 layers",
                {
                    UNASKED: partial(forward, encoder, images, ()),
                    "ours": partial(forward, encoder, images, range(depth - 3, depth)),
                },
                reference="ours",
                options=options,
                device=device,
                bars={UNASKED: 1 / 1.05},
                tolerance=1e-5,
            )


def transformer(small: bool) -> TokenViT:
    torch.manual_seed(0)
    sizes = {"embed_dim": 24, "depth": 4, "num_heads": 2} if small else {}
    deit = {"img_size": 224, "patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}
    return TokenViT(VisionTransformer(**deit | sizes), 20, background=True).eval()


def refined(encoder: TokenViT, images: Tensor, maps: Tensor, layers: range) -> Tensor:
    features = encoder(images, attention_layers=layers)
    grid = (features.feature_map.shape[-2], features.feature_map.shape[-1])
    rows = class_to_patch_attention(
        features.attention, num_class_tokens=encoder.num_class_tokens, grid=grid
    )
    return attention_affinity_refine(rows * maps, features.attention)


def forward(encoder: TokenViT, images: Tensor, layers: range | tuple[()]) -> Tensor:
    features = encoder(images, attention_layers=layers)
    if layers:
        grid = (features.feature_map.shape[-2], features.feature_map.shape[-1])
        class_to_patch_attention(
            features.attention, num_class_tokens=encoder.num_class_tokens, grid=grid
        )
    return features.feature_map


if __name__ == "__main__":
    run("bench_attention_refine", cases)
