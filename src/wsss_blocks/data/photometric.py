"""Transforms that change the colours of a sample's image and nothing else."""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as TF

from wsss_blocks._validate import check_number
from wsss_blocks.data._colour import blur, turn_hue
from wsss_blocks.data._random import check_probability, check_range, uniform
from wsss_blocks.data.sample import Sample

__all__ = ["ChannelPermutation", "ColorJitter", "GaussianBlur", "RandomGrayscale"]


class ColorJitter:
    """Change brightness, contrast, saturation and hue, in random order, with probability ``p``.

    The first three are multiplied by a factor from ``[max(0, 1 - x), 1 + x]``; the hue is turned by
    a share of the colour circle from ``[-hue, hue]``.

    Args:
        brightness: range of the brightness factor.
        contrast: range of the contrast factor.
        saturation: range of the saturation factor.
        hue: range of the turn, at most 0.5.
        p: probability.

    Raises:
        ValueError: a range is negative, ``hue`` is above 0.5, or ``p`` is not in ``[0, 1]``.

    Example:
        >>> from wsss_blocks.data import new_sample
        >>> sample = new_sample(torch.full((3, 1, 1), 0.5), id="a")
        >>> darker = ColorJitter(0.4, 0, 0, 0, p=1)(sample, torch.Generator().manual_seed(1))
        >>> 0.3 <= darker["image"].min().item() <= 0.7
        True
    """

    def __init__(
        self,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.2,
        hue: float = 0.1,
        *,
        p: float = 0.8,
    ) -> None:
        check_probability(p)
        for name, value in (
            ("brightness", brightness),
            ("contrast", contrast),
            ("saturation", saturation),
            ("hue", hue),
        ):
            check_number(name, value)
            if value == math.inf:
                raise ValueError(f"{name} must be finite, got {value}.")
        if not min(brightness, contrast, saturation, hue) >= 0 or not hue <= 0.5:
            raise ValueError(
                "brightness, contrast and saturation must be >= 0 and hue in [0, 0.5], got "
                f"{brightness}, {contrast}, {saturation}, {hue}."
            )
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation
        self.hue, self.p = hue, p

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Draw the changes and apply them, or pass on."""
        if uniform(0, 1, generator) >= self.p:
            return sample
        steps: list[tuple[Callable[[Tensor, float], Tensor], float, float]] = [
            (TF.adjust_brightness, max(0, 1 - self.brightness), 1 + self.brightness),
            (TF.adjust_contrast, max(0, 1 - self.contrast), 1 + self.contrast),
            (TF.adjust_saturation, max(0, 1 - self.saturation), 1 + self.saturation),
            (turn_hue, -self.hue, self.hue),
        ]
        image = sample["image"]
        for i in torch.randperm(4, generator=generator).tolist():
            adjust, low, high = steps[i]
            if low < high:
                image = adjust(image, uniform(low, high, generator))
        return _with_image(sample, image)


class RandomGrayscale:
    """Replace the image by its luminance, in all three channels, with probability ``p``.

    Args:
        p: probability.

    Raises:
        ValueError: ``p`` is not in ``[0, 1]``.

    Example:
        >>> import torch
        >>> from wsss_blocks.data import new_sample
        >>> sample = new_sample(torch.rand(3, 6, 9), id="a")
        >>> image = RandomGrayscale(1.0)(sample, torch.Generator())["image"]
        >>> torch.equal(image[0], image[2])
        True
    """

    def __init__(self, p: float = 0.2) -> None:
        check_probability(p)
        self.p = p

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Take the colour away or pass on."""
        if uniform(0, 1, generator) >= self.p:
            return sample
        return _with_image(sample, TF.rgb_to_grayscale(sample["image"], num_output_channels=3))


class GaussianBlur:
    """Blur with a standard deviation drawn uniformly, with probability ``p``.

    Args:
        low: smallest standard deviation in pixels.
        high: largest standard deviation in pixels.
        p: probability.

    Raises:
        ValueError: not ``0 < low <= high``, or ``p`` is not in ``[0, 1]``.

    Example:
        >>> import torch
        >>> from wsss_blocks.data import new_sample
        >>> sample = new_sample(torch.rand(3, 6, 9), id="a")
        >>> image = GaussianBlur(2.0, 2.0)(sample, torch.Generator())["image"]
        >>> bool(image.std() < sample["image"].std())
        True
    """

    def __init__(self, low: float = 0.1, high: float = 2.0, *, p: float = 1.0) -> None:
        check_probability(p)
        check_range(low, high)
        self.low, self.high, self.p = low, high, p

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Draw a width and blur, or pass on."""
        if uniform(0, 1, generator) >= self.p:
            return sample
        sigma = uniform(self.low, self.high, generator)
        # Three standard deviations, and no more than the reflected border of a small image allows.
        reach = min(math.ceil(3 * sigma), *(side - 1 for side in sample["image"].shape[-2:]))
        return _with_image(sample, blur(sample["image"], sigma, reach))


class ChannelPermutation:
    """Exchange the colour channels at random with probability ``p``.

    Args:
        p: probability.

    Raises:
        ValueError: ``p`` is not in ``[0, 1]``.

    Example:
        >>> import torch
        >>> from wsss_blocks.data import new_sample
        >>> sample = new_sample(torch.rand(3, 6, 9), id="a")
        >>> image = ChannelPermutation(1.0)(sample, torch.Generator())["image"]
        >>> torch.equal(image.sort(0)[0], sample["image"].sort(0)[0])
        True
    """

    def __init__(self, p: float = 0.5) -> None:
        check_probability(p)
        self.p = p

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Draw an order of channels, or pass on."""
        if uniform(0, 1, generator) >= self.p:
            return sample
        return _with_image(sample, sample["image"][torch.randperm(3, generator=generator)])


def _with_image(sample: Sample, image: object) -> Sample:
    new = sample.copy()
    new["image"] = cast(Tensor, image)
    return new
