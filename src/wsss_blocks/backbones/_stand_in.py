"""Unit vectors with the pairwise cosine of a text encoder's rows, drawn from a seed."""

import torch
from torch import Tensor

from wsss_blocks._validate import check_int

__all__ = ["STAND_IN", "another_row", "stand_in_rows"]

STAND_IN = "stand-in"
_COSINE = 0.75


def stand_in_rows(count: int, *, dim: int, seed: int) -> Tensor:
    """Return ``(count, dim)`` unit rows, each pair at cosine 0.75."""
    check_int("dim", dim)
    check_int("seed", seed)
    if dim < count:
        raise ValueError(f"dim must be at least K + 1 = {count}, got {dim}.")
    draw = _generator(seed)
    q = torch.linalg.qr(torch.randn(dim, count, generator=draw, dtype=torch.float64)).Q.mT
    root = (1 - _COSINE) ** 0.5
    beta = ((1 - _COSINE + _COSINE * count) ** 0.5 - root) / count
    rows: Tensor = (root * q + beta * q.sum(0)).float()
    return rows


def another_row(rows: Tensor, *, seed: int) -> Tensor:
    """Return one more unit row ``(D,)`` at cosine 0.75 to each of ``rows``, as these are.

    u = a * sum(t) + b * q with q orthogonal to all rows t.
    """
    count, dim = rows.shape
    if dim <= count:
        raise ValueError(
            f"D must be at least K + 2 = {count + 1} for a row outside the bank, got {dim}."
        )
    t = rows.detach().cpu().double()
    # The last column is what the rows do not span.
    draw = torch.randn(dim, 1, generator=_generator(seed), dtype=torch.float64)
    q = torch.linalg.qr(torch.cat([t.mT, draw], dim=1)).Q[:, -1]
    with_all = 1 - _COSINE + _COSINE * count  # cosine of a row with the sum of all
    a = _COSINE / with_all
    b = (1 - _COSINE * a * count) ** 0.5
    row: Tensor = (a * t.sum(0) + b * q).to(rows)
    return row


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
