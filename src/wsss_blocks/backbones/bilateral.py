"""Features without a network: random Fourier features of colour and position."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_images,
    check_int,
    check_positive,
    check_same_device,
    check_sequence,
)
from wsss_blocks.backbones._common import map_features, no_attention
from wsss_blocks.backbones.features import Features, resize_to_stride

__all__ = ["BilateralFeatures"]


class BilateralFeatures(nn.Module):
    r"""Encode images so that cosines of features are a bilateral kernel.

    With :math:`z(p) = (\mathrm{rgb}(p) / \sigma_c,\; \mathrm{xy}(p) / \sigma_p)` and fixed random
    directions :math:`w_i \sim \mathcal N(0, I)`,

    .. math::

        F(p) = \sqrt{2 / D}\, \bigl( \cos w_i^\top z(p),\; \sin w_i^\top z(p) \bigr)_{i \le D / 2},
        \qquad
        \langle F(p), F(q) \rangle \approx e^{-\lVert z(p) - z(q) \rVert^2 / 2}

    with :math:`\lVert F(p) \rVert = 1` and an error of about :math:`1 / \sqrt D`. The mean of the
    features of a region is its density in colour and position, and the cosine with it tells where
    else in the image that density is high. Nothing is learnt: where there is no self-supervised
    network for a kind of images, these stand in for its features (as in
    :class:`~wsss_blocks.refine.ClassRebalancer` on ``scenes``). Time is O(D) per cell.

    Reference:
        Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", NeurIPS 2007,
        algorithm 1. The kernel is that of the bilateral filter, Tomasi and Manduchi, ICCV 1998.

    Args:
        dim: Features D, an even number.
        colour_scale: :math:`\sigma_c`, of colours in [0, 1].
        position_scale: :math:`\sigma_p`, in units of the image's longer side.
        stride: Pixels per cell; the colour of a cell is its mean.
        seed: Of the directions, which are buffers and part of the state.

    Shape:
        - images: ``(B, 3, H, W)``, RGB in ``[0, 1]``
        - feature_map: ``(B, dim, ceil(H / stride), ceil(W / stride))``, at least float32

    Raises:
        ValueError: ``dim`` is not even and positive, a scale or ``stride`` not positive, ``seed``
            negative, a layer is asked for (there are none), or images are not RGB in ``[0, 1]``.

    Example:
        >>> import torch
        >>> image = torch.zeros(1, 3, 4, 8)
        >>> image[..., 4:] = 1.0  # a black and a white half
        >>> features = BilateralFeatures(512, position_scale=10.0)(image).patch_tokens[0]
        >>> similar = features @ features.T
        >>> bool(similar[0, 1] > 0.9), bool(similar[0, 3].abs() < 0.2)
        (True, True)
    """

    directions: Tensor

    def __init__(
        self,
        dim: int = 64,
        *,
        colour_scale: float = 0.15,
        position_scale: float = 0.3,
        stride: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_int("dim", dim, least=2)
        if dim % 2:
            raise ValueError(f"dim must be even, got {dim}.")
        check_positive("colour_scale", colour_scale)
        check_positive("position_scale", position_scale)
        check_int("stride", stride, least=1)
        check_int("seed", seed, least=0)
        self.dim, self.stride, self.num_class_tokens = dim, stride, 0
        self.layer_dims: dict[int, int] = {}
        self.size_policy = "resize"
        self.colour_scale, self.position_scale = colour_scale, position_scale
        drawn = torch.randn(dim // 2, 5, generator=torch.Generator().manual_seed(seed))
        scales = [colour_scale] * 3 + [position_scale] * 2
        self.register_buffer("directions", drawn / torch.tensor(scales))

    def forward(
        self, images: Tensor, *, layers: Sequence[int] = (), attention_layers: Sequence[int] = ()
    ) -> Features:
        """Encode images; shapes as the class says."""
        no_attention(attention_layers, "an encoder without a network")
        check_sequence("layers", layers)
        if len(layers):
            raise ValueError(f"layers must be empty: there are none, got {tuple(layers)}.")
        check_images("images", images)
        check_same_device("images", images, "the directions", self.directions)
        x = at_least_float32(resize_to_stride(images, stride=self.stride))
        colours = F.avg_pool2d(x, self.stride)
        height, width = colours.shape[2:]
        rows, columns = (
            (torch.arange(side, device=x.device, dtype=x.dtype) + 0.5) / max(height, width)
            for side in (height, width)
        )
        with torch.autocast(x.device.type, enabled=False):
            w = self.directions.to(x.dtype)
            phase = torch.einsum("dc,bchw->bdhw", w[:, :3], colours)
            phase = phase + (w[:, 3:4] * rows)[:, :, None] + (w[:, 4:] * columns)[:, None]
        features = torch.cat([phase.cos(), phase.sin()], 1) * (2 / self.dim) ** 0.5
        return map_features(features, {})

    def project(self, tokens: Tensor) -> Tensor:
        """Return the tokens: this encoder has no joint text space."""
        return tokens

    def extra_repr(self) -> str:
        """Show the options."""
        names = ("dim", "colour_scale", "position_scale", "stride")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
