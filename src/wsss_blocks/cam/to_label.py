"""Turn class activation maps into pseudo-labels (ToCo, CVPR 2023; DIAL, ECCV 2024)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_blocks._numerics import at_least_float32, first_argmax
from wsss_blocks._validate import (
    check_box,
    check_finite,
    check_floating,
    check_int,
    check_labels,
    check_shape,
    check_size,
)
from wsss_blocks.cam._label_options import Threshold, check_options, threshold_bounds
from wsss_blocks.cam.box import box_to_valid
from wsss_blocks.cam.normalize import scale_to_range

__all__ = ["CAMToLabel", "cam_to_label"]


def cam_to_label(
    cam: Tensor,
    labels: Tensor,
    *,
    size: tuple[int, int],
    threshold: Threshold = 0.5,
    background_power: float | None = None,
    box: Tensor | None = None,
    relu: bool = True,
    normalize: Literal["minmax"] | None = "minmax",
    ignore_index: int = 255,
    dtype: torch.dtype = torch.int64,
) -> Tensor:
    r"""Label each pixel with its best present class, background, or "ignore".

    The maps are resized bilinearly to ``size``, rectified, scaled to :math:`[0, 1)` by the extremes
    of the whole resized map, and absent classes are left out. With the best score
    :math:`a = \max_{c : y_c = 1} A^c`, reached first by class :math:`c^*`, the label is

    .. math::

        \begin{cases} 0 & a \le t_{low} \\ \text{ignore} & t_{low} < a \le t_{high} \\
        c^* & \text{otherwise} \end{cases}

    A single threshold is :math:`t_{low} = t_{high}`. With ``background_power`` the background
    scores :math:`(1 - a)^\alpha` instead, with ``threshold=None`` it is channel 0 of ``cam``. In
    all cases the background wins ties, then the lowest class.

    Reference:
        "Token Contrast for Weakly-Supervised Semantic Segmentation" (ToCo), released code;
        https://arxiv.org/abs/2303.01267. The single threshold is the object-aware mask of "DIAL:
        Dense Image-text ALignment for Weakly Supervised Semantic Segmentation" (its exact form is
        inferred); https://arxiv.org/abs/2409.15801. The power is that of AffinityNet's
        background; https://arxiv.org/abs/1803.10464

    Note:
        ``normalize="minmax"`` also scales a background channel, so a constant one vanishes: pass
        ``normalize=None`` for maps that already compete, such as refined ones.

    Args:
        cam: ``(B, K, h, w)`` scores, or ``(B, K+1, h, w)`` with ``threshold=None``.
        labels: ``(B, K)`` multi-hot.
        size: ``(H, W)`` of the result.
        threshold: A number, ``(low, high)``, a tensor ``(B,)`` or ``(B, 2)`` of these per image,
            or None to let channel 0 compete.
        background_power: The :math:`\alpha` above, instead of a threshold.
        box: ``(B, 4)`` integers top, left, bottom, right in pixels of ``size``; ignored outside.
        relu: Drop negative scores after resizing.
        normalize: ``"minmax"`` or None.
        ignore_index: The label of undecided pixels and of those outside the box.
        dtype: Integer dtype of the result.

    Returns:
        ``(B, *size)``: 0 background, ``1..K``, ``ignore_index``.

    Raises:
        ValueError: If a shape or device does not fit, ``K >= ignore_index``, ``dtype`` cannot hold
            ``ignore_index``, a threshold is negative or low > high, ``background_power`` is not
            positive or comes with a threshold; where values are checked, if ``cam`` is not finite.
        TypeError: If ``cam`` or a tensor threshold is not floating-point, ``box`` or ``dtype`` not
            an integer one.

    Example:
        >>> import torch
        >>> cam = torch.tensor([[[[0.0, 0.3, 1.0]], [[0.0, 1.0, 0.6]]]])
        >>> cam_to_label(cam, torch.tensor([[1.0, 0.0]]), size=(1, 3), threshold=(0.2, 0.5))
        tensor([[[  0, 255,   1]]])
    """
    check_shape("cam", cam, "B K h w")
    check_floating("cam", cam)
    check_finite("cam", cam)
    batch, classes = cam.shape[0], cam.shape[1] - (1 if threshold is None else 0)
    if classes < 1:
        raise ValueError("cam must have K + 1 >= 2 channels with threshold=None, got 1.")
    check_int("ignore_index", ignore_index)
    if classes >= ignore_index:
        raise ValueError(f"ignore_index must be greater than K={classes}, got {ignore_index}.")
    check_labels(labels, batch=batch, num_classes=classes, device=cam.device)
    check_options(threshold, background_power, normalize, ignore_index, dtype, batch=batch)
    check_size("size", size)
    check_box(box, batch=batch, device=cam.device)

    x = at_least_float32(cam.detach())
    # Weights that sum to 1 only up to rounding would give a constant map a range to be scaled up.
    base = x.amin((-2, -1), keepdim=True)
    x = F.interpolate(x - base, size=size, mode="bilinear", align_corners=False) + base
    if relu:
        x = x.relu()
    if normalize == "minmax":
        x = scale_to_range(x)

    scores = x[:, -classes:].masked_fill((labels <= 0)[:, :, None, None], -float("inf"))
    best, winner = scores.amax(1), first_argmax(scores, 1) + 1
    if background_power is not None:
        low = high = (1 - best.clamp_min(0)).clamp_min(0) ** background_power
    elif threshold is None:
        low = high = x[:, 0]
    else:
        low, high = threshold_bounds(threshold, x)
    label = torch.where(best > high, winner, torch.where(best > low, ignore_index, 0))
    if box is not None:
        valid = box_to_valid(box, image_size=size, size=size)
        label = torch.where(valid, label, ignore_index)
    return label.to(dtype)


class CAMToLabel(nn.Module):
    """Turn class activation maps into pseudo-labels: see :func:`cam_to_label`.

    Args:
        threshold: A number, ``(low, high)`` or None; per-image tensors go to the function.
        background_power: Exponent of the background score, instead of a threshold.
        relu: Drop negative scores after resizing.
        normalize: ``"minmax"`` or None.
        ignore_index: Label of undecided pixels and outside the box.
        dtype: Integer dtype of the result.

    Shape:
        - Input: ``(B, K, h, w)`` and ``(B, K)``, optional ``box`` ``(B, 4)``
        - Output: ``(B, *size)``

    Raises:
        ValueError: If the settings do not fit each other.
        TypeError: If ``dtype`` is not an integer dtype.

    Example:
        >>> import torch
        >>> to_label = CAMToLabel(threshold=(0.25, 0.7))
        >>> to_label(torch.rand(2, 20, 28, 28), torch.ones(2, 20), size=(448, 448)).shape
        torch.Size([2, 448, 448])
    """

    def __init__(
        self,
        *,
        threshold: float | tuple[float, float] | None = 0.5,
        background_power: float | None = None,
        relu: bool = True,
        normalize: Literal["minmax"] | None = "minmax",
        ignore_index: int = 255,
        dtype: torch.dtype = torch.int64,
    ) -> None:
        super().__init__()
        check_options(threshold, background_power, normalize, ignore_index, dtype)
        self.threshold = threshold
        self.background_power = background_power
        self.relu = relu
        self.normalize: Literal["minmax"] | None = normalize
        self.ignore_index = ignore_index
        self.dtype = dtype

    def forward(
        self, cam: Tensor, labels: Tensor, *, size: tuple[int, int], box: Tensor | None = None
    ) -> Tensor:
        """Return the labels of ``cam`` at ``size``."""
        return cam_to_label(
            cam,
            labels,
            size=size,
            threshold=self.threshold,
            background_power=self.background_power,
            box=box,
            relu=self.relu,
            normalize=self.normalize,
            ignore_index=self.ignore_index,
            dtype=self.dtype,
        )

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"threshold={self.threshold}, background_power={self.background_power}"
