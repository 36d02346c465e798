"""Bring class activation maps to a common range (ToCo, CVPR 2023; CTI, CVPR 2024)."""

from typing import Literal

import torch
from torch import Tensor, nn

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_choice,
    check_finite,
    check_floating,
    check_positive,
    check_same_device,
    check_shape,
    check_valid,
)

__all__ = ["NormalizeCAM", "normalize_cam"]

Mode = Literal["minmax", "max", "cti"]
Scope = Literal["class", "image"]


def normalize_cam(
    cam: Tensor,
    *,
    mode: Mode = "minmax",
    relu: bool = True,
    scope: Scope = "class",
    valid: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""Scale each class map (or the maps of each image together) by its extremes.

    .. math::

        \text{minmax: } \frac{x - \min x}{\max x - \min x + \epsilon} \qquad
        \text{max: } \frac{x}{\max(\max x, \epsilon)} \qquad
        \text{cti: } \frac{\mathrm{ReLU}(x - \min x - \epsilon)}{\max x - \min x + \epsilon}

    after a ReLU on :math:`x` where ``relu`` is set. A constant map becomes 0 (with ``"max"`` only
    the map without a positive score does: a constant positive one becomes 1). Time is O(B K h w),
    peak memory three copies of the maps: 3 MiB for 16 images with K = 20 on a 28 x 28 grid, 184 MiB
    for four at 448 x 448.

    Reference:
        minmax: "Token Contrast for Weakly-Supervised Semantic Segmentation" (ToCo), released code,
        https://arxiv.org/abs/2303.01267; cti: "Class Tokens Infusion for Weakly Supervised
        Semantic Segmentation", CVPR 2024, released code (its ``max_norm`` is this min-max).

    Args:
        cam: ``(B, K, h, w)`` scores.
        mode: ``"minmax"``, ``"max"`` or ``"cti"``.
        relu: Drop negative scores first.
        scope: ``"class"`` takes extremes per map, ``"image"`` over all maps of an image.
        valid: ``(B, h, w)`` bool or None. Extremes look at True positions only; the others come
            back as 0.
        eps: The :math:`\epsilon` of the formulas.

    Returns:
        ``(B, K, h, w)`` in the dtype of ``cam``.

    Raises:
        ValueError: If a shape, device, ``mode``, ``scope`` or ``eps`` does not fit, or ``cam`` is
            not finite where ``valid``.
        TypeError: If ``cam`` is not floating-point or ``valid`` is not bool.

    Example:
        >>> import torch
        >>> normalize_cam(torch.tensor([[[[-1.0, 0.0], [1.0, 4.0]]]]), mode="max")
        tensor([[[[0.0000, 0.0000],
                  [0.2500, 1.0000]]]])
    """
    check_shape("cam", cam, "B K h w")
    check_floating("cam", cam)
    check_valid(valid, batch=cam.shape[0], size=(cam.shape[2], cam.shape[3]))
    _check_options(mode, scope, eps)
    if valid is not None:
        check_same_device("valid", valid, "cam", cam)
    check_finite("cam", cam, where=None if valid is None else valid.unsqueeze(1))
    return scale_to_range(cam, mode=mode, relu=relu, scope=scope, valid=valid, eps=eps)


def scale_to_range(
    cam: Tensor,
    *,
    mode: Mode = "minmax",
    relu: bool = False,
    scope: Scope = "class",
    valid: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Compute what :func:`normalize_cam` returns, for arguments that are known to be legal."""
    x = at_least_float32(cam)
    if relu:
        x = x.relu()
    axes = (-2, -1) if scope == "class" else (-3, -2, -1)
    if valid is None:
        low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
    else:
        outside = ~valid[:, None]
        x = x.masked_fill(outside, 0)
        empty = outside.all(-1, keepdim=True).all(-2, keepdim=True)
        low = x.masked_fill(outside, float("inf")).amin(axes, keepdim=True).masked_fill(empty, 0)
        high = x.masked_fill(outside, -float("inf")).amax(axes, keepdim=True).masked_fill(empty, 0)
    if mode == "max":
        x = x / high.clamp_min(eps)
        if cam.dtype == torch.float16:  # a map without a positive score is divided by eps
            x = x.clamp_min(torch.finfo(cam.dtype).min)
    else:
        shifted = x - low if mode == "minmax" else (x - low - eps).relu()
        x = shifted / (high - low + eps)
    if valid is not None:
        x = x.masked_fill(outside, 0)
    return x.to(cam.dtype)


class NormalizeCAM(nn.Module):
    """Scale class activation maps by their extremes: see :func:`normalize_cam`.

    Args:
        mode: ``"minmax"``, ``"max"`` or ``"cti"``.
        relu: Drop negative scores first.
        scope: ``"class"`` or ``"image"``.
        eps: Added to (or a floor of) the denominator.

    Shape:
        - Input: ``(B, K, h, w)``, optional ``valid`` ``(B, h, w)``
        - Output: ``(B, K, h, w)``

    Raises:
        ValueError: If ``mode``, ``scope`` or ``eps`` does not fit.

    Example:
        >>> import torch
        >>> NormalizeCAM(mode="cti")(torch.randn(2, 20, 14, 14)).shape
        torch.Size([2, 20, 14, 14])
    """

    def __init__(
        self,
        *,
        mode: Mode = "minmax",
        relu: bool = True,
        scope: Scope = "class",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        _check_options(mode, scope, eps)
        self.mode: Mode = mode
        self.relu = relu
        self.scope: Scope = scope
        self.eps = eps

    def forward(self, cam: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """Return the normalised maps."""
        return normalize_cam(
            cam, mode=self.mode, relu=self.relu, scope=self.scope, valid=valid, eps=self.eps
        )

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"mode={self.mode!r}, relu={self.relu}, scope={self.scope!r}, eps={self.eps}"


def _check_options(mode: str, scope: str, eps: float) -> None:
    check_choice("mode", mode, ("minmax", "max", "cti"))
    check_choice("scope", scope, ("class", "image"))
    check_positive("eps", eps)
