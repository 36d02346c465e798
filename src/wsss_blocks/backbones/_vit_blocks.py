"""What the encoders of timm's vision transformers share: the model, its blocks, their attention."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from timm.models.vision_transformer import Attention  # type: ignore[attr-defined]  # all of timm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wsss_blocks.backbones._common import layer_numbers
from wsss_blocks.backbones.query_key import QueryKey

__all__ = ["AttentionTape", "attention_tapes", "embed_patches", "open_vit", "run_blocks"]


def open_vit(model: str | nn.Module, *, pretrained: bool) -> Any:
    """Return timm's vision transformer without its classifier, ready for images of any size."""
    if isinstance(model, str):
        vit: Any = timm.create_model(model, pretrained=pretrained, num_classes=0)
    elif pretrained:
        raise ValueError("pretrained must be False for a model that is already built, got True.")
    else:
        vit = model
    if not isinstance(vit, VisionTransformer):
        raise TypeError(
            f"model must be a timm VisionTransformer or the name of one, got {type(vit).__name__}."
        )
    height, width = vit.patch_embed.patch_size
    if height != width:
        raise ValueError(f"model must have square patches, got {height} x {width}.")
    if not isinstance(vit.patch_drop, nn.Identity):
        raise ValueError("model must keep all patches, got patch_drop_rate > 0.")
    vit.reset_classifier(0, "")
    vit.patch_embed.strict_img_size = False
    return vit


def embed_patches(vit: Any, images: Tensor) -> Tensor:
    """Cut prepared images into patch tokens ``(B, N, D)``."""
    patches: Tensor = vit.patch_embed(images)
    return patches.flatten(1, 2) if patches.ndim == 4 else patches  # a grid with dynamic_img_size


class _Keep:
    """Keep the output of the module it hooks while it is told to.

    An object, not a closure: a copy of the encoder (deepcopy, pickle, EMA) has its own.
    """

    def __init__(self) -> None:
        self.on = False
        self.kept: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if self.on:
            self.kept = output


class AttentionTape:
    """Take the queries and keys from a block that attends as timm's ``Attention`` does.

    What ``q_norm`` and ``k_norm`` put out is exactly what the fused attention consumes, so it stays
    fused and nothing is computed twice. The tape holds nothing between calls.
    """

    def __init__(self, attention: Attention) -> None:
        self.scale = float(attention.scale)
        self.q, self.k = _Keep(), _Keep()
        attention.q_norm.register_forward_hook(self.q)
        attention.k_norm.register_forward_hook(self.k)

    def run(self, block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the block's output, queries and keys: all are outputs of a checkpoint around."""
        self.q.on = self.k.on = True
        try:
            x = block(x)
            q, k = self.q.kept, self.k.kept
        finally:  # also when recomputation is stopped early
            self.q.on = self.k.on = False
            self.q.kept = self.k.kept = None
        if q is None or k is None:
            raise RuntimeError("the block was changed after the encoder was built: no q, k seen.")
        return x, q, k


def attention_tapes(vit: Any) -> list[AttentionTape | None]:
    """Hook each block that attends as timm's ``Attention`` does; None for the others."""
    attentions = [getattr(block, "attn", None) for block in vit.blocks]
    return [AttentionTape(a) if isinstance(a, Attention) else None for a in attentions]


def run_blocks(
    vit: Any,
    x: Tensor,
    tapes: Sequence[AttentionTape | None],
    *,
    layers: Sequence[int],
    attention_layers: Sequence[int],
    after: Mapping[int, Callable[[Tensor], Tensor]] = MappingProxyType({}),
    first: int = 0,
) -> tuple[Tensor, dict[int, Tensor], dict[int, QueryKey]]:
    """Run the blocks from ``first`` on; return the last tokens, those after ``layers``, attention.

    ``after`` changes what a block put out before the next one reads it; the tap is unchanged.
    """
    available = range(len(vit.blocks))
    wanted = layer_numbers(layers, available)
    asked = layer_numbers(attention_layers, available, name="attention_layers")
    for name, numbers in (("layers", wanted), ("attention_layers", asked)):
        if skipped := [i for i in numbers if i < first]:
            raise ValueError(f"{name} must be at least {first}, which runs first, got {skipped}.")
    taps, attention = {}, {}
    for i in available[first:]:
        block = vit.blocks[i]
        tape = tapes[i] if i in asked else None
        if i in asked and tape is None:
            raise ValueError(
                f"attention_layers must be blocks with timm's Attention, got {i}: "
                f"{type(block).__name__}."
            )
        # A compiled checkpoint may not have side effects, and a tape is one: this block keeps more.
        if vit.grad_checkpointing and not (tape and torch.compiler.is_compiling()):
            call = (block, x) if tape is None else (tape.run, block, x)
            out: Any = checkpoint(*call, use_reentrant=False)
        else:
            out = block(x) if tape is None else tape.run(block, x)
        if tape is None:
            x = out
        else:
            x, q, k = out
            attention[i] = QueryKey(q, k, tape.scale)
        if i in wanted:
            taps[i] = x
        if i in after:
            x = after[i](x)
    return x, taps, attention
