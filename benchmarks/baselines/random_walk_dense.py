"""Random walks of IRN from the formula: with a matrix of all pairs, squared, and in scipy."""

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

__all__ = ["compressed_rows", "published", "transition_matrix", "walk_compressed"]


def transition_matrix(matrix: Tensor, beta: float) -> Tensor:
    """Raise affinities ``(N, N)`` to ``beta`` and divide each column by its sum."""
    powered = matrix**beta
    return powered / powered.sum(0, keepdim=True)


def published(maps: Tensor, matrix: Tensor, *, beta: float, doublings: int) -> Tensor:
    """Walk ``2 ** doublings`` steps on ``maps (C, h, w)``, by squaring the matrix of one step."""
    transition = transition_matrix(matrix, beta)
    for _ in range(doublings):
        transition = transition @ transition
    return (maps.flatten(1) @ transition).view_as(maps)


def compressed_rows(values: Tensor, offsets: tuple[tuple[int, int], ...], beta: float) -> object:
    """Transposed steps as a scipy matrix, from affinities ``(R, h, w)`` of each pair once."""
    _, height, width = values.shape
    cells = np.arange(height * width).reshape(height, width)
    rows, columns, entries = [cells.ravel()], [cells.ravel()], [np.ones(cells.size, np.float32)]
    for plane, (dy, dx) in zip(values.numpy(), offsets, strict=True):
        inner = (max(0, width - max(0, dx)), max(0, width - max(0, -dx)))
        near = (slice(0, max(0, height - dy)), slice(max(0, -dx), inner[0]))
        far = (slice(dy, height), slice(max(0, dx), inner[1]))
        start, end = cells[near].ravel(), cells[far].ravel()
        rows += [start, end]
        columns += [end, start]
        entries += [plane[near].ravel() ** beta] * 2
    where = (np.concatenate(rows), np.concatenate(columns))
    powered = sparse.coo_matrix((np.concatenate(entries), where), shape=(cells.size, cells.size))
    shares = 1 / powered.sum(1, dtype=np.float64)
    return sparse.csr_matrix(powered.multiply(shares).astype(np.float32))


def walk_compressed(maps: Tensor, transition: object, *, steps: int) -> Tensor:
    """Walk on ``maps (C, h, w)``, one product with the scipy matrix a step."""
    x = maps.flatten(1).mT.contiguous().numpy()
    for _ in range(steps):
        x = transition @ x  # type: ignore[operator]
    return torch.from_numpy(x.T.copy()).view_as(maps)
