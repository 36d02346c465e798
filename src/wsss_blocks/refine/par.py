"""Pixel-adaptive refinement: average each map over its neighbours of similar colour.

Paper: Ru et al., "Learning Affinity from Attention", CVPR 2022, https://arxiv.org/abs/2203.02664
"""

from typing import Literal, Self

import torch
from torch import Tensor, nn

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import check_finite, check_int
from wsss_blocks.backbones.features import Features
from wsss_blocks.refine import _present
from wsss_blocks.refine._neighbours import check_options, neighbour_weights, weighted_sum

__all__ = ["PixelAdaptiveRefine", "pixel_adaptive_refine"]


def pixel_adaptive_refine(
    images: Tensor,
    maps: Tensor,
    *,
    dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24),
    iterations: int = 10,
    colour_scale: float = 0.3,
    position_weight: float = 0.01,
    kernel: Literal["par", "pamr"] = "par",
) -> Tensor:
    r"""Average maps over rings of neighbours, weighted by likeness of colour and by distance.

    Each pixel :math:`i` has eight neighbours :math:`j` per dilation (border pixels repeated):

    .. math::

        m_i \leftarrow \sum_j w_{ij} m_j, \qquad
        w_{ij} = \operatorname{softmax}_j k_{ij} + \lambda \operatorname{softmax}_j p_{ij}

        k_{ij} = -\frac13 \sum_{ch} \Bigl(\frac{|I_i - I_j|}{s(\sigma_{i,ch} + \epsilon)}\Bigr)^2,
        \qquad p_{ij} = -\Bigl(\frac{d_{ij}}{s(\operatorname{std}(d) + \epsilon)}\Bigr)^2

    with :math:`\sigma_{i,ch}` the unbiased standard deviation over the neighbours, :math:`d_{ij}`
    the distance in pixels, :math:`\epsilon = 10^{-8}`. ``kernel="pamr"`` is the older form:
    :math:`|I_i - I_j|` to the first power, and the pixel counts once per ring in :math:`\sigma`.

    With R rings, time is O(B R H W (1 + C · iterations)) and peak memory about 8 R + 6 C + 12
    float32 planes ``(B, H, W)``, of which 8 R are the weights: 15 MiB for one 224 x 224 image,
    C = 3 and the default rings, 40 MiB for C = 21. With a gradient, all that the steps made is
    kept.

    Reference:
        PAR: Ru et al., "Learning Affinity from Attention", CVPR 2022,
        https://arxiv.org/abs/2203.02664. PAMR: Araslanov and Roth, "Single-Stage Semantic
        Segmentation from Image Labels", CVPR 2020, https://arxiv.org/abs/2005.08104. Constants
        and normalisation are those of the authors' code.

    Note:
        The weights of a pixel sum to ``1 + position_weight``, as in the authors' code: a constant
        map grows by 1.01 per iteration (argmax is unaffected). Maps of another size than the
        images are first resized bilinearly with ``align_corners=True``, also as there. ToCo runs
        this on half-size images, after a softmax: see :class:`PixelAdaptiveRefine`.

    Args:
        images: RGB images in [0, 1], ``(B, 3, H, W)``.
        maps: Maps ``(B, C, h, w)``, or ``(B, G, C, h, w)``: G sets that share the weights.
        dilations: Radius of each ring, in pixels.
        iterations: Number of averaging steps.
        colour_scale: Width :math:`s` of both kernels, in standard deviations.
        position_weight: Weight :math:`\lambda` of the distance term.
        kernel: Squared ("par") or absolute ("pamr") colour differences.

    Returns:
        Maps ``(B, C, H, W)`` or ``(B, G, C, H, W)``; differentiable in both arguments.

    Raises:
        ValueError: If a shape does not fit, an option is out of range or a value is not finite.
        TypeError: If images or maps are not floating point.

    Example:
        >>> import torch
        >>> maps = pixel_adaptive_refine(torch.rand(1, 3, 32, 32), torch.ones(1, 2, 8, 8))
        >>> maps.shape, round(maps.mean().item(), 4)  # 1.01 ** 10
        (torch.Size([1, 2, 32, 32]), 1.1046)
    """
    _present.check_images_and_maps(images, maps)
    check_finite("images", images)
    check_finite("maps", maps)
    check_options(dilations, iterations, colour_scale, position_weight, kernel)
    size = (images.shape[-2], images.shape[-1])
    dtype = torch.promote_types(at_least_float32(images).dtype, at_least_float32(maps).dtype)
    sets = _present.as_sets(maps).to(dtype)
    sets = _present.resize_sets(sets, size, align_corners=True)
    weights = neighbour_weights(images.to(dtype), dilations, colour_scale, position_weight, kernel)
    refined = sets.flatten(1, 2)
    for _ in range(iterations):
        refined = weighted_sum(refined, weights, dilations)
    return _present.put_back(refined.view_as(sets), None, like=maps)


class PixelAdaptiveRefine(nn.Module):
    """Refine maps with :func:`pixel_adaptive_refine`, over the present classes only.

    The defaults are ToCo's recipe: images and maps are resized to half the image size, scores
    become probabilities by a softmax over background and the present classes, the result is
    refined and resized to the images (all bilinear, ``align_corners=False``).

    Time and memory are those of the function at the working size, for G times as many maps as
    channels are present, and the result: 52 MiB for one 448 x 448 image with G = 2
    and two of 20 classes. The weights are made once, however many sets there are.

    Args:
        dilations: Radius of each ring, in pixels of the working resolution.
        iterations: Number of averaging steps.
        colour_scale: Width of the kernels, in standard deviations.
        position_weight: Weight of the distance term.
        kernel: "par" or "pamr".
        downsample: Work at the image size divided by this.
        softmax: Turn scores into probabilities first. False refines the scores themselves.

    Shape:
        - images: ``(B, 3, H, W)``; maps: ``(B, K+1, h, w)`` or ``(B, G, K+1, h, w)``
        - output: ``(B, K+1, H, W)`` or ``(B, G, K+1, H, W)``

    Example:
        >>> import torch
        >>> refiner = PixelAdaptiveRefine(iterations=2)
        >>> labels = torch.tensor([[1.0, 0.0]])
        >>> refiner(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 4, 4), labels=labels).shape
        torch.Size([1, 3, 32, 32])
    """

    def __init__(
        self,
        *,
        dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24),
        iterations: int = 10,
        colour_scale: float = 0.3,
        position_weight: float = 0.01,
        kernel: Literal["par", "pamr"] = "par",
        downsample: int = 2,
        softmax: bool = True,
    ) -> None:
        super().__init__()
        check_options(dilations, iterations, colour_scale, position_weight, kernel)
        check_int("downsample", downsample, least=1)
        self.dilations, self.iterations = tuple(dilations), iterations
        self.colour_scale, self.position_weight = colour_scale, position_weight
        self.kernel: Literal["par", "pamr"] = kernel
        self.downsample, self.softmax = downsample, softmax

    @classmethod
    def pamr(cls) -> Self:
        """Return PAMR as 1-stage-wseg runs it: absolute differences, no distance term, no softmax.

        There it works at the size of the maps (which are probabilities); here, of the images.
        """
        return cls(
            colour_scale=0.1, position_weight=0.0, kernel="pamr", downsample=1, softmax=False
        )

    def forward(
        self,
        images: Tensor,
        maps: Tensor,
        *,
        labels: Tensor | None = None,
        box: Tensor | None = None,
        features: Features | None = None,
    ) -> Tensor:
        """Return refined maps at the size of the images.

        Arguments as in :class:`~wsss_blocks.refine.Refiner`; ``box`` (padding takes part, as in the
        originals) and ``features`` are not used. Raises like the function, and for scores below 0.
        """
        _present.check_refiner_inputs(images, maps, labels, box)
        height, width = images.shape[-2:]
        size = (max(1, height // self.downsample), max(1, width // self.downsample))
        present = _present.take_present(_present.as_sets(maps), labels)
        scores = _present.resize_sets(present.maps, size)
        if self.softmax:
            scores = _present.present_softmax(scores, present.mask)
        refined = pixel_adaptive_refine(
            _present.resize_sets(images.unsqueeze(1), size).squeeze(1),
            scores,
            dilations=self.dilations,
            iterations=self.iterations,
            colour_scale=self.colour_scale,
            position_weight=self.position_weight,
            kernel=self.kernel,
        )
        resized = _present.resize_sets(refined, (height, width))
        return _present.put_back(resized, present.channels, like=maps)

    def extra_repr(self) -> str:
        """Show the options."""
        names = ("dilations", "iterations", "colour_scale", "position_weight", "kernel")
        return ", ".join(f"{n}={getattr(self, n)!r}" for n in (*names, "downsample", "softmax"))
