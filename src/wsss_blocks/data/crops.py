"""Transforms that cut a window out of a sample and pad where the image is too small."""

import math

import torch
from torch import Generator

from wsss_blocks._validate import check_fraction, check_positive
from wsss_blocks.data._random import check_pair, check_sides, uniform, whole
from wsss_blocks.data._steps import Size, crop, resize
from wsss_blocks.data.sample import Sample

__all__ = ["CenterCrop", "RandomCrop", "RandomResizedCrop"]


class RandomCrop:
    """Cut a random window; an image that is too small is padded and placed at random.

    Args:
        size: side of a square window, or its height and width.
        fill: value of the padding of the image, in ``[0, 1]``.

    Raises:
        ValueError: ``size`` is not positive.

    Example:
        >>> from wsss_blocks.data import new_sample
        >>> sample = new_sample(torch.ones(3, 4, 9), id="a")
        >>> crop = RandomCrop(6)(sample, torch.Generator().manual_seed(0))
        >>> tuple(crop["image"].shape), crop["box"].tolist()
        ((3, 6, 6), [0, 0, 4, 6])
    """

    def __init__(self, size: int | Size, *, fill: float = 0.0) -> None:
        check_fraction("fill", fill)
        self.size, self.fill = _pair(size), fill

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Draw a corner and cut."""
        top, left = (
            whole(min(0, old - new), max(0, old - new), generator)
            for old, new in zip(sample["image"].shape[-2:], self.size, strict=True)
        )
        return crop(sample, top, left, self.size, fill=self.fill)


class CenterCrop:
    """Cut the window in the middle; an image that is too small is padded on all sides.

    Args:
        size: side of a square window, or its height and width.
        fill: value of the padding of the image, in ``[0, 1]``.

    Raises:
        ValueError: ``size`` is not positive.

    Example:
        >>> import torch
        >>> from wsss_blocks.data import new_sample
        >>> sample = new_sample(torch.rand(3, 6, 9), id="a")
        >>> new = CenterCrop(8)(sample, torch.Generator())
        >>> tuple(new["image"].shape), new["box"].tolist()
        ((3, 8, 8), [1, 0, 7, 8])
    """

    def __init__(self, size: int | Size, *, fill: float = 0.0) -> None:
        check_fraction("fill", fill)
        self.size, self.fill = _pair(size), fill

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Cut; nothing is random."""
        height, width = sample["image"].shape[-2:]
        top, left = (height - self.size[0]) // 2, (width - self.size[1]) // 2
        return crop(sample, top, left, self.size, fill=self.fill)


class RandomResizedCrop:
    """Cut a window of random area and aspect ratio and resize it.

    Ten windows are tried; when none fits, the largest central window of an allowed ratio is taken,
    as torchvision does.

    Args:
        size: side of the square result, or its height and width.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width over height.

    Raises:
        ValueError: ``size`` is not positive or a range is not a positive interval.

    Example:
        >>> import torch
        >>> from wsss_blocks.data import new_sample
        >>> sample = new_sample(torch.rand(3, 6, 9), id="a")
        >>> new = RandomResizedCrop(4, scale=(0.3, 1.0))(sample, torch.Generator())
        >>> tuple(new["image"].shape)
        (3, 4, 4)
    """

    def __init__(
        self,
        size: int | Size,
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        self.size, self.scale, self.ratio = _pair(size), scale, ratio
        check_pair("scale", scale)
        check_pair("ratio", ratio)

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Draw a window, cut and resize."""
        top, left, window = self._window(sample["image"].shape[-2:], generator)
        return resize(crop(sample, top, left, window), self.size)

    def _window(self, size: torch.Size, generator: Generator) -> tuple[int, int, Size]:
        height, width = size
        log_low, log_high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = height * width * uniform(*self.scale, generator)
            ratio = math.exp(uniform(log_low, log_high, generator))
            h, w = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
            if 0 < h <= height and 0 < w <= width:
                return whole(0, height - h, generator), whole(0, width - w, generator), (h, w)
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        h, w = min(height, round(width / ratio)), min(width, round(height * ratio))
        return (height - h) // 2, (width - w) // 2, (max(h, 1), max(w, 1))


def _pair(size: int | Size) -> Size:
    pair = check_sides((size, size) if isinstance(size, int) else size)
    for side in pair:
        check_positive("size", side)
    return pair
