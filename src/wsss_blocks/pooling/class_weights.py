"""How much of each grid cell each class of a pixel mask covers (DHR, arXiv 2404.00380)."""

import torch
from torch import Tensor, nn

from wsss_blocks._validate import (
    check_choice,
    check_int,
    check_integer,
    check_mask_values,
    check_same_device,
    check_shape,
    check_size,
    check_valid,
)
from wsss_blocks.pooling._class_fractions import Assign, class_fractions

__all__ = ["Assign", "PatchClassWeights", "patch_class_weights"]


def patch_class_weights(
    mask: Tensor,
    *,
    size: tuple[int, int],
    num_classes: int,
    assign: Assign = "area",
    valid: Tensor | None = None,
    ignore_index: int = 255,
) -> Tensor:
    r"""Weigh each cell of a grid by the share of its area that each class covers.

    .. math::

        W_c(p) = \frac{|\{\text{class } c\} \cap \text{cell } p|}{|\text{cell } p|}

    The grid covers the image exactly: sizes need not divide each other and the grid may be finer
    than the mask. Areas are counted in whole numbers, so ties are true ties.

    Time is O(B (H W + C H h w)). Peak memory is about 45 bytes per pixel of the mask, 60 where the
    columns do not divide evenly, and B C H w floats: 150 MiB for 16 masks of 448 x 448 with C = 21
    on a 28 x 28 grid.

    Reference:
        Jo et al., "DHR", ECCV 2024, eq. 2 (class-level average pooling labels each patch by the
        majority of its window): https://arxiv.org/abs/2404.00380

    Note:
        ``"area"`` is this library's default, not the paper's (inferred): under a majority vote a
        class smaller than half a patch vanishes. ``"majority"`` ranks the classes without the
        ignored pixels, where DHR's code lets 255 win the vote and then drops the patch.

    Args:
        mask: ``(B, H, W)`` integer class ids, ``ignore_index`` covers nothing.
        size: the grid ``(h, w)``.
        num_classes: number of classes C, counting background.
        assign: ``"area"`` for the fractions, ``"majority"`` for 1 at the class with the largest
            one (the lowest id of several), ``"nearest"`` for 1 at the class of the pixel at the
            cell's centre (the lower right one where four meet).
        valid: ``(B, h, w)`` bool, cells that count; the others weigh 0.
        ignore_index: id of pixels without a class.

    Returns:
        ``(B, C, h, w)`` float32 in [0, 1]; a cell without any class is all zero.

    Raises:
        ValueError: a shape, device, id or setting does not fit.
        TypeError: ``mask`` is not an integer tensor or ``valid`` is not bool.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[[0, 0, 1], [0, 255, 1]]])
        >>> weights = patch_class_weights(mask, size=(1, 2), num_classes=2)
        >>> weights[0, :, 0]
        tensor([[0.8333, 0.1667],
                [0.0000, 0.6667]])
    """
    check_settings(num_classes, assign)
    check_int("ignore_index", ignore_index)
    check_size("size", size)
    check_shape("mask", mask, "B H W")
    check_integer("mask", mask)
    check_mask_values("mask", mask, num_classes=num_classes, ignore_index=ignore_index)
    check_valid(valid, batch=mask.shape[0], size=size)
    if valid is not None:
        check_same_device("valid", valid, "mask", mask)
    weights = class_fractions(mask, size, num_classes, assign, ignore_index, torch.float32)
    return weights if valid is None else weights * valid.unsqueeze(1)


class PatchClassWeights(nn.Module):
    """Apply :func:`patch_class_weights`.

    Args:
        num_classes: number of classes C, counting background.
        assign: ``"area"``, ``"majority"`` or ``"nearest"``.
        ignore_index: id of pixels without a class.

    Shape:
        - mask: ``(B, H, W)`` integers; valid: ``(B, h, w)`` bool
        - output: ``(B, C, h, w)``

    Raises:
        ValueError: ``num_classes`` or ``assign`` does not fit.

    Example:
        >>> import torch
        >>> mask = torch.zeros(2, 448, 448, dtype=torch.int64)
        >>> PatchClassWeights(num_classes=21)(mask, size=(28, 28)).shape
        torch.Size([2, 21, 28, 28])
    """

    def __init__(
        self, *, num_classes: int, assign: Assign = "area", ignore_index: int = 255
    ) -> None:
        super().__init__()
        check_settings(num_classes, assign)
        self.num_classes, self.assign, self.ignore_index = num_classes, assign, ignore_index

    def forward(
        self, mask: Tensor, *, size: tuple[int, int], valid: Tensor | None = None
    ) -> Tensor:
        """Return the ``(B, C, h, w)`` weights."""
        return patch_class_weights(
            mask,
            size=size,
            num_classes=self.num_classes,
            assign=self.assign,
            valid=valid,
            ignore_index=self.ignore_index,
        )

    def extra_repr(self) -> str:
        """Show the settings in the repr."""
        return f"num_classes={self.num_classes}, assign={self.assign!r}"


def check_settings(num_classes: int, assign: str) -> None:
    """Raise unless the settings that both class poolings share are legal."""
    check_choice("assign", assign, ("area", "majority", "nearest"))
    check_int("num_classes", num_classes, least=1)
