"""Dense energy loss: the dense CRF as a regulariser of soft labels, without a compiled extension.

Paper: Tang et al., "On Regularized Losses for Weakly-supervised CNN Segmentation", ECCV 2018,
https://arxiv.org/abs/1803.09569
"""

import logging
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsss_blocks._numerics import at_least_float32
from wsss_blocks.cam.box import box_to_valid
from wsss_blocks.losses._energy import check_inputs, check_options, messages

__all__ = ["DenseEnergyLoss", "dense_energy_loss"]

Method = Literal["auto", "lattice", "exact", "cells"]
_LOGGER = logging.getLogger("wsss_blocks")


def dense_energy_loss(
    logits: Tensor,
    images: Tensor,
    *,
    mask: Tensor | None = None,
    box: Tensor | None = None,
    weight: float = 1e-7,
    sigma_rgb: float = 15.0,
    sigma_xy: float = 100.0,
    scale: float = 0.5,
    method: Method = "auto",
    ignore_index: int = 255,
) -> Tensor:
    r"""Punish soft labels that differ between near pixels of like colour.

    With the probabilities :math:`S_k` of class k, positions :math:`x`, colours :math:`c` in 0..255
    and a gate :math:`g`, for each image

    .. math::

        E = -\sum_k S_k^\top \operatorname{diag}(g) A S_k, \qquad
        A_{ij} = e^{-|x_i - x_j|^2 / 2 s_{xy}^2 - |c_i - c_j|^2 / 2 s_{rgb}^2}

    and the loss is ``weight`` times the mean of E over the batch. Where the mask has a label, the
    gate is what the most probable class leaves, :math:`1 - \max_k S_k`; where it is ignored, 1;
    outside the box, S is 0. With a gate of 1 and no box, the :math:`S_k` of a pixel sum to 1, so E
    is the Potts energy :math:`\sum_k S_k^\top A (1 - S_k)` up to a constant.

    Methods for :math:`A S` with N pixels at ``scale``: "lattice", permutohedral as in the released
    code, O(N C) after one sort per image, images one by one, breaks a graph that is compiled;
    "exact", all pairs, O(N^2 C) time, O(N C) memory; "cells", pixels against M means of cells one
    deviation wide, O(N M C). "auto" is "lattice" on a CPU, "cells" elsewhere, and is logged (logger
    ``wsss_blocks``, level debug). The backward pass costs next to nothing with any.

    Reference:
        Tang et al., https://arxiv.org/abs/1803.09569, dense CRF loss. Gate, box and constants are
        those of ToCo, https://arxiv.org/abs/2303.01267, which adds 0.05 times it. Inferred: how
        image, mask and box are sampled at ``scale``.

    Note:
        The gradient is :math:`-2 \operatorname{diag}(g) A S_k` with the gate held constant (as
        Tang et al. do): the derivative of E where the gate is 1, which elsewhere would be
        :math:`-(\operatorname{diag}(g) A + A \operatorname{diag}(g)) S_k`. There is no second one.

        A lattice holds 0.57 to 0.59 of the energy that "exact" and "cells" compute (photographs).
        Inferred: so does that of the released code, whose 1e-7 then stands for 5.8e-8 with those.

    Args:
        logits: ``(B, C, h, w)`` with background at channel 0; resized bilinearly
            (``align_corners=False``) to the images where the sizes differ, before the softmax.
        images: RGB images in [0, 1], ``(B, 3, H, W)``. They get no gradient.
        mask: Pseudo-labels ``(B, H, W)``, any integer dtype. None: no pixel has a label.
        box: The part of each image that is not padding, ``(B, 4)`` integers top, left, bottom,
            right. None: all of it.
        weight: Factor of the energy, which grows with the square of the number of pixels.
        sigma_rgb: Standard deviation of the kernel in colours.
        sigma_xy: Standard deviation in pixels of the images.
        scale: Side of the grid of the energy over that of the images, at most 1. Probabilities are
            resized to it bilinearly; images, mask and box by taking the nearest pixel.
        method: "auto", "lattice", "exact" or "cells".
        ignore_index: id of the pixels of ``mask`` that have no label.

    Returns:
        Scalar, at most 0; float32 for half inputs, else the dtype of ``logits``.

    Raises:
        ValueError: wrong shape or device, NaN or infinite ``logits``, ``images`` not in [0, 1], a
            box that leaves the image, or an option out of range.
        TypeError: wrong dtype of a tensor or type of an option.

    Example:
        >>> import torch
        >>> images = torch.zeros(1, 3, 8, 8)
        >>> images[..., 4:] = 1
        >>> right = 5 * torch.stack([1 - images[:, 0], images[:, 0]], 1)  # labels follow the edge
        >>> loss = DenseEnergyLoss(weight=1e-2, method="exact")
        >>> print(f"{loss(right, images):.2f} {loss(right.roll(2, dims=3), images):.2f}")
        -1.26 -0.64
    """
    check_options(weight, sigma_rgb, sigma_xy, scale, method, ignore_index)
    check_inputs(logits, images, mask, box)
    height, width = images.shape[-2:]
    logits = at_least_float32(logits)
    if logits.shape[-2:] != images.shape[-2:]:
        logits = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
    probs = logits.softmax(1)
    size = max(1, int(height * scale)), max(1, int(width * scale))
    if size != (height, width):
        probs = F.interpolate(probs, size=size, mode="bilinear", align_corners=False)
    rows = torch.arange(size[0], device=logits.device)[:, None] * height // size[0]
    columns = torch.arange(size[1], device=logits.device) * width // size[1]
    gate = torch.ones_like(probs[:, 0])
    if mask is not None:
        unknown = mask.long()[:, rows, columns] == ignore_index
        gate = torch.where(unknown, gate, 1 - probs.detach().amax(1)).clamp_min(0)
    inside = None
    if box is not None:
        inside = box_to_valid(box, image_size=(height, width), size=(height, width))
        inside = inside[:, rows, columns]
        probs = probs * inside[:, None]
    if method == "auto":
        method = "lattice" if logits.device.type == "cpu" else "cells"
        if not torch.compiler.is_compiling():
            _LOGGER.debug("dense_energy_loss: method %r for %d x %d pixels", method, *size)
    colours = images.detach()[:, :, rows, columns].to(probs.dtype) * (255 / sigma_rgb)
    spread = messages(colours, probs.detach(), inside, sigma_xy * scale, method)
    # Twice the energy, whose gradient is -2 g A S; half of the value is taken away again.
    pull = -2 * gate[:, None] * spread
    doubled = (probs * pull).sum()
    return (doubled - doubled.detach() / 2) * (weight / max(len(images), 1))


class DenseEnergyLoss(nn.Module):
    """Punish soft labels that differ between near pixels of like colour (module form).

    See :func:`dense_energy_loss`.

    Args:
        weight: Factor of the energy.
        sigma_rgb: Standard deviation of the kernel in colours, 0..255.
        sigma_xy: Standard deviation in pixels of the images.
        scale: Side of the grid of the energy over that of the images, at most 1.
        method: "auto", "lattice", "exact" or "cells".
        ignore_index: id of the pixels of a mask that have no label.

    Shape:
        - logits: ``(B, C, h, w)``
        - images: ``(B, 3, H, W)``
        - output: scalar

    Example:
        >>> import torch
        >>> loss = DenseEnergyLoss(weight=1.0)(torch.zeros(2, 4, 4, 4), torch.zeros(2, 3, 2, 2))
        >>> print(f"{loss:.2f}")  # one pixel: 4 classes of probability 1 / 4, and the pixel itself
        -0.25
    """

    def __init__(
        self,
        *,
        weight: float = 1e-7,
        sigma_rgb: float = 15.0,
        sigma_xy: float = 100.0,
        scale: float = 0.5,
        method: Method = "auto",
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        check_options(weight, sigma_rgb, sigma_xy, scale, method, ignore_index)
        self.weight, self.scale, self.method = weight, scale, method
        self.sigma_rgb, self.sigma_xy, self.ignore_index = sigma_rgb, sigma_xy, ignore_index

    def forward(
        self,
        logits: Tensor,
        images: Tensor,
        *,
        mask: Tensor | None = None,
        box: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of ``logits`` on ``images``."""
        return dense_energy_loss(
            logits,
            images,
            mask=mask,
            box=box,
            weight=self.weight,
            sigma_rgb=self.sigma_rgb,
            sigma_xy=self.sigma_xy,
            scale=self.scale,
            method=self.method,
            ignore_index=self.ignore_index,
        )

    def extra_repr(self) -> str:
        """Show the options."""
        names = ("weight", "sigma_rgb", "sigma_xy", "scale", "method", "ignore_index")
        return ", ".join(f"{n}={getattr(self, n)!r}" for n in names)
