"""The training augmentation of the single-stage systems (ToCo, DALNet)."""

from typing import Literal

from wsss_blocks._validate import check_choice, check_int
from wsss_blocks.data._random import check_pair
from wsss_blocks.data.crops import RandomCrop
from wsss_blocks.data.photometric import (
    ChannelPermutation,
    ColorJitter,
    GaussianBlur,
    RandomGrayscale,
)
from wsss_blocks.data.sample import Transform
from wsss_blocks.data.transforms import (
    Compose,
    RandomHorizontalFlip,
    RandomScale,
    Resize,
)

__all__ = ["training_transform"]


def training_transform(
    size: int,
    *,
    scale: tuple[float, float] = (0.5, 2.0),
    flip: bool = True,
    colour: Literal["photometric", "permute", "none"] = "photometric",
    square: bool = False,
) -> Compose:
    """Compose scaling, flipping, cropping and colour changes, in the order of ToCo.

    Random scale, flip, crop of ``size`` with padding; then colour jitter (brightness and contrast
    0.4, saturation 0.2, hue 0.1; probability 0.8), grey (0.2) and Gaussian blur (0.1 to 2 pixels).
    ``colour="permute"`` exchanges colour channels instead, for images whose hue means nothing.

    Reference:
        Ru et al., "Token Contrast for Weakly-Supervised Semantic Segmentation", CVPR 2023,
        https://arxiv.org/abs/2303.01267; the constants are those of the released code.

    Args:
        size: side of the square crop.
        scale: range of the random factor; ``(1, 1)`` leaves the scale alone.
        flip: mirror half of the images.
        colour: which colour changes.
        square: resize to ``size`` by ``size`` first, whatever the shape: the whole image is seen.

    Returns:
        A transform ``(sample, generator) -> sample``.

    Raises:
        ValueError: unknown ``colour``, or sizes and scales that are not positive.

    Example:
        >>> import torch
        >>> from wsss_blocks.data import new_sample
        >>> transform = training_transform(64)
        >>> sample = new_sample(torch.rand(3, 50, 80), id="a", labels=torch.ones(2))
        >>> tuple(transform(sample, torch.Generator().manual_seed(0))["image"].shape)
        (3, 64, 64)
    """
    check_choice("colour", colour, ("photometric", "permute", "none"))
    check_int("size", size, least=1)
    check_pair("scale", scale)
    steps: list[Transform] = [Resize((size, size))] if square else []
    if scale != (1.0, 1.0):
        steps.append(RandomScale(*scale))
    if flip:
        steps.append(RandomHorizontalFlip())
    steps.append(RandomCrop(size))
    if colour == "permute":
        steps.append(ChannelPermutation(1.0))
    elif colour == "photometric":
        steps += [ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8), RandomGrayscale(0.2), GaussianBlur()]
    return Compose(*steps)
