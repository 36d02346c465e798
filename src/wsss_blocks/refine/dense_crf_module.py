"""The dense CRF as a refiner, with the constants of published systems.

Paper: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NeurIPS 2011, https://arxiv.org/abs/1210.5644
"""

from typing import Literal, Self

from torch import Tensor, nn

from wsss_blocks._validate import check_choice
from wsss_blocks.backbones.features import Features
from wsss_blocks.refine.dense_crf import Method, check_options, refine_maps

__all__ = ["DenseCRF"]

# iterations, (position deviation, weight), (position deviation, colour deviation, weight)
_PRESETS = {
    "afa": (10, (3.0, 3.0), (64.0, 5.0, 4.0)),
    "deeplab": (10, (1.0, 1.0), (121.0, 5.0, 4.0)),
    "dhr": (10, (1.0, 3.0), (67.0, 3.0, 4.0)),
    "irn": (10, (3.0, 3.0), (50.0, 5.0, 10.0)),
    "mctformer": (10, (3.0, 3.0), (80.0, 13.0, 10.0)),
    "simseg": (3, (3.0, 3.0), (40.0, 13.0, 10.0)),
}


class DenseCRF(nn.Module):
    """Refine maps with :func:`dense_crf`, over background and the present classes only.

    Nothing is normalised first: maps should be probabilities (larger scores count as 1), and come
    back as such. Time and memory are those of the function for G times as many maps as channels
    are present; the lattice is made once per image, however many sets there are.

    Args:
        iterations: Number of mean-field updates.
        gaussian: Position kernel: standard deviation in pixels, weight.
        bilateral: Appearance kernel: standard deviation in pixels, in colours (0..255), weight.
        method: "auto", "lattice", "cells" or "exact".

    Shape:
        - images: ``(B, 3, H, W)``; maps: ``(B, K+1, h, w)`` or ``(B, G, K+1, h, w)``
        - output: ``(B, K+1, H, W)`` or ``(B, G, K+1, H, W)``

    Example:
        >>> import torch
        >>> refiner = DenseCRF.preset("deeplab")
        >>> labels = torch.tensor([[1.0, 0.0]])
        >>> refiner(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 4, 4), labels=labels).shape
        torch.Size([1, 3, 32, 32])
    """

    def __init__(
        self,
        *,
        iterations: int = 10,
        gaussian: tuple[float, float] = (1.0, 3.0),
        bilateral: tuple[float, float, float] = (67.0, 3.0, 4.0),
        method: Method = "auto",
    ) -> None:
        super().__init__()
        check_options(iterations, gaussian, bilateral, method)
        self.iterations, self.method = iterations, method
        self.gaussian = gaussian[0], gaussian[1]
        self.bilateral = bilateral[0], bilateral[1], bilateral[2]

    @classmethod
    def preset(
        cls,
        name: Literal["afa", "deeplab", "dhr", "irn", "mctformer", "simseg"],
        *,
        method: Method = "auto",
    ) -> Self:
        """Return the refiner with the constants of a published system.

        - "afa": AFA and WeCLIP, at test time. The number of iterations (10) is inferred.
        - "deeplab": DeepLab's, which ToCo and DALNet use at test time.
        - "dhr": DHR in training and at test time, and MoRe at test time: the defaults.
        - "irn": IRN's label maker. Its maps are labels held for sure at 0.7: 0.7 for the label of
          a pixel, 0.3 / (C - 1) for each other channel.
        - "mctformer": MCTformer's label maker for its affinity network.
        - "simseg": SimSeg, three iterations. Its maps are one binary problem per class: G sets
          ``[1 - A, A]``, as ``(B, G, 2, h, w)``, without labels.

        Args:
            name: Which system.
            method: As in the constructor.
        """
        check_choice("name", name, _PRESETS)
        iterations, gaussian, bilateral = _PRESETS[name]
        return cls(iterations=iterations, gaussian=gaussian, bilateral=bilateral, method=method)

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

        Arguments as in :class:`~wsss_blocks.refine.Refiner`; pixels outside ``box`` take no part,
        ``features`` are not used. Raises like the function.
        """
        options = self.iterations, self.gaussian, self.bilateral, self.method
        return refine_maps("maps", images, maps, labels, box, *options)

    def extra_repr(self) -> str:
        """Show the options."""
        names = ("iterations", "gaussian", "bilateral", "method")
        return ", ".join(f"{n}={getattr(self, n)!r}" for n in names)
