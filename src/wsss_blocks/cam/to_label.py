"""Turn class activation maps into pseudo-labels (ToCo, CVPR 2023; DIAL, ECCV 2024)."""

from typing import Literal

import torch
from torch import Tensor, nn

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
from wsss_blocks.cam.box import check_inside
from wsss_blocks.ops import _dispatch
from wsss_blocks.ops._dispatch import Backend

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
    backend: Backend = "auto",
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

    Only the present classes are touched, and of those one map at a time is resized: time
    :math:`O(P H W)` for :math:`P` pairs of an image and a class present in it, and no tensor of
    size :math:`B K H W`. The exact extremes of a resized map come from the samples next to cell
    borders, at most :math:`4 (h + 1)(w + 1)` of them, since the map is linear along each axis
    in between. Beside the result it takes some planes of a few images on a CPU (7 MiB for 16
    images of 448 x 448, whatever K), five planes of the batch on a GPU without triton. With triton
    it is two kernels, one for the extremes and one for the labels, and no plane.

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
        dtype: Integer dtype of the result; torch.uint8 takes an eighth of the memory.
        backend: ``"torch"``, ``"triton"`` (a GPU, or triton's interpreter), or ``"auto"``: triton
            where it can run, unless the environment variable WSSS_BLOCKS_DISABLE_TRITON is 1.

    Returns:
        ``(B, *size)``: 0 background, ``1..K``, ``ignore_index``.

    Raises:
        ValueError: If a shape or device does not fit, ``K >= ignore_index``, ``dtype`` cannot hold
            ``ignore_index``, a threshold is negative or low > high, ``background_power`` is not
            positive or comes with a threshold, or ``backend`` cannot run here; where values are
            checked, if ``cam`` is not finite or a box leaves the result.
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

    if box is not None:
        check_inside(box, image_size=size)
    low, high = threshold_bounds(threshold, cam) if background_power is None else (None, None)
    label: Tensor = _dispatch.cam_to_label(
        cam.detach(),
        labels.detach(),
        low,
        high,
        box,
        size[0],
        size[1],
        background_power,
        relu,
        normalize == "minmax",
        ignore_index,
        dtype,
        _dispatch.choose_backend(backend, cam),
    )
    return label


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
