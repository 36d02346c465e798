"""What a refiner is: images and maps in, better maps of the images' size out."""

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_choice,
    check_finite,
    check_floating,
    check_non_negative,
    check_number,
    check_same_device,
    check_shape,
)
from wsss_blocks.backbones.features import Features
from wsss_blocks.refine._present import (
    as_sets,
    check_refiner_inputs,
    put_back,
    resize_sets,
    take_present,
)

__all__ = ["NoRefiner", "Refiner", "add_background"]


class Refiner(Protocol):
    """Turn coarse maps into maps that follow the image."""

    def __call__(
        self,
        images: Tensor,
        maps: Tensor,
        *,
        labels: Tensor | None = None,
        box: Tensor | None = None,
        features: Features | None = None,
    ) -> Tensor:
        """Return refined maps.

        Args:
            images: RGB images in [0, 1], ``(B, 3, H, W)``. Resize them to choose the resolution
                of the result.
            maps: Scores >= 0 with background at channel 0, ``(B, K+1, h, w)``, or
                ``(B, G, K+1, h, w)``: G map sets over one image, which share its affinities.
            labels: Multi-hot image labels ``(B, K)``. Absent channels are left out of every
                softmax and come back as 0. None: all classes are present.
            box: The part of each image that is not padding, ``(B, 4)`` integers top, left,
                bottom, right (half-open, in pixels of ``images``).
            features: What an encoder returned, for refiners that read tokens or attention.

        Returns:
            Maps with the leading axes of ``maps`` and the size of ``images``.
        """
        ...


def add_background(
    cam: Tensor, *, mode: Literal["constant", "power"] = "constant", value: float | Tensor
) -> Tensor:
    r"""Put a background channel in front of a normalised class activation map.

    .. math::

        M_0 = v \quad\text{(constant)}, \qquad
        M_0 = \bigl(\max(0,\, 1 - \max_c M_c)\bigr)^{v} \quad\text{(power)}

    Reference:
        Power: Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision
        for Weakly Supervised Semantic Segmentation", section 3.1. https://arxiv.org/abs/1803.10464

    Args:
        cam: Normalised scores in [0, 1], ``(B, K, h, w)``.
        mode: A constant plane, or a power of what the strongest class leaves.
        value: The constant, or the exponent; >= 0, one number or one per image ``(B,)``.

    Returns:
        Maps ``(B, K+1, h, w)`` with background at channel 0.

    Raises:
        ValueError: If a shape does not fit, ``mode`` is unknown, or ``cam`` or ``value`` is
            negative or not finite.
        TypeError: If ``cam`` or a tensor ``value`` is not floating point.

    Example:
        >>> import torch
        >>> cam = torch.full((1, 2, 1, 1), 0.5)
        >>> add_background(cam, value=0.25).flatten().tolist()
        [0.25, 0.5, 0.5]
        >>> add_background(cam, mode="power", value=2.0)[:, 0].item()
        0.25
    """
    check_shape("cam", cam, "B K h w")
    check_floating("cam", cam)
    check_finite("cam", cam)
    check_non_negative("cam", cam)
    check_choice("mode", mode, ("constant", "power"))
    batch, _, height, width = cam.shape
    if isinstance(value, Tensor):
        check_shape("value", value, "B", B=batch)
        check_floating("value", value)
        check_same_device("value", value, "cam", cam)
        check_finite("value", value)
        check_non_negative("value", value)
        level = value.to(at_least_float32(cam).dtype).view(-1, 1, 1, 1)
    else:
        check_number("value", value)
        if not 0 <= value < float("inf"):
            raise ValueError(f"value must be finite and >= 0, got {value}.")
        level = at_least_float32(cam).new_full((1, 1, 1, 1), value)
    if mode == "constant":
        background = level.expand(batch, 1, height, width)
    else:
        rest = 1 - at_least_float32(cam).amax(1, keepdim=True)
        positive = rest > 0
        # The slope of 0 ** v is infinite for v < 1, so zeros never reach the power.
        power = torch.where(positive, rest, 1.0) ** level
        background = torch.where(positive, power, (level == 0).to(power.dtype))
    return torch.cat([background.to(cam.dtype), cam], 1)


class NoRefiner(nn.Module):
    """Resize the maps to the images and zero the absent channels: the baseline refiner.

    Shape:
        - images: ``(B, 3, H, W)``; maps: ``(B, K+1, h, w)`` or ``(B, G, K+1, h, w)``
        - output: ``(B, K+1, H, W)`` or ``(B, G, K+1, H, W)``

    Example:
        >>> import torch
        >>> refiner = NoRefiner()
        >>> refiner(torch.rand(2, 3, 32, 48), torch.rand(2, 5, 4, 6)).shape
        torch.Size([2, 5, 32, 48])
    """

    def forward(
        self,
        images: Tensor,
        maps: Tensor,
        *,
        labels: Tensor | None = None,
        box: Tensor | None = None,
        features: Features | None = None,
    ) -> Tensor:
        """Return the maps, bilinearly resized (``align_corners=False``).

        Args:
            images: RGB images ``(B, 3, H, W)``; only their size is used.
            maps: Scores >= 0, ``(B, K+1, h, w)`` or ``(B, G, K+1, h, w)``.
            labels: Multi-hot ``(B, K)``; None keeps all channels.
            box: Not used.
            features: Not used.

        Returns:
            Maps at the size of ``images``.

        Raises:
            ValueError: If a shape does not fit, a score is negative or not finite, or images are
                not in [0, 1].
            TypeError: If a dtype does not fit.
        """
        check_refiner_inputs(images, maps, labels, box)
        present = take_present(as_sets(maps), labels)
        resized = resize_sets(present.maps, (images.shape[-2], images.shape[-1]))
        return put_back(resized, present.channels, like=maps)
