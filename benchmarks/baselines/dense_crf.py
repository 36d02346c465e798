"""Dense CRF as the field runs it: pydensecrf, one image after the other."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

__all__ = ["pydensecrf"]


def pydensecrf() -> Callable[..., Tensor] | None:
    """Return the call that :func:`wsss_blocks.refine.dense_crf` replaces, None if not installed.

    ``pip install pydensecrf2`` builds it where there is a compiler and Python is older than 3.13.
    """
    try:
        from pydensecrf.densecrf import DenseCRF2D
    except ImportError:
        return None

    def call(
        images: Tensor,
        probs: Tensor,
        *,
        iterations: int = 10,
        gaussian: tuple[float, float] = (1.0, 3.0),
        bilateral: tuple[float, float, float] = (67.0, 3.0, 4.0),
    ) -> Tensor:
        found = []
        for image, maps in zip(images, probs, strict=True):
            classes, height, width = maps.shape
            crf = DenseCRF2D(width, height, classes)
            energy = -np.log(np.clip(maps.flatten(1).numpy(), 1e-5, 1))
            crf.setUnaryEnergy(np.ascontiguousarray(energy, dtype=np.float32))
            crf.addPairwiseGaussian(sxy=gaussian[0], compat=gaussian[1])
            pixels = image.mul(255).round().byte().permute(1, 2, 0).numpy()
            crf.addPairwiseBilateral(
                sxy=bilateral[0],
                srgb=bilateral[1],
                rgbim=np.ascontiguousarray(pixels),
                compat=bilateral[2],
            )
            found.append(torch.from_numpy(np.array(crf.inference(iterations))).view_as(maps))
        return torch.stack(found)

    return call
