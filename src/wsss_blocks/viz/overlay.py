"""Masks and heat maps laid over images."""

from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_fraction,
    check_same_device,
    check_shape,
)
from wsss_blocks.viz.palette import colorize, heat_colors

__all__ = ["overlay_heatmap", "overlay_mask"]


def overlay_mask(
    image: Tensor, mask: Tensor, *, alpha: float = 0.6, palette: Tensor | None = None
) -> Tensor:
    """Tint each pixel of an image with the colour of its class; background stays as it is.

    Args:
        image: ``(3, H, W)`` RGB in [0, 1].
        mask: ``(H, W)`` class ids; 0 is background, ignored pixels get their palette colour.
        alpha: strength of the tint, 0 to 1.
        palette: ``(n, 3)`` uint8, default ``voc_palette()``.

    Returns:
        ``(3, H, W)`` float32 in [0, 1].

    Raises:
        TypeError: ``image`` is not floating point or ``mask`` not integer.
        ValueError: a shape or device is wrong, ``image`` is not finite, ``alpha`` is outside
            [0, 1], or an id has no colour.

    Example:
        >>> import torch
        >>> overlay_mask(torch.rand(3, 4, 6), torch.ones(4, 6, dtype=torch.uint8)).shape
        torch.Size([3, 4, 6])
    """
    _check_image(image, alpha)
    check_shape("mask", mask, "H W", H=image.shape[1], W=image.shape[2])
    check_same_device("mask", mask, "image", image)
    return _blend(image, colorize(mask, palette=palette), alpha * (mask != 0))


def overlay_heatmap(image: Tensor, heat: Tensor, *, alpha: float = 0.6) -> Tensor:
    """Lay a heat map over the grey version of an image, so that only the heat has colour.

    Args:
        image: ``(3, H, W)`` RGB in [0, 1].
        heat: ``(H, W)`` scores in [0, 1]; others are clamped.
        alpha: strength of the heat map, 0 to 1.

    Returns:
        ``(3, H, W)`` float32 in [0, 1].

    Raises:
        TypeError: an argument is not floating point.
        ValueError: a shape or device is wrong, ``image`` is not finite, or ``alpha`` is outside
            [0, 1].

    Example:
        >>> import torch
        >>> overlay_heatmap(torch.rand(3, 4, 6), torch.rand(4, 6)).shape
        torch.Size([3, 4, 6])
    """
    _check_image(image, alpha)
    check_shape("heat", heat, "H W", H=image.shape[1], W=image.shape[2])
    check_floating("heat", heat)
    check_same_device("heat", heat, "image", image)
    luma = at_least_float32(image) * image.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    return _blend(luma.sum(0).expand(3, -1, -1), heat_colors(heat), alpha)


def _check_image(image: Tensor, alpha: float) -> None:
    check_shape("image", image, "3 H W")
    check_floating("image", image)
    check_finite("image", image)
    check_fraction("alpha", alpha)


def _blend(image: Tensor, colors: Tensor, alpha: float | Tensor) -> Tensor:
    base = at_least_float32(image).float().clamp(0, 1)
    return base + alpha * (colors - base)
