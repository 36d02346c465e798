"""Groups of classes whose centroids are alike: connected components of a thresholded cosine.

Paper: Jo et al., "DHR: Dual Features-Driven Hierarchical Rebalancing", ECCV 2024,
https://arxiv.org/abs/2404.00380
"""

import torch
from torch import Tensor

from wsss_blocks._numerics import l2_normalize
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_fraction,
    check_same_device,
    check_shape,
)

__all__ = ["class_groups"]


def class_groups(
    centroids: Tensor,
    present: Tensor,
    *,
    threshold: float = 0.8,
    overlapping: bool = False,
) -> Tensor:
    r"""Group the present classes of each image whose centroids are alike.

    .. math::

        A_{ij} = \mathbb 1\!\left[
            \frac{\langle V_i, V_j \rangle}{\lVert V_i \rVert \lVert V_j \rVert} > \tau \right]

    A group is a connected component of :math:`A` with two classes or more. Components come from
    :math:`\lceil \log_2 C \rceil` squarings of :math:`A`, for all images at once and without a
    wait for a GPU: time O(B C^3 log C), peak memory a few ``(B, C, C)``.

    Reference:
        Jo et al., "DHR: Dual Features-Driven Hierarchical Rebalancing in Inter- and Intra-Class
        Regions for Weakly-Supervised Semantic Segmentation", ECCV 2024, the grouping of Eq. 4 and
        supplement A.2, https://arxiv.org/abs/2404.00380. Inferred: the text of the equation was not
        recovered; the supplement speaks of clusters and of automatic grouping.

    Note:
        The released code takes each row of the upper triangle of :math:`A` as a group, so three
        classes that are all alike make the groups {0, 1, 2} and {1, 2}, and what depends on a group
        happens twice to two of them. ``overlapping=True`` gives these rows, for parity only.

    Args:
        centroids: ``(B, C, D)``.
        present: ``(B, C)`` bool, classes that may be in a group.
        threshold: :math:`\tau` in [0, 1].
        overlapping: Rows of the upper triangle in place of components.

    Returns:
        ``(B, C, C)`` bool: ``[b, g, c]`` tells whether class ``c`` is in the group whose first
        class is ``g``. Where no group begins with ``g`` the row is False; a class alone has none.

    Raises:
        ValueError: If a shape or device does not fit, ``centroids`` are not finite or ``threshold``
            is not in [0, 1].
        TypeError: If ``centroids`` are not floating point or ``present`` is not bool.

    Example:
        >>> import torch
        >>> centroids = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]]])
        >>> class_groups(centroids, torch.ones(1, 3, dtype=torch.bool))[0].int()
        tensor([[1, 0, 1],
                [0, 0, 0],
                [0, 0, 0]], dtype=torch.int32)
    """
    check_shape("centroids", centroids, "B C D")
    check_floating("centroids", centroids)
    batch, classes, _ = centroids.shape
    check_shape("present", present, "B C", B=batch, C=classes)
    if present.dtype != torch.bool:
        raise TypeError(f"present must be a bool tensor, got {present.dtype}.")
    check_same_device("present", present, "centroids", centroids)
    check_fraction("threshold", threshold)
    check_finite("centroids", centroids)
    unit = l2_normalize(centroids.detach())
    with torch.autocast(centroids.device.type, enabled=False):
        alike = unit @ unit.mT > threshold
        itself = torch.eye(classes, dtype=torch.bool, device=centroids.device)
        linked = (alike | alike.mT | itself) & present.unsqueeze(1) & present.unsqueeze(2)
        if overlapping:
            rows = linked.triu()
        else:
            length = 1  # of the paths that linked looks at
            while length < classes:
                steps = linked.to(unit.dtype)
                linked, length = steps @ steps > 0, 2 * length
            rows = linked & ~linked.tril(-1).any(2, keepdim=True)
    return rows & (rows.sum(2, keepdim=True) > 1)
