"""Text rows of the classes and of the background, frozen in buffers."""

import json
import os
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from wsss_blocks._files import replaced
from wsss_blocks._numerics import l2_normalize
from wsss_blocks.backbones.features import TextEncoder

__all__ = ["TextBank"]


class TextBank(nn.Module):
    """Hold unit-norm text embeddings ``classes (K, D)`` and ``background (M, D)``.

    Build one with ``from_encoder``, ``load``, ``from_arrays`` or ``stand_in``.
    ``source`` says where the rows came from and belongs beside each number made with them.

    Reference:
        Averaged templates: "Learning Transferable Visual Models From Natural Language
        Supervision", section 3.1.4, https://arxiv.org/abs/2103.00020

    Args:
        classes: ``(K, D)``; rows are normalised, none may be zero.
        background: ``(M, D)``, or None for no background text (M = 0).
        names: K class names in the order of the rows and of the labels.
        source: where the rows came from.

    Raises:
        ValueError: shapes, names or row norms do not fit.
        TypeError: rows are not floating point.

    Example:
        >>> bank = TextBank.stand_in(["cat", "dog"], dim=16, seed=0)
        >>> bank.classes.shape, bank.background.shape, bank.source
        (torch.Size([2, 16]), torch.Size([1, 16]), 'stand-in')
        >>> round(float(bank.classes[0] @ bank.classes[1]), 4)
        0.75
    """

    classes: Tensor
    background: Tensor

    def __init__(
        self, classes: Tensor, background: Tensor | None, *, names: Sequence[str], source: str
    ) -> None:
        super().__init__()
        rows = _unit_rows("classes", classes)
        if background is None:
            background = rows.new_zeros(0, rows.shape[1])
        others = _unit_rows("background", background, dim=rows.shape[1])
        if not names or not len(names) == len(set(names)) == len(rows):
            raise ValueError(f"names must be K={len(rows)} > 0 distinct names, got {list(names)}.")
        self.register_buffer("classes", rows)
        self.register_buffer("background", others)
        self.names = tuple(names)
        self.source = source

    @classmethod
    @torch.no_grad()
    def from_encoder(
        cls,
        text_encoder: TextEncoder,
        names: Sequence[str],
        *,
        templates: Sequence[str] = ("a photo of {}",),
        background: Sequence[str] = ("a photo of background",),
        source: str | None = None,
        batch_size: int = 256,
    ) -> Self:
        """Encode each name in each template, average the unit vectors, normalise again.

        Args:
            text_encoder: a ``TextEncoder``; used in eval mode, without gradient.
            names: K class names, spelled as text ("dining table").
            templates: each with one ``{}`` for the name.
            background: M whole prompts, one row each, no template applied; may be empty.
            source: say which weights; default the encoder's class name and the templates.
            batch_size: prompts per forward pass.

        Raises:
            ValueError: no template, or a template without ``{}``.
        """
        if not templates or any(t.count("{}") != 1 for t in templates):
            raise ValueError(f"templates must each hold one '{{}}', got {list(templates)}.")
        prompts = [t.format(name) for name in names for t in templates] + list(background)
        device = next(text_encoder.parameters()).device
        training = text_encoder.training
        text_encoder.eval()
        rows = []
        for start in range(0, len(prompts), batch_size):
            ids, mask = text_encoder.tokenize(prompts[start : start + batch_size])
            token = text_encoder(ids.to(device), mask.to(device)).global_token
            rows.append(l2_normalize(token))
        text_encoder.train(training)
        split = len(names) * len(templates)
        encoded = torch.cat(rows)
        classes = encoded[:split].reshape(len(names), len(templates), -1).mean(1)
        source = source or f"{type(text_encoder).__name__}: {', '.join(templates)}"
        return cls(classes, encoded[split:], names=names, source=source)

    @classmethod
    def from_arrays(
        cls,
        classes: Tensor | np.ndarray,
        background: Tensor | np.ndarray | None,
        *,
        names: Sequence[str],
        source: str,
    ) -> Self:
        """Build a bank from arrays ``(K, D)`` and ``(M, D)``, or None for no background.

        All rows must come from one text tower: rows of different towers have no common meaning.
        """
        others = None if background is None else torch.as_tensor(background)
        return cls(torch.as_tensor(classes), others, names=names, source=source)

    @classmethod
    def stand_in(cls, names: Sequence[str], *, dim: int, seed: int) -> Self:
        r"""Draw rows for data without text weights, each pair at cosine 0.75.

        With orthonormal random :math:`q_1 \dots q_n`, n = K + 1 (the last row is the background),

        .. math:: t_i = \tfrac12 q_i + \beta \sum_j q_j, \qquad
            \beta = \frac{\sqrt{1/4 + 3n/4} - 1/2}{n}

        CLIP's rows of the VOC classes lie at 0.69 to 0.93. The source is "stand-in".

        Raises:
            ValueError: ``dim`` is less than K + 1.
        """
        n = len(names) + 1
        if dim < n:
            raise ValueError(f"dim must be at least K + 1 = {n}, got {dim}.")
        generator = torch.Generator().manual_seed(seed)
        q = torch.linalg.qr(torch.randn(dim, n, generator=generator, dtype=torch.float64)).Q.mT
        beta = ((0.25 + 0.75 * n) ** 0.5 - 0.5) / n
        rows = (0.5 * q + beta * q.sum(0)).float()
        return cls(rows[:-1], rows[-1:], names=names, source="stand-in")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write safetensors with names and source in the metadata, under a temporary name first."""
        from safetensors.torch import save_file

        tensors = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        metadata = {"names": json.dumps(self.names), "source": self.source}
        with replaced(os.fspath(path)) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        names: Sequence[str] | None = None,
        background: Tensor | None = None,
    ) -> Self:
        """Read what ``save`` wrote, or any safetensors with ``classes`` and ``background``.

        Args:
            path: safetensors file.
            names: the expected class names in order; needed if the file holds none.
            background: ``(M, D)`` rows that replace those of the file.

        Raises:
            ValueError: the file has no ``classes`` or no names, or other names or another order.
        """
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if "classes" not in tensors:
            raise ValueError(f"{path} must hold a tensor 'classes', got {sorted(tensors)}.")
        stored = json.loads(metadata["names"]) if "names" in metadata else names
        if stored is None:
            raise ValueError(f"names must be given: {path} holds none.")
        if names is not None and list(names) != list(stored):
            raise ValueError(f"names must be {stored} as in {path}, got {list(names)}.")
        rows = tensors.get("background") if background is None else background
        source = metadata.get("source", os.path.basename(path))
        return cls(tensors["classes"], rows, names=stored, source=source)


def _unit_rows(name: str, rows: Tensor, *, dim: int | None = None) -> Tensor:
    if rows.ndim != 2 or rows.shape[1] == 0 or rows.shape[1] != (dim or rows.shape[1]):
        letters = "(K, D)" if dim is None else f"(M, D) with D={dim}"
        raise ValueError(f"{name} must have shape {letters}, got {tuple(rows.shape)}.")
    if not rows.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {rows.dtype}.")
    norms = rows.detach().float().norm(dim=1)
    if not bool(((norms > 0) & norms.isfinite()).all()):
        raise ValueError(f"{name} must have finite rows that are not zero.")
    return l2_normalize(rows.detach())
