"""Morphological closing: fill holes and gaps that are smaller than a square.

Used on the masks of SimSeg (Yi et al., CVPR 2023); the operation is Serra's (1982).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_blocks._validate import check_finite, check_int, check_shape

__all__ = ["MorphologicalClosing", "morphological_closing"]


def morphological_closing(maps: Tensor, *, size: int = 7) -> Tensor:
    r"""Dilate each map with a square, then erode it with the same one.

    .. math::

        \delta(x)_p = \max_{q \in S_p} x_q, \qquad \epsilon(x)_p = \min_{q \in S_p} x_q, \qquad
        y = \epsilon(\delta(x))

    where :math:`S_p` is the square of ``size`` pixels a side around :math:`p`, cut off at the
    border, so that a gap up to the border is filled like one between objects. Nothing becomes
    smaller, and closing twice is closing once. Rows and columns are done one after the other: time
    O(B C H W size), memory two copies of the maps.

    Reference:
        "A Simple Framework for Text-Supervised Semantic Segmentation" (SimSeg), CVPR 2023, released
        code: 7 x 7, once, on the binary mask of each class; the paper does not mention it.
        The operation: J. Serra, "Image Analysis and Mathematical Morphology", 1982.

    Note:
        The released code asks OpenCV for 5 dilations and 3 erosions, but in an argument that means
        something else, so that 1 of each takes place.

    Args:
        maps: Scores or masks ``(B, C, H, W)``, of any real dtype; each channel is closed for
            itself. Class ids are not scores: make one channel per class of them.
        size: Side of the square, odd; 1 changes nothing.

    Returns:
        Maps of the same shape and dtype. Differentiable for floating-point maps.

    Raises:
        ValueError: If the shape does not fit, a score is not finite, or ``size`` is even or less
            than 1.
        TypeError: If ``maps`` is complex or ``size`` is not an int.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[[[0, 0, 1, 1, 0, 1, 0, 0, 0, 1]]]])
        >>> morphological_closing(mask, size=3).flatten().tolist()
        [0, 0, 1, 1, 1, 1, 0, 0, 0, 1]
    """
    check_shape("maps", maps, "B C H W")
    if maps.is_complex():
        raise TypeError(f"maps must be real, got {maps.dtype}.")
    _check_size(size)
    if maps.is_floating_point():
        check_finite("maps", maps)
        return _closed(maps, size)
    # Pooling takes floats only. Each of these holds every value of the dtype, or 2 ** 53 of them.
    exact = torch.float32 if maps.dtype in (torch.bool, torch.uint8) else torch.float64
    return _closed(maps.to(exact), size).to(maps.dtype)


class MorphologicalClosing(nn.Module):
    """Fill holes and gaps that are smaller than a square: see :func:`morphological_closing`.

    Args:
        size: Side of the square, odd.

    Shape:
        - Input: ``(B, C, H, W)``
        - Output: ``(B, C, H, W)``

    Raises:
        ValueError: If ``size`` is even or less than 1.
        TypeError: If ``size`` is not an int.

    Example:
        >>> import torch
        >>> MorphologicalClosing(size=3)(torch.rand(1, 2, 5, 6)).shape
        torch.Size([1, 2, 5, 6])
    """

    def __init__(self, *, size: int = 7) -> None:
        super().__init__()
        _check_size(size)
        self.size = size

    def forward(self, maps: Tensor) -> Tensor:
        """Return the closed maps."""
        return morphological_closing(maps, size=self.size)

    def extra_repr(self) -> str:
        """Show the size."""
        return f"size={self.size}"


def _check_size(size: int) -> None:
    check_int("size", size, least=1)
    if size % 2 == 0:
        raise ValueError(f"size must be odd, got {size}.")


def _closed(x: Tensor, size: int) -> Tensor:
    return -_dilated(-_dilated(x, size), size)


def _dilated(x: Tensor, size: int) -> Tensor:
    # Pooling pads with -inf, that is: it looks at pixels of the image only.
    x = F.max_pool2d(x, (size, 1), stride=1, padding=(size // 2, 0))
    return F.max_pool2d(x, (1, size), stride=1, padding=(0, size // 2))
