"""RandAugment of timm as a transform of samples."""

import random
from typing import Any

import numpy as np
import torch
from torch import Generator

from wsss_blocks._validate import check_fraction
from wsss_blocks.data._pil_change import with_pil
from wsss_blocks.data.sample import Sample

__all__ = ["RandAugment"]


class RandAugment:
    """Apply random changes of colour and shape to the image, as timm's RandAugment does.

    For a view that is only classified: shears, shifts and rotations are in neither ``geometry`` nor
    ``box``, and a mask in the sample would not follow. Numbers come from the generator of the
    sample: those of Python and numpy, which timm draws from, are put back as they were.

    Reference:
        Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search
        Space", https://arxiv.org/abs/1909.13719. The default is DeiT's and CTI's (released code).

    Args:
        config: in timm's notation: magnitude 9 with standard deviation 0.5, rising severity.
        fill: grey value, in [0, 1], of what comes in from outside.

    Raises:
        ImportError: pillow is not installed.
        ValueError: timm does not know ``config``, ``fill`` is outside [0, 1], or the sample holds a
            mask.

    Example:
        >>> from wsss_blocks.data import new_sample
        >>> sample = new_sample(torch.rand(3, 32, 32), id="a")
        >>> changed = RandAugment()(sample, torch.Generator().manual_seed(1))
        >>> tuple(changed["image"].shape), changed["image"].dtype
        ((3, 32, 32), torch.float32)
    """

    def __init__(self, config: str = "rand-m9-mstd0.5-inc1", *, fill: float = 0.45) -> None:
        from timm.data.auto_augment import rand_augment_transform  # data/ works without timm

        check_fraction("fill", fill)
        grey = (round(255 * fill),) * 3
        try:
            self.config, self.augment = config, rand_augment_transform(config, {"img_mean": grey})
        except (AssertionError, AttributeError, LookupError, ValueError) as error:
            raise ValueError(
                f"config must be in timm's notation, as 'rand-m9-mstd0.5-inc1', got {config!r}."
            ) from error

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Change the image; sizes stay."""
        seed = int(torch.randint(2**31, (), generator=generator))

        def change(image: Any) -> Any:
            python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
            try:
                random.seed(seed)
                np.random.seed(seed)  # noqa: NPY002
                return self.augment(image)
            finally:
                random.setstate(python)
                np.random.set_state(numpy)  # noqa: NPY002

        return with_pil(sample, change, what="RandAugment")
