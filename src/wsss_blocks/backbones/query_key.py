"""Queries and keys of the layers that an encoder was asked for."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_int,
    check_number,
    check_same_device,
    check_sequence,
    check_shape,
)

__all__ = ["QueryKey", "chosen_layers"]


class QueryKey(NamedTuple):
    r"""Hold what a layer attends with: :math:`A = \operatorname{softmax}(s\, q k^\top)` per head.

    An N x N matrix need not be made for what it is wanted for: see
    :func:`~wsss_blocks.cam.class_to_patch_attention` and
    :func:`~wsss_blocks.refine.attention_affinity_refine`.

    Args:
        q: queries ``(B, heads, n, d)``, not yet scaled; class and register tokens first, then the
            patches row by row.
        k: keys, likewise.
        scale: factor :math:`s` of the logits.
    """

    q: Tensor
    k: Tensor
    scale: float


def chosen_layers(
    attention: Mapping[int, QueryKey], layers: Sequence[int] | None, *, patches: int
) -> list[QueryKey]:
    """Return the queries and keys of ``layers`` (None: of all), each of at least ``patches``."""
    if not isinstance(attention, Mapping):
        raise TypeError(f"attention must map layers to QueryKey, got {type(attention).__name__}.")
    if layers is None:
        layers = tuple(attention)
    check_sequence("layers", layers)
    if not len(layers):
        raise ValueError(
            "attention and layers must hold at least one layer (the encoder's attention_layers), "
            "got none."
        )
    chosen: list[QueryKey] = []
    for i in layers:
        if i not in attention:
            raise ValueError(f"layers must be among those asked for {list(attention)}, got {i!r}.")
        one = attention[i]
        if not isinstance(one, QueryKey):
            raise TypeError(f"attention must map layers to QueryKey, got {type(one).__name__}.")
        _check(one, i, first=chosen[0] if chosen else None)
        if one.q.shape[2] < patches:
            raise ValueError(
                f"attention must cover the {patches} cells of the grid, got {one.q.shape[2]} "
                f"tokens in layer {i}."
            )
        chosen.append(one)
    return chosen


def _check(one: QueryKey, layer: int, *, first: QueryKey | None) -> None:
    check_int("layers", layer)
    check_shape(f"attention[{layer}].q", one.q, "B heads n d")
    sizes = dict(zip(("B", "heads", "n", "d"), one.q.shape, strict=True))
    check_shape(f"attention[{layer}].k", one.k, "B heads n d", **sizes)
    for name, x in (("q", one.q), ("k", one.k)):
        check_floating(f"attention[{layer}].{name}", x)
        check_same_device(f"attention[{layer}].{name}", x, "q", (first or one).q)
        check_finite(f"attention[{layer}].{name}", x)
    check_number(f"attention[{layer}].scale", one.scale)
    if not -float("inf") < one.scale < float("inf"):
        raise ValueError(f"attention[{layer}].scale must be finite, got {one.scale}.")
    if first is not None and first.q.shape[::2] != one.q.shape[::2]:
        raise ValueError(
            f"attention must have one batch and number of tokens in all layers, got "
            f"{tuple(first.q.shape[::2])} and {tuple(one.q.shape[::2])}."
        )
