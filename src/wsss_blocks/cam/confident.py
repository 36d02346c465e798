"""Pseudo-labels of the pixels that one is sure of (CLIP-ES, CVPR 2023)."""

import torch
from torch import Tensor

from wsss_blocks._numerics import first_argmax
from wsss_blocks._validate import (
    check_box,
    check_finite,
    check_floating,
    check_fraction,
    check_int,
    check_shape,
)
from wsss_blocks.cam.box import box_to_valid, check_inside

__all__ = ["confident_label"]


def confident_label(
    maps: Tensor,
    *,
    confidence: float = 0.95,
    box: Tensor | None = None,
    ignore_index: int = 255,
) -> Tensor:
    r"""Label each pixel with its most probable class, or "ignore" where that is not likely enough.

    .. math::

        L = \begin{cases} \arg\max_c P_c & \max_c P_c \ge \mu \\
        \text{ignore} & \text{otherwise, and outside the box} \end{cases}

    For maps that compete already, as a CRF leaves them. CLIP-ES's confidence-guided loss is the
    cross-entropy with such labels: a loss that leaves out ``ignore_index``, as
    :func:`~wsss_blocks.losses.segmentation_loss`.

    Reference:
        Lin et al., "CLIP is Also an Efficient Segmenter" (CLIP-ES), CVPR 2023, section 3.5
        (number inferred), https://arxiv.org/abs/2212.09506; 0.95 behind the CRF.

    Note:
        Background wins ties, then the lowest class.

    Args:
        maps: ``(B, K+1, H, W)`` probabilities, background at channel 0; absent classes 0.
        confidence: :math:`\mu`; 0 decides every pixel.
        box: ``(B, 4)`` integers top, left, bottom, right in pixels of ``maps``; ignored outside.
        ignore_index: label of the pixels that are not decided.

    Returns:
        ``(B, H, W)`` int64: 0 background, ``1..K``, ``ignore_index``.

    Raises:
        ValueError: If a shape or device does not fit, ``confidence`` is not in [0, 1], or
            ``ignore_index`` is a class; where values are checked, if ``maps`` is not finite or a
            box leaves it.
        TypeError: If ``maps`` is not floating-point or ``box`` not an integer tensor.

    Example:
        >>> import torch
        >>> maps = torch.tensor([[0.98, 0.6, 0.01], [0.02, 0.4, 0.99]]).view(1, 2, 1, 3)
        >>> confident_label(maps)
        tensor([[[  0, 255,   1]]])
    """
    check_shape("maps", maps, "B C H W")
    check_floating("maps", maps)
    check_finite("maps", maps)
    check_fraction("confidence", confidence)
    check_int("ignore_index", ignore_index)
    batch, channels, height, width = maps.shape
    if 0 <= ignore_index < channels:
        raise ValueError(
            f"ignore_index must not be one of the channels 0..{channels - 1} of maps, "
            f"got {ignore_index}."
        )
    size = (height, width)
    check_box(box, batch=batch, device=maps.device)
    if box is not None:
        check_inside(box, image_size=size)
    with torch.no_grad():
        label = first_argmax(maps, 1).long()
        sure = maps.amax(1) >= confidence
        if box is not None:
            sure = sure & box_to_valid(box, image_size=size, size=size)
        return label.masked_fill(~sure, ignore_index)
