"""How alike near cells are: affinities from an edge map or from features (IRN, AffinityNet)."""

from typing import NamedTuple

import torch
from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_int,
    check_shape,
)
from wsss_blocks.refine._stencil import check_unit, half_disc, on_grid, path, shifted

__all__ = ["NeighbourAffinity", "edge_affinity", "feature_affinity"]


class NeighbourAffinity(NamedTuple):
    """Affinities of the cells of a grid to near ones: what a random walk needs of an N x N matrix.

    An affinity is mutual: each pair is held once, at its upper (in one row: left) cell.

    Args:
        values: ``(B, R, h, w)`` in [0, 1]: that of cell (y, x) and cell (y + dy, x + dx) for the
            r-th offset. Pairs that leave the grid do not count, whatever stands there.
        offsets: R pairs (dy, dx) with dy > 0, or dy = 0 and dx > 0, all different.

    Example:
        >>> import torch
        >>> affinity = NeighbourAffinity(torch.tensor([[[[0.5, 0.25, 0.0]]]]), ((0, 1),))
        >>> affinity.to_dense()
        tensor([[[1.0000, 0.5000, 0.0000],
                 [0.5000, 1.0000, 0.2500],
                 [0.0000, 0.2500, 1.0000]]])
    """

    values: Tensor
    offsets: tuple[tuple[int, int], ...]

    def to_dense(self) -> Tensor:
        """Return the matrices ``(B, N, N)``: symmetric, with ones on the diagonal."""
        batch, _, height, width = self.values.shape
        n = height * width
        cells = torch.arange(n, device=self.values.device).view(height, width)
        ends = torch.stack(shifted(cells, self.offsets))
        values = self.values * on_grid(self.values, self.offsets)
        half = values.new_zeros(batch, n * n)
        half = half.index_add(1, (cells * n + ends).flatten(), values.flatten(1)).view(batch, n, n)
        return half + half.mT + torch.eye(n, dtype=half.dtype, device=half.device)


def edge_affinity(edge: Tensor, *, radius: int = 5) -> NeighbourAffinity:
    r"""Call two cells alike unless an edge lies between them.

    .. math::

        A_{ij} = 1 - \max_{k \in \Pi_{ij}} E_k

    for all pairs nearer than ``radius``. The path :math:`\Pi_{ij}` holds both cells and all cells
    of the rectangle they span whose centres are less than 1 away from the line through them.

    With R pairs of a cell (34 at radius 5, 152 at 10) and paths of P cells (at most 11 and 22),
    time is O(B R P h w) and peak memory about three times the result.

    Reference:
        Ahn et al., "Weakly Supervised Learning of Instance Segmentation with Inter-pixel
        Relations" (IRN), CVPR 2019, https://arxiv.org/abs/1904.05044. The rule of the path
        is that of the authors' code.

    Note:
        IRN propagates ``maps * (1 - edge)``:
        ``random_walk(maps * (1 - edge), edge_affinity(edge), beta=10, steps=256)``.

    Args:
        edge: Edge probabilities in [0, 1], ``(B, 1, h, w)``.
        radius: Pairs with ``dy ** 2 + dx ** 2 < radius ** 2`` are made; at least 2.

    Returns:
        Affinities in [0, 1], values ``(B, R, h, w)``, 0 for pairs that leave the grid; float32
        for half inputs, since a walk raises them to a power. Differentiable.

    Raises:
        ValueError: If a shape does not fit, ``radius`` is below 2 or ``edge`` outside [0, 1].
        TypeError: If ``edge`` is not floating point or ``radius`` not an int.

    Example:
        >>> import torch
        >>> edge = torch.tensor([[[[0.0, 0.9, 0.2, 0.0]]]])
        >>> affinity = edge_affinity(edge, radius=3)
        >>> [round(x, 1) for x in affinity.values[0, affinity.offsets.index((0, 2)), 0].tolist()]
        [0.1, 0.1, 0.0, 0.0]
    """
    check_shape("edge", edge, "B 1 h w")
    check_unit("edge", edge)
    check_int("radius", radius, least=2)
    offsets = half_disc(radius)
    # Beyond the grid everything is edge, so pairs that leave it come out as 0.
    cells = sorted({cell for offset in offsets for cell in path(*offset)})
    planes = shifted(at_least_float32(edge).squeeze(1), cells, fill=1)
    found = dict(zip(cells, planes, strict=True))
    strongest = [torch.stack([found[cell] for cell in path(*o)]).amax(0) for o in offsets]
    return NeighbourAffinity(1 - torch.stack(strongest, 1), offsets)


def feature_affinity(features: Tensor, *, radius: int = 5) -> NeighbourAffinity:
    r"""Call two cells alike where their features are near.

    .. math::

        A_{ij} = \exp\Bigl(-\frac1D \sum_d |f_{id} - f_{jd}|\Bigr)

    for all pairs nearer than ``radius``; R of them per cell, 34 at radius 5. Time is O(B R D h w);
    peak memory about three times the result and three of the features (R with a gradient).

    Reference:
        Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for
        Weakly Supervised Semantic Segmentation" (AffinityNet), CVPR 2018,
        https://arxiv.org/abs/1803.10464. The mean, where the equation may be read as a sum, is
        that of the authors' code.

    Args:
        features: ``(B, D, h, w)``, learnt with
            :func:`~wsss_blocks.refine.affinity_labels` or of any other origin; scale them to say
            how fast affinity falls.
        radius: Pairs with ``dy ** 2 + dx ** 2 < radius ** 2`` are made; at least 2.

    Returns:
        Affinities in [0, 1], values ``(B, R, h, w)``, 0 for pairs that leave the grid; float32
        for half inputs, since a walk raises them to a power. Differentiable.

    Raises:
        ValueError: If a shape does not fit, ``radius`` is below 2 or a value is not finite.
        TypeError: If ``features`` are not floating point or ``radius`` is not an int.

    Example:
        >>> import torch
        >>> affinity = feature_affinity(torch.tensor([[[[0.0, 0.0, 2.0]]]]), radius=2)
        >>> affinity.offsets
        ((0, 1), (1, -1), (1, 0), (1, 1))
        >>> [round(x, 3) for x in affinity.values[0, 0, 0].tolist()]
        [1.0, 0.135, 0.0]
    """
    check_shape("features", features, "B D h w")
    check_floating("features", features)
    check_finite("features", features)
    check_int("radius", radius, least=2)
    offsets = half_disc(radius)
    values = at_least_float32(features)
    near = shifted(values, offsets)
    alike = torch.stack([(values - other).abs().mean(1).neg().exp() for other in near], 1)
    return NeighbourAffinity(alike * on_grid(values, offsets), offsets)
