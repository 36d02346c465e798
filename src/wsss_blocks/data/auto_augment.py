"""AutoAugment of torchvision as a transform of samples."""

from typing import Any

import torch
from torch import Generator
from torchvision.transforms import v2

from wsss_blocks._validate import check_fraction
from wsss_blocks.data._pil_change import with_pil
from wsss_blocks.data.sample import Sample

__all__ = ["AutoAugment"]


class AutoAugment:
    """Apply one of the 25 pairs of changes that were learnt on ImageNet, drawn at random.

    For a view that is only classified or matched with text: shears, shifts and rotations are in
    neither ``geometry`` nor ``box``, and a mask in the sample would not follow. Numbers come from
    the generator of the sample: torch's global one, which torchvision draws from, is put back as it
    was. LoDA crops first (:class:`RandomResizedCrop`), then augments.

    Reference:
        Cubuk et al., "AutoAugment: Learning Augmentation Policies from Data",
        https://arxiv.org/abs/1805.09501. LoDA (Yi et al., "A Simple Framework for Text-Supervised
        Semantic Segmentation", CVPR 2023, supplement) uses its ImageNet policy in pre-training.

    Args:
        fill: grey value, in [0, 1], of what comes in from outside.

    Raises:
        ImportError: pillow is not installed.
        ValueError: ``fill`` is outside [0, 1], or the sample holds a mask.

    Example:
        >>> from wsss_blocks.data import new_sample
        >>> sample = new_sample(torch.rand(3, 32, 32), id="a")
        >>> changed = AutoAugment()(sample, torch.Generator().manual_seed(1))
        >>> tuple(changed["image"].shape), changed["image"].dtype
        ((3, 32, 32), torch.float32)
    """

    def __init__(self, *, fill: float = 0.5) -> None:
        check_fraction("fill", fill)
        self.augment = v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET, fill=[round(255 * fill)] * 3)

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Change the image; sizes stay."""
        seed = int(torch.randint(2**31, (), generator=generator))

        def change(image: Any) -> Any:
            state = torch.get_rng_state()
            try:
                torch.default_generator.manual_seed(seed)  # not that of a GPU
                return self.augment(image)
            finally:
                torch.set_rng_state(state)

        return with_pil(sample, change, what="AutoAugment")
