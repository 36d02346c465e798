"""Text rows of the classes and of the background, frozen in buffers."""

import json
import os
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from wsss_blocks._files import replaced
from wsss_blocks._validate import check_sequence
from wsss_blocks.backbones._stand_in import STAND_IN, another_row, stand_in_rows
from wsss_blocks.backbones._text_rows import encode_prompts, positions, read_bank, unit_rows
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
        check_sequence("names", names)
        rows = unit_rows("classes", classes)
        if background is None:
            background = rows.new_zeros(0, rows.shape[1])
        others = unit_rows("background", background, dim=rows.shape[1])
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
            ValueError: no name, no template, or a template without ``{}``.
        """
        if not names:
            raise ValueError("names must hold a class at least, got [].")
        if not templates or any(t.count("{}") != 1 for t in templates):
            raise ValueError(f"templates must each hold one '{{}}', got {list(templates)}.")
        prompts = [t.format(name) for name in names for t in templates] + list(background)
        encoded = encode_prompts(text_encoder, prompts, batch_size=batch_size)
        split = len(names) * len(templates)
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
        check_sequence("names", names)
        rows = stand_in_rows(len(names) + 1, dim=dim, seed=seed)
        return cls(rows[:-1], rows[-1:], names=names, source=STAND_IN)

    def stand_in_row(self, *, seed: int) -> Tensor:
        """Draw the row ``(D,)`` of a prompt that is none of a stand-in bank's, for figures.

        A unit vector at cosine 0.75 to each row of the bank, as these are among themselves. For
        the row of a real tower give :func:`create_text_bank` one more name.

        Raises:
            ValueError: the bank is no stand-in, or D is less than K + 2.
        """
        if self.source != STAND_IN:
            raise ValueError(f"source must be {STAND_IN!r} for a drawn row, got {self.source!r}.")
        return another_row(torch.cat([self.classes, self.background]), seed=seed)

    def select(self, names: Sequence[str]) -> Self:
        """Return a bank of these classes, in this order, with the same background.

        Raises:
            ValueError: the bank lacks a name, or a name comes twice.
        """
        rows = self.classes[positions(names, self.names, where=f"the bank ({self.source})")]
        return type(self)(rows, self.background, names=names, source=self.source)

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
            names: the classes to take, by name, in this order; the file may hold more of them in
                any order. None takes all. If the file holds no names, these are its rows' names.
            background: ``(M, D)`` rows that replace those of the file.

        Raises:
            ValueError: the file is damaged, or lacks ``classes``, all names or one of ``names``.
            TypeError: its rows are not floating point.
            FileNotFoundError: there is no such file.
        """
        file = read_bank(path, names)
        try:
            bank = cls(file.classes, file.background, names=file.names, source=file.source)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path} must hold a text bank: {error}") from error
        if background is not None:
            bank = cls(bank.classes, background, names=bank.names, source=bank.source)
        positions(names or (), bank.names, where=path)  # select() could not name the file
        return bank if names is None else bank.select(names)
