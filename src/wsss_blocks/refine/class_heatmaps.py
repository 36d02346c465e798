"""Class heat-maps: cosine of the features of each cell and the centroid of each class.

Paper: Jo et al., "DHR: Dual Features-Driven Hierarchical Rebalancing", ECCV 2024,
https://arxiv.org/abs/2404.00380
"""

import torch
from torch import Tensor

from wsss_blocks._numerics import at_least_float32, l2_normalize
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_same_device,
    check_shape,
    check_valid,
    values_are_checked,
)

__all__ = ["class_heatmaps", "cosine_maps", "to_unit_range"]

_EPS = 1e-6  # as in l2_normalize: the norm of a vector counts as at least this
_SLAB = 2**15  # numbers of an image at a time: they stay in the cache of a core
_CONSTANT = 1e-5  # a range of cosines that rounding alone makes


def class_heatmaps(
    features: Tensor,
    centroids: Tensor,
    *,
    normalize: bool = True,
    valid: Tensor | None = None,
) -> Tensor:
    r"""Compare the features of each cell with the centroid of each class.

    .. math::

        H_c(p) = \left\langle \frac{V_c}{\lVert V_c \rVert},
            \frac{F(p)}{\lVert F(p) \rVert} \right\rangle, \qquad
        \hat H_c(p) = \frac{H_c(p) - \min_q H_c(q)}{\max_q H_c(q) - \min_q H_c(q)}

    One matrix product per image, divided by the norms of the cells afterwards. The features are
    never copied, but for ``valid``, and on a CPU read once: norms and products come from the same
    slab of channels, and the norms tell whether all is finite. Time is O(B C D h w), peak memory
    about three results.

    Reference:
        Jo et al., "DHR: Dual Features-Driven Hierarchical Rebalancing in Inter- and Intra-Class
        Regions for Weakly-Supervised Semantic Segmentation", ECCV 2024, Eq. 3,
        https://arxiv.org/abs/2404.00380. Inferred from the released code: the text of the equation
        was not recovered.

    Note:
        The released code divides by the range as it is, NaN for a constant map. Here a map whose
        range is below 1e-5, the rounding of a cosine, comes back as 0.

    Args:
        features: ``(B, D, h, w)``.
        centroids: ``(B, C, D)``, as from :func:`~wsss_blocks.pooling.class_average_pool`; the map
            of a zero centroid (an absent class) is 0.
        normalize: Bring each map to [0, 1] by its extremes over the valid cells; otherwise cosines.
        valid: ``(B, h, w)`` bool, True where a cell is image; the others come back as 0. None: all.

    Returns:
        ``(B, C, h, w)`` in the dtype of ``features``. Differentiable in both arguments.

    Raises:
        ValueError: If a shape or device does not fit, ``features`` are not finite where ``valid``,
            or ``centroids`` are not finite.
        TypeError: If features or centroids are not floating point, or ``valid`` is not bool.

    Example:
        >>> import torch
        >>> features = torch.tensor([[[[2.0, 3.0, 0.0]], [[0.0, 3.0, 1.0]]]])
        >>> centroids = torch.tensor([[[5.0, 0.0], [1.0, 1.0], [0.0, 0.0]]])
        >>> class_heatmaps(features, centroids, normalize=False)[0, :, 0]
        tensor([[1.0000, 0.7071, 0.0000],
                [0.7071, 1.0000, 0.7071],
                [0.0000, 0.0000, 0.0000]])
    """
    check_shape("features", features, "B D h w")
    check_floating("features", features)
    batch, dim, height, width = features.shape
    check_shape("centroids", centroids, "B C D", B=batch, D=dim)
    check_floating("centroids", centroids)
    check_same_device("centroids", centroids, "features", features)
    check_finite("centroids", centroids)
    check_valid(valid, batch=batch, size=(height, width))
    outside = None
    if valid is not None:
        check_same_device("valid", valid, "features", features)
        outside = ~valid.unsqueeze(1)
        features = features.masked_fill(outside, 0)
    maps = cosine_maps(features, centroids)
    if normalize:
        maps = to_unit_range(maps, valid)
    elif outside is not None:
        maps = maps.masked_fill(outside, 0)
    return maps.to(features.dtype)


def cosine_maps(features: Tensor, centroids: Tensor, *, name: str = "features") -> Tensor:
    """Compute the cosines ``(B, C, h, w)`` in at least float32; ``features`` must be finite."""
    cells = features.flatten(2)
    unit = l2_normalize(centroids).to(torch.promote_types(cells.dtype, torch.float32))
    with torch.autocast(features.device.type, enabled=False):
        products, norms = _products_and_norms(unit, cells)
    if values_are_checked(norms) and not bool(norms.isfinite().all()):
        check_finite(name, features)
    cosines = products / norms.clamp_min(_EPS).unsqueeze(1)
    return cosines.view(*products.shape[:2], *features.shape[2:])


def to_unit_range(maps: Tensor, valid: Tensor | None) -> Tensor:
    """Scale each map ``(B, C, h, w)`` to [0, 1] over the valid cells; a constant one becomes 0."""
    if valid is None:
        low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
        outside = torch.zeros_like(maps[:, :1], dtype=torch.bool)
    else:
        outside = ~valid.unsqueeze(1)
        low = maps.masked_fill(outside, torch.inf).amin((2, 3), keepdim=True)
        high = maps.masked_fill(outside, -torch.inf).amax((2, 3), keepdim=True)
    varies = high - low > _CONSTANT  # no valid cell: -inf
    spread = torch.where(varies, high - low, 1)
    scaled = (maps - low.masked_fill(~varies, 0)) / spread
    return scaled.masked_fill(outside | ~varies, 0)


def _products_and_norms(unit: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Products ``(B, C, N)`` of centroids and cells ``(B, D, N)``, lengths ``(B, N)`` of these."""
    if cells.device.type != "cpu" or torch.compiler.is_compiling():
        cells = at_least_float32(cells)
        return unit @ cells, torch.linalg.vector_norm(cells, dim=1)
    # A CPU takes three times as long for the product at once, 15 times for the norm along an axis
    # that is not the last. Sums of sums are rounded less than one of all slabs.
    products = unit.new_zeros(*unit.shape[:2], cells.shape[2])
    squares = torch.zeros_like(products[:, 0])
    step = max(1, _SLAB // cells.shape[2])
    blocks = zip(torch.split(unit, 16 * step, 2), torch.split(cells, 16 * step, 1), strict=True)
    for centroids, block in blocks:
        product = torch.zeros_like(products)
        square = unit.new_zeros(len(block), min(step, block.shape[1]), block.shape[2])
        slabs = zip(torch.split(centroids, step, 2), torch.split(block, step, 1), strict=True)
        for part, slab in slabs:
            slab = at_least_float32(slab)
            product.baddbmm_(part, slab)
            square[:, : slab.shape[1]].addcmul_(slab, slab)
        products += product
        squares += square.sum(1)
    return products, squares.clamp_min(_EPS**2).sqrt()
