r"""Dense CRF: mean field with Gaussian kernels over all pairs of pixels.

Paper: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NeurIPS 2011, https://arxiv.org/abs/1210.5644
"""

import logging
from typing import Literal

import torch
from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_choice,
    check_int,
    check_number,
    check_sequence,
)
from wsss_blocks.cam.box import check_inside
from wsss_blocks.refine import _present
from wsss_blocks.refine._crf_inference import infer

__all__ = ["METHODS", "Method", "check_options", "dense_crf", "refine_maps"]

Method = Literal["auto", "lattice", "cells", "exact"]
METHODS = ("auto", "lattice", "cells", "exact")
_FEW_PIXELS = 64 * 64
_LOGGER = logging.getLogger("wsss_blocks")


def dense_crf(
    images: Tensor,
    probs: Tensor,
    *,
    labels: Tensor | None = None,
    box: Tensor | None = None,
    iterations: int = 10,
    gaussian: tuple[float, float] = (1.0, 3.0),
    bilateral: tuple[float, float, float] = (67.0, 3.0, 4.0),
    method: Method = "auto",
) -> Tensor:
    r"""Make probabilities follow the edges of the image by mean field in a dense CRF.

    With :math:`U = -\log \operatorname{clip}(p, 10^{-5}, 1)`, pixel positions :math:`x` and
    colours :math:`c` in 0..255, and starting from the softmax of :math:`-U`:

    .. math::

        Q \leftarrow \operatorname{softmax}\bigl(-U + w_g \tilde K_g Q + w_b \tilde K_b Q\bigr),
        \qquad \tilde K = D^{-1/2} K D^{-1/2}, \quad D_{ii} = \sum_j K_{ij}

        (K_g)_{ij} = e^{-|x_i - x_j|^2 / 2 s_g^2}, \qquad
        (K_b)_{ij} = e^{-|x_i - x_j|^2 / 2 s_b^2 - |c_i - c_j|^2 / 2 s_c^2}

    The methods, and what they cost for N pixels and V = G · C maps:

    - "lattice": the permutohedral lattice of pydensecrf, equal to it up to rounding. O(N V) per
      iteration after one sort per image; images one after the other, since each has a lattice of
      its own. The lattice of the positions depends on the size only: the last 4 are kept, 15 MiB
      each. Peak memory 0.9 to 1.5 kB per pixel: 160 to 270 MiB for 375 x 500 and V = 3. Its size
      depends on the image: ``torch.compile`` breaks the graph here, and a GPU waits.
    - "cells": all pixels against the means of the M cubes, one standard deviation wide, that the
      pixels fall into (the appearance kernel; that of the positions is exact). O(N M V) time, O(N)
      memory. For GPUs, where a triton kernel does it; slow on a CPU.
    - "exact": all pairs of pixels, O(N^2 V) time and O(N V) memory. The reference: seconds for
      100 x 100 pixels on a CPU.
    - "auto": "lattice" on a CPU; elsewhere "exact" up to 64 x 64 pixels and "cells" above. Which
      one is logged (logger ``wsss_blocks``, level debug).

    Reference:
        Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
        Potentials", section 3 and algorithm 1, https://arxiv.org/abs/1210.5644. Lattice: Adams et
        al., Eurographics 2010. Normalisation, the pixel's own message, and constants are those of
        the authors' code, which pydensecrf wraps. The defaults are DHR's,
        https://arxiv.org/abs/2404.00380.

    Note:
        Colours are rounded to whole numbers, as the uint8 images of pydensecrf are. The input is
        not normalised: where it does not sum to 1, as in DHR, its softmax of logarithms does.

    Args:
        images: RGB images in [0, 1], ``(B, 3, H, W)``.
        probs: Probabilities with background at channel 0, ``(B, C, h, w)``, or ``(B, G, C, h, w)``:
            G sets that share the kernels. Resized bilinearly to the images.
        labels: Multi-hot image labels ``(B, C - 1)``. Absent channels take no part and come back
            as 0. None: all are present.
        box: The part of each image that is not padding, ``(B, 4)`` integers top, left, bottom,
            right. Pixels outside take no part: they come back as they were, but normalised.
        iterations: Number of mean-field updates.
        gaussian: Position kernel: standard deviation in pixels, weight.
        bilateral: Appearance kernel: standard deviation in pixels, in colours, weight.
        method: "auto", "lattice", "cells" or "exact".

    Returns:
        Probabilities ``(B, C, H, W)`` or ``(B, G, C, H, W)``. Differentiable with respect to
        ``probs`` with every method, with the exact gradient of what the method computes; images
        get no gradient.

    Raises:
        ValueError: If a shape does not fit, images are not in [0, 1], a probability is negative or
            not finite, or an option is out of range.
        TypeError: If a dtype does not fit.

    Example:
        >>> import torch
        >>> images = torch.zeros(1, 3, 16, 16)
        >>> images[..., 8:] = 1
        >>> probs = torch.full((1, 2, 4, 4), 0.5)
        >>> probs[0, :, 0, 0] = torch.tensor([0.9, 0.1])  # a corner of the dark half
        >>> probs[0, :, 0, 3] = torch.tensor([0.1, 0.9])  # and one of the bright half
        >>> dense_crf(images, probs)[0, 1, 12].round().int().tolist()
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    """
    check_options(iterations, gaussian, bilateral, method)
    options = iterations, gaussian, bilateral, method
    return refine_maps("probs", images, probs, labels, box, *options)


def check_options(
    iterations: int,
    gaussian: tuple[float, float],
    bilateral: tuple[float, float, float],
    method: str,
) -> None:
    """Raise on an option out of range."""
    check_int("iterations", iterations, least=0)
    for name, values, deviations in (("gaussian", gaussian, 1), ("bilateral", bilateral, 2)):
        check_sequence(name, values)
        if len(values) != deviations + 1:
            wanted = ("a deviation", "two deviations")[deviations - 1]
            raise ValueError(f"{name} must be {wanted} and a weight, got {values!r}.")
        for deviation in values[:-1]:
            check_number(f"a deviation of {name}", deviation)
            if not 1e-6 <= deviation < float("inf"):  # less than that overflows
                raise ValueError(
                    f"a deviation of {name} must be finite and at least 1e-6, got {deviation}."
                )
        check_number(f"the weight of {name}", values[-1])
        if not 0 <= values[-1] < float("inf"):
            raise ValueError(f"the weight of {name} must be finite and >= 0, got {values[-1]}.")
    check_choice("method", method, METHODS)


def refine_maps(
    name: str,
    images: Tensor,
    maps: Tensor,
    labels: Tensor | None,
    box: Tensor | None,
    iterations: int,
    gaussian: tuple[float, float],
    bilateral: tuple[float, float, float],
    method: str,
) -> Tensor:
    """Check the tensors, ``maps`` by its name in the caller, and refine."""
    _present.check_refiner_inputs(images, maps, labels, box, name=name)
    size = (images.shape[-2], images.shape[-1])
    if box is not None:
        check_inside(box, image_size=size)
    if method == "auto":
        few = size[0] * size[1] <= _FEW_PIXELS
        method = "lattice" if images.device.type == "cpu" else "exact" if few else "cells"
        if not torch.compiler.is_compiling():
            _LOGGER.debug("dense_crf: method %r for %d x %d pixels", method, *size)
    dtype = torch.promote_types(at_least_float32(images).dtype, at_least_float32(maps).dtype)
    present = _present.take_present(_present.as_sets(maps), labels, name=name)
    scores = _present.resize_sets(present.maps.to(dtype), size).clamp(1e-5, 1).log()
    scores = scores.masked_fill(~present.mask[:, None, :, None, None], -torch.inf)
    colours = (images.detach().to(dtype) * 255).round().clamp(0, 255)
    refined = infer(colours, scores, box, iterations, gaussian, bilateral, method)
    return _present.put_back(refined, present.channels, like=maps)
