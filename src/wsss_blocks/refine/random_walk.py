"""Random walk: let scores flow between cells that are alike, without a matrix where few are tied.

Paper: Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly
Supervised Semantic Segmentation" (AffinityNet), CVPR 2018, https://arxiv.org/abs/1803.10464
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_same_device,
    check_shape,
    check_valid,
)
from wsss_blocks.backbones.features import Features
from wsss_blocks.cam.box import box_to_valid
from wsss_blocks.refine import _present
from wsss_blocks.refine._walk import Affinity, check_affinity, check_options, propagate
from wsss_blocks.refine.affinity import NeighbourAffinity

__all__ = ["RandomWalk", "random_walk"]


def random_walk(
    maps: Tensor,
    affinity: Affinity,
    *,
    beta: float = 8.0,
    steps: int = 64,
    valid: Tensor | None = None,
) -> Tensor:
    r"""Replace each score, ``steps`` times, by the mean over its cell's sources.

    .. math::

        x \leftarrow x\, T^m, \qquad T_{ij} = \frac{A_{ij}^\beta}{\sum_i A_{ij}^\beta}

    with :math:`x` a map as a row of N cells. Columns of :math:`T` sum to 1, so constant maps stay
    constant. Powers of :math:`T` are never formed:

    - :class:`~wsss_blocks.refine.NeighbourAffinity` (self-affinity 1) takes no matrix at all but
      sums over shifted views. Its T has real eigenvalues in [-1, 1], so :math:`T^m` is evaluated
      as a Chebyshev series: 84 sums for 256 steps, 40 for 64 in float32, where what is left out is
      about 1e-7 of the largest score. A sum takes O(B C R h w). Memory is about seven times that
      of the affinity (12 MiB for 112 x 112 cells with R = 34); with a gradient, what the sums made
      is kept. Up to 400 cells the sums are products with a small matrix.
    - Dense matrices take ``steps`` products with the maps, O(B C N^2) each, and memory for two
      copies of the matrix. They may be asymmetric; their diagonal counts.
    - Sparse matrices likewise, in compressed rows: O(C nnz) a step. On a GPU making the rows waits
      for their number.

    After 256 steps in float32 scores are within about 1e-4 of those in float64, which is what the
    squared matrix reaches.

    Reference:
        Ahn and Kwak (AffinityNet), CVPR 2018, https://arxiv.org/abs/1803.10464: beta
        8; 64 steps in MCTformer, 256 in the authors' code. Ahn et al. (IRN), CVPR 2019,
        https://arxiv.org/abs/1904.05044: beta 10, 256 steps. AFA's propagation
        (https://arxiv.org/abs/2203.02664) is beta 2 and 1 step (inferred from the released code).

    Note:
        The released codes square T, so that their ``exp_times=8`` is ``steps=256``. IRN walks
        ``maps * (1 - edge)``, see :func:`~wsss_blocks.refine.edge_affinity`.

    Args:
        maps: Scores ``(B, C, h, w)`` or, as G sets, ``(B, G, C, h, w)``, on the affinity's grid.
        affinity: Affinities >= 0: ``(B, N, N)`` from source (row) to target (column), dense or
            sparse with N = h w, or a :class:`~wsss_blocks.refine.NeighbourAffinity` in [0, 1].
        beta: Exponent of the affinities, at least 1.
        steps: Number of multiplications with T, never an exponent of 2.
        valid: ``(B, h, w)`` bool: False for cells that take no part and come back as 0.

    Returns:
        Maps in the shape and dtype of ``maps``. A cell tied to nothing keeps its scores.
        Differentiable in maps and affinity.

    Raises:
        ValueError: If a shape or device does not fit, an option is out of range, an affinity is
            negative, a value not finite, or ``offsets`` name a pair twice.
        TypeError: If maps or affinity are not floating point.

    Example:
        >>> import torch
        >>> from wsss_blocks.refine import edge_affinity
        >>> edge = torch.tensor([[[[0.0, 0.0, 0.9, 0.0, 0.0]]]])
        >>> seed = torch.tensor([[[[0.0, 1.0, 0.0, 0.0, 0.0]]]])
        >>> spread = random_walk(seed, edge_affinity(edge, radius=3), beta=10, steps=256)
        >>> [round(x, 3) for x in spread.flatten().tolist()]
        [0.5, 0.5, 0.0, 0.0, 0.0]
    """
    grouped = isinstance(maps, Tensor) and maps.ndim == 5
    check_shape("maps", maps, "B G C h w" if grouped else "B C h w")
    check_floating("maps", maps)
    check_finite("maps", maps)
    check_options(beta, steps)
    check_affinity(affinity, maps)
    batch, (height, width) = maps.shape[0], maps.shape[-2:]
    check_valid(valid, batch=batch, size=(height, width))
    sets = _present.as_sets(maps)
    values = affinity.values if isinstance(affinity, NeighbourAffinity) else affinity
    dtype = torch.promote_types(at_least_float32(maps).dtype, at_least_float32(values).dtype)
    planes = sets.to(dtype).flatten(1, 2)
    taking = planes.new_ones(batch, 1, height, width)
    if valid is not None:
        check_same_device("valid", valid, "maps", maps)
        taking = valid.unsqueeze(1).to(dtype)
    with torch.autocast(maps.device.type, enabled=False):
        walked = propagate(planes, affinity, taking, beta=beta, steps=steps)
    return _present.put_back(walked.view_as(sets), None, like=maps)


class RandomWalk(nn.Module):
    """Refine maps with :func:`random_walk` among affinities that a function makes of the image.

    The walk takes place on the grid of a :class:`~wsss_blocks.refine.NeighbourAffinity`, or of the
    maps if the affinity is a matrix. Maps are resized to it, the result to the images (bilinear,
    ``align_corners=False``). All sets of an image share one call of the function.

    Args:
        affinity: Takes images ``(B, 3, H, W)`` and features (None where the caller has none) and
            returns an affinity, as for :func:`random_walk`. A module becomes a part of this one.
        beta: Exponent of the affinities, at least 1.
        steps: Number of multiplications.

    Shape:
        - images: ``(B, 3, H, W)``; maps: ``(B, K+1, h, w)`` or ``(B, G, K+1, h, w)``
        - output: ``(B, K+1, H, W)`` or ``(B, G, K+1, H, W)``

    Raises:
        ValueError: If an option is out of range.
        TypeError: If ``affinity`` cannot be called.

    Example:
        >>> import torch
        >>> from wsss_blocks.refine import feature_affinity
        >>> def alike_in_colour(images, features):
        ...     return feature_affinity(4 * torch.nn.functional.avg_pool2d(images, 4))
        >>> refiner = RandomWalk(alike_in_colour, steps=16)
        >>> refiner(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 4, 4)).shape
        torch.Size([1, 3, 32, 32])
    """

    def __init__(
        self,
        affinity: Callable[[Tensor, Features | None], Affinity],
        *,
        beta: float = 8.0,
        steps: int = 64,
    ) -> None:
        super().__init__()
        if not callable(affinity):
            raise TypeError(f"affinity must be callable, got {type(affinity).__name__}.")
        check_options(beta, steps)
        self.affinity = affinity
        self.beta, self.steps = beta, steps

    def forward(
        self,
        images: Tensor,
        maps: Tensor,
        *,
        labels: Tensor | None = None,
        box: Tensor | None = None,
        features: Features | None = None,
    ) -> Tensor:
        """Return refined maps at the size of the images.

        Arguments as in :class:`~wsss_blocks.refine.Refiner`. Cells whose centre is outside ``box``
        do not take part and are 0 before the resize. Raises like the function, and for scores
        below 0.
        """
        _present.check_refiner_inputs(images, maps, labels, box)
        size = (images.shape[-2], images.shape[-1])
        present = _present.take_present(_present.as_sets(maps), labels)
        affinity = self.affinity(images, features)
        like = affinity.values if isinstance(affinity, NeighbourAffinity) else maps
        grid = (like.shape[-2], like.shape[-1])
        valid = None if box is None else box_to_valid(box, image_size=size, size=grid)
        walked = random_walk(
            _present.resize_sets(present.maps, grid),
            affinity,
            beta=self.beta,
            steps=self.steps,
            valid=valid,
        )
        resized = _present.resize_sets(walked.clamp_min(0), size)  # a series may end a hair below
        return _present.put_back(resized, present.channels, like=maps)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"beta={self.beta}, steps={self.steps}"
