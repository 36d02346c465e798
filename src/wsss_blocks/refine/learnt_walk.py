"""Random walk along affinities that a small head learns from confident masks (CVPR 2018, 2019)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from wsss_blocks._validate import (
    check_choice,
    check_finite,
    check_floating,
    check_int,
    check_integer,
    check_like_weight,
    check_non_negative,
    check_same_device,
    check_shape,
    check_size,
)
from wsss_blocks.refine._walk import check_options
from wsss_blocks.refine.affinity import NeighbourAffinity, edge_affinity, feature_affinity
from wsss_blocks.refine.affinity_labels import AffinityLabels, affinity_labels
from wsss_blocks.refine.random_walk import random_walk

__all__ = ["LearntWalk"]


class LearntWalk(nn.Module):
    r"""Let scores spread among patches that a 1x1 convolution over features has learnt to tie.

    - ``"psa"``: features :math:`g = \mathrm{ReLU}(W f)` and affinities
      :math:`A_{ij} = \exp(-\lVert g_i - g_j \rVert_1 / D_g)`
      (:func:`~wsss_blocks.refine.feature_affinity`);
    - ``"irn"``: an edge map :math:`E = \sigma(W f)` and
      :math:`A_{ij} = 1 - \max_{k \in \Pi_{ij}} E_k`
      (:func:`~wsss_blocks.refine.edge_affinity`), and what lies on an edge gives nothing:
      :math:`M (1 - E)` walks.

    Training: :meth:`pairs` sorts the pairs of near patches by a mask with undecided pixels, and
    :func:`~wsss_blocks.losses.affinity_loss` compares :meth:`affinity` with them. The features are
    detached: the head learns, what is below it does not.

    Reference:
        Ahn and Kwak (AffinityNet), CVPR 2018, https://arxiv.org/abs/1803.10464; Ahn et al. (IRN),
        CVPR 2019, https://arxiv.org/abs/1904.05044. Both train a network of its own on features of
        several stages, and IRN a displacement field beside the edges: this is their last layer and
        their walk, on the features that a classifier has already.

    Args:
        dim: channels D of the features.
        kind: ``"psa"`` or ``"irn"``.
        radius: pairs of patches nearer than this are tied.
        beta: exponent of the affinities; None: 8 for psa, 10 for irn.
        steps: of the walk; None: 64 for psa, 256 for irn.
        hidden: channels of g, for psa.

    Shape:
        - features: ``(B, D, h, w)``; maps: ``(B, C, h', w')`` >= 0
        - output: ``(B, C, h, w)`` >= 0, in the dtype of the maps

    Raises:
        ValueError: a size or option is out of range, ``kind`` is unknown, a shape or device does
            not fit, features are not finite, or maps are below 0.
        TypeError: maps or features are not floating-point, or a mask does not hold integers.

    Example:
        >>> import torch
        >>> walk = LearntWalk(16, kind="irn")
        >>> features, mask = torch.randn(1, 16, 6, 8), torch.randint(0, 3, (1, 6, 8))
        >>> affinity, pairs = walk.affinity(features), walk.pairs(mask, size=(6, 8))
        >>> affinity.values.shape == pairs.different.shape
        True
        >>> walk(torch.rand(1, 3, 6, 8), features).shape
        torch.Size([1, 3, 6, 8])
    """

    def __init__(
        self,
        dim: int,
        *,
        kind: Literal["psa", "irn"] = "psa",
        radius: int = 5,
        beta: float | None = None,
        steps: int | None = None,
        hidden: int = 64,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, ("psa", "irn"))
        check_int("dim", dim, least=1)
        check_int("radius", radius, least=2)
        check_int("hidden", hidden, least=1)
        self.dim, self.kind, self.radius = dim, kind, radius
        self.beta = (8.0 if kind == "psa" else 10.0) if beta is None else beta
        self.steps = (64 if kind == "psa" else 256) if steps is None else steps
        check_options(self.beta, self.steps)
        self.head = nn.Conv2d(dim, hidden if kind == "psa" else 1, 1)

    def affinity(self, features: Tensor) -> NeighbourAffinity:
        """Return how alike near patches are; differentiable in the head."""
        return self._tied(features)[0]

    def pairs(
        self, mask: Tensor, *, size: tuple[int, int], ignore_index: int = 255
    ) -> AffinityLabels:
        """Sort the pairs of near patches by a mask ``(B, H, W)``, brought to the grid ``size``."""
        check_shape("mask", mask, "B H W")
        check_integer("mask", mask)
        check_size("size", size)
        small = F.interpolate(mask[:, None].double(), size, mode="nearest-exact")[:, 0].long()
        return affinity_labels(small, radius=self.radius, ignore_index=ignore_index)

    def forward(self, maps: Tensor, features: Tensor) -> Tensor:
        """Return the maps after the walk, on the grid of the features."""
        affinity, edge = self._tied(features)
        check_shape("maps", maps, "B C h w", B=features.shape[0])
        check_floating("maps", maps)
        check_same_device("maps", maps, "features", features)
        check_non_negative("maps", maps)
        maps = F.interpolate(maps, features.shape[-2:], mode="bilinear", align_corners=False)
        giving = maps * (1 - edge).to(maps.dtype)
        walked = random_walk(giving, affinity, beta=self.beta, steps=self.steps)
        return walked.clamp_min(0)  # a series may end a hair below

    def _tied(self, features: Tensor) -> tuple[NeighbourAffinity, Tensor]:
        check_shape("features", features, "B D h w", D=self.dim)
        check_floating("features", features)
        check_like_weight("features", features, self.head.weight)
        check_finite("features", features)
        found = self.head(features.detach())
        if self.kind == "psa":
            return feature_affinity(found.relu(), radius=self.radius), found.new_zeros(())
        edge = found.sigmoid()
        return edge_affinity(edge, radius=self.radius), edge

    def extra_repr(self) -> str:
        """Show the settings in the repr."""
        return (
            f"{self.dim}, kind={self.kind!r}, radius={self.radius}, beta={self.beta}, "
            f"steps={self.steps}"
        )
