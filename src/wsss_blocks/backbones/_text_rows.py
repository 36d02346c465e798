"""Rows of a text bank: encoded, normalised, read from a file, picked by name."""

import json
import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wsss_blocks._numerics import l2_normalize
from wsss_blocks._validate import check_tensor
from wsss_blocks.backbones.features import TextEncoder

__all__ = ["BankFile", "encode_prompts", "positions", "read_bank", "unit_rows"]


class BankFile(NamedTuple):
    """Rows as they are in the file."""

    classes: Tensor
    background: Tensor | None
    names: tuple[str, ...]
    source: str


def read_bank(path: str | os.PathLike[str], names: Sequence[str] | None) -> BankFile:
    """Read tensors and metadata; ``names`` serve if the file has none, and errors name it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} must be a whole safetensors file: {error}.") from error
    if "classes" not in tensors:
        raise ValueError(f"{path} must hold a tensor 'classes', got {sorted(tensors)}.")
    if "names" in metadata:
        try:
            names = [str(name) for name in json.loads(metadata["names"])]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} must hold its names as a JSON list: {error}.") from error
    if names is None:
        raise ValueError(f"names must be given: {path} holds none.")
    source = metadata.get("source", os.path.basename(path))
    return BankFile(tensors["classes"], tensors.get("background"), tuple(names), source)


def positions(
    names: Sequence[str], stored: Sequence[str], *, where: str | os.PathLike[str]
) -> list[int]:
    """Return where each name is in ``stored``, or say which ones are not in ``where``."""
    place = {name: i for i, name in enumerate(stored)}
    missing = [name for name in names if name not in place]
    if missing:
        raise ValueError(
            f"names must be in {where}: {len(missing)} of {len(names)} are missing "
            f"({', '.join(map(repr, missing))}); it holds {', '.join(map(repr, stored))}."
        )
    return [place[name] for name in names]


def encode_prompts(text_encoder: TextEncoder, prompts: Sequence[str], *, batch_size: int) -> Tensor:
    """Return unit rows ``(len(prompts), D)``, encoded in eval mode."""
    device = next(text_encoder.parameters()).device
    training = text_encoder.training
    text_encoder.eval()
    rows = []
    for start in range(0, len(prompts), batch_size):
        ids, mask = text_encoder.tokenize(prompts[start : start + batch_size])
        rows.append(l2_normalize(text_encoder(ids.to(device), mask.to(device)).global_token))
    text_encoder.train(training)
    return torch.cat(rows)


def unit_rows(name: str, rows: Tensor, *, dim: int | None = None) -> Tensor:
    """Check and normalise ``(K, D)`` rows."""
    check_tensor(name, rows)
    if rows.ndim != 2 or rows.shape[1] == 0 or rows.shape[1] != (dim or rows.shape[1]):
        letters = "(K, D)" if dim is None else f"(M, D) with D={dim}"
        raise ValueError(f"{name} must have shape {letters}, got {tuple(rows.shape)}.")
    if not rows.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {rows.dtype}.")
    norms = rows.detach().float().norm(dim=1)
    if rows.is_meta or not bool(((norms > 0) & norms.isfinite()).all()):
        raise ValueError(
            f"{name} must have finite rows that are not zero, got norms {_shown(norms)}."
        )
    return l2_normalize(rows.detach())


def _shown(norms: Tensor) -> str:
    return "without data" if norms.is_meta else str([float(f"{x:.3g}") for x in norms.tolist()][:5])
