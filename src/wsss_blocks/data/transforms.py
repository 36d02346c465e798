"""Geometric transforms of a sample that keep its box, its geometry and its masks in step.

Each is called as ``transform(sample, generator)``, takes every random number from the generator and
leaves the sample it was given as it was. A mask in the sample is resized with nearest neighbours
and padded with 255.
"""

from typing import cast

from torch import Generator

from wsss_blocks._validate import check_int, check_positive
from wsss_blocks.data._random import check_probability, check_range, check_sides, uniform, whole
from wsss_blocks.data._steps import Size, flip, rescale, resize
from wsss_blocks.data.sample import Sample, Transform

__all__ = [
    "AddView",
    "Compose",
    "RandomHorizontalFlip",
    "RandomResize",
    "RandomScale",
    "Resize",
    "Transform",
]


class Compose:
    """Apply transforms one after the other.

    Args:
        transforms: callables of ``(sample, generator)``.

    Example:
        >>> import torch
        >>> from wsss_blocks.data import RandomCrop, new_sample
        >>> train = Compose(RandomScale(0.5, 2.0), RandomHorizontalFlip(), RandomCrop(8))
        >>> sample = new_sample(torch.rand(3, 6, 10), id="a")
        >>> tuple(train(sample, torch.Generator().manual_seed(0))["image"].shape)
        (3, 8, 8)
    """

    def __init__(self, *transforms: Transform) -> None:
        self.transforms = transforms

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Apply all transforms, in order."""
        for transform in self.transforms:
            sample = transform(sample, generator)
        return sample


class Resize:
    """Resize to a fixed size, or so that the short or the long side has a given length.

    Args:
        size: height and width of the result.
        short: length of the short side; the aspect ratio is kept.
        long: length of the long side; the aspect ratio is kept.

    Raises:
        ValueError: not exactly one of the three is given, or it is not positive.

    Example:
        >>> import torch
        >>> from wsss_blocks.data import new_sample
        >>> sample = new_sample(torch.rand(3, 6, 9), id="a")
        >>> new = Resize(short=4)(sample, torch.Generator())
        >>> tuple(new["image"].shape)
        (3, 4, 6)
    """

    def __init__(
        self, size: Size | None = None, *, short: int | None = None, long: int | None = None
    ) -> None:
        if sum(x is not None for x in (size, short, long)) != 1:
            raise ValueError(
                f"give one of size, short and long: one must be set, got {size}, {short}, {long}."
            )
        self.size, self.short, self.long = size, short, long
        for side in (short or long or 0,) if size is None else check_sides(size):
            check_positive("size", side)

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Resize; nothing is random."""
        if self.size is not None:
            return resize(sample, self.size)
        height, width = sample["image"].shape[-2:]
        if self.short is not None:
            return rescale(sample, self.short / min(height, width))
        return rescale(sample, cast(int, self.long) / max(height, width))


class RandomScale:
    """Resize by a factor drawn uniformly from ``[low, high]``, the aspect ratio kept.

    Args:
        low: smallest factor.
        high: largest factor.

    Raises:
        ValueError: ``low`` is not positive or greater than ``high``.

    Example:
        >>> import torch
        >>> from wsss_blocks.data import new_sample
        >>> sample = new_sample(torch.rand(3, 6, 9), id="a")
        >>> new = RandomScale(2.0, 2.0)(sample, torch.Generator())
        >>> tuple(new["image"].shape), new["box"].tolist()
        ((3, 12, 18), [0, 0, 12, 18])
    """

    def __init__(self, low: float = 0.5, high: float = 2.0) -> None:
        check_range(low, high)
        self.low, self.high = low, high

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Draw a factor and resize."""
        return rescale(sample, uniform(self.low, self.high, generator))


class RandomResize:
    """Resize so that the long side has a length drawn uniformly from ``low, ..., high``.

    Args:
        low: smallest length in pixels.
        high: largest length in pixels.

    Raises:
        ValueError: ``low`` is not positive or greater than ``high``.

    Example:
        >>> import torch
        >>> from wsss_blocks.data import new_sample
        >>> sample = new_sample(torch.rand(3, 6, 9), id="a")
        >>> new = RandomResize(18, 18)(sample, torch.Generator())
        >>> tuple(new["image"].shape)
        (3, 12, 18)
    """

    def __init__(self, low: int, high: int) -> None:
        check_int("low", low)
        check_int("high", high)
        check_range(low, high)
        self.low, self.high = low, high

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Draw a length and resize."""
        long = whole(self.low, self.high, generator)
        return rescale(sample, long / max(sample["image"].shape[-2:]))


class RandomHorizontalFlip:
    """Mirror left and right with probability ``p``.

    Args:
        p: probability.

    Raises:
        ValueError: ``p`` is not in ``[0, 1]``.

    Example:
        >>> import torch
        >>> from wsss_blocks.data import new_sample
        >>> sample = new_sample(torch.rand(3, 6, 9), id="a")
        >>> new = RandomHorizontalFlip(1.0)(sample, torch.Generator())
        >>> new["geometry"].matrix[0].tolist()
        [-1.0, 0.0, 8.0]
    """

    def __init__(self, p: float = 0.5) -> None:
        check_probability(p)
        self.p = p

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Mirror or pass on."""
        if uniform(0, 1, generator) >= self.p:
            return sample
        return flip(sample)


class AddView:
    """Keep the result of another transform beside the sample, as ``sample["views"][name]``.

    The view gets ``image``, ``box`` and ``geometry``; put it before the transform of the main image
    so that both start from the same one.

    Args:
        name: name of the view.
        transform: how it is made.

    Example:
        >>> import torch
        >>> from wsss_blocks.data import new_sample
        >>> sample = new_sample(torch.rand(3, 6, 9), id="a")
        >>> new = AddView("second", Resize((4, 4)))(sample, torch.Generator())
        >>> tuple(new["views"]["second"]["image"].shape), tuple(new["image"].shape)
        ((3, 4, 4), (3, 6, 9))
    """

    def __init__(self, name: str, transform: Transform) -> None:
        self.name, self.transform = name, transform

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Make the view and add it."""
        made = self.transform(sample, generator)
        view = Sample(image=made["image"], box=made["box"], geometry=made["geometry"])
        new = sample.copy()
        new["views"] = {**sample.get("views", {}), self.name: view}
        return new
