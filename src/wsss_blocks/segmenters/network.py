"""Encoder, optional neck and LargeFOV decoder: what remains of a system after training."""

import os
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from wsss_blocks import backbones
from wsss_blocks._validate import check_int
from wsss_blocks.decoders import LargeFOV
from wsss_blocks.segmenters._checkpoint import check_encoder_name

__all__ = ["SegmentationNetwork"]


class SegmentationNetwork(nn.Module):
    r"""Segment images with an encoder known by name and a LargeFOV decoder.

    .. math::

        Z = \mathrm{LargeFOV}\bigl(\mathrm{ReLU}(W * E(x)), E_l(x)\bigr)

    with :math:`E` the encoder, :math:`W` the neck (a :math:`1 \times 1` convolution that other
    heads may share; without one the features go in as they are) and :math:`E_l` the features of
    the layer ``skip``. All that is needed to build the network again is in ``recipe``.

    Reference:
        The decoder on the last features of a ViT, as in "Token Contrast for Weakly-Supervised
        Semantic Segmentation" (ToCo), released code; https://arxiv.org/abs/2303.01267

    Note:
        Neck and skip are in no paper; see :class:`~wsss_blocks.decoders.LargeFOV` for the latter.

    Args:
        encoder: Name for :func:`~wsss_blocks.backbones.create_encoder`.
        num_classes: Channels of the logits, background included.
        weights: Of the encoder, likewise; they are no part of the recipe.
        neck_dim: Channels of the neck, 0 for none.
        skip: Layer of the encoder that gives the decoder a finer grid, or None.
        hidden_dim: Channels inside the decoder.
        dilation: Dilation of its two convolutions.

    Attributes:
        encoder: Image encoder.
        neck: ``nn.Sequential`` from a feature map to ``dim`` channels, empty without a neck; call
            it on the cached map of a frozen encoder.
        decoder: :class:`~wsss_blocks.decoders.LargeFOV`.
        dim: Channels after the neck.
        num_classes: Channels of the logits.

    Shape:
        - Input: ``(B, 3, H, W)``, RGB in ``[0, 1]``
        - Output: ``(B, num_classes, h, w)``, on the grid of ``skip`` where there is one

    Raises:
        FileNotFoundError: If there is no such file of weights.
        ValueError: If a size is out of range, the encoder has no layer ``skip``, its name points to
            a server or folder or is unknown to timm, or it cannot take the weights.

    Example:
        >>> import torch
        >>> network = SegmentationNetwork("small-cnn", num_classes=11, skip=2, hidden_dim=64)
        >>> network(torch.rand(1, 3, 96, 64)).shape
        torch.Size([1, 11, 24, 16])
        >>> network.recipe["kind"]
        'large-fov'
    """

    def __init__(
        self,
        encoder: str = "small-cnn",
        *,
        num_classes: int,
        weights: str | os.PathLike[str] | None = None,
        neck_dim: int = 0,
        skip: int | None = None,
        hidden_dim: int = 512,
        dilation: int = 5,
    ) -> None:
        super().__init__()
        check_encoder_name(encoder)
        check_int("neck_dim", neck_dim)
        if neck_dim < 0:
            raise ValueError(f"neck_dim must be 0 (no neck) or positive, got {neck_dim}.")
        self.encoder = cast(Any, backbones.create_encoder(encoder, weights=weights))
        if skip is not None:
            check_int("skip", skip)
        if skip is not None and skip not in self.encoder.layer_dims:
            known = ", ".join(map(str, self.encoder.layer_dims))
            raise ValueError(f"skip must be None or a layer of {encoder!r} ({known}), got {skip}.")
        self.dim: int = neck_dim or self.encoder.dim
        self.num_classes, self.skip = num_classes, skip
        neck = [nn.Conv2d(self.encoder.dim, neck_dim, 1), nn.ReLU()] if neck_dim else []
        self.neck = nn.Sequential(*neck)
        self.decoder = LargeFOV(
            self.dim,
            num_classes,
            hidden_dim=hidden_dim,
            dilation=dilation,
            skip_dim=None if skip is None else self.encoder.layer_dims[skip],
        )
        self._recipe = {
            "kind": "large-fov",
            "encoder": encoder,
            "num_classes": num_classes,
            "neck_dim": neck_dim,
            "skip": skip,
            "hidden_dim": hidden_dim,
            "dilation": dilation,
        }

    @property
    def recipe(self) -> dict[str, object]:
        """What builds this network again, without its weights; a dictionary that JSON can hold."""
        return dict(self._recipe)

    def encode(
        self, images: Tensor, *, layers: Sequence[int] = ()
    ) -> tuple[Tensor, backbones.Features]:
        """Return the map after the neck ``(B, dim, h, w)`` and all that the encoder computed.

        ``layers`` asks for further intermediate maps; that of ``skip`` is always among them.
        """
        wanted = tuple(layers) if self.skip is None else (*layers, self.skip)
        features: backbones.Features = self.encoder(images, layers=wanted)
        return self.neck(features.feature_map), features

    def frozen_maps(self, images: Tensor, *, layers: Sequence[int] = ()) -> Tensor:
        """Return what a frozen encoder makes of images, to be cached, ``(B, D_1 + ... + D, h, w)``.

        The maps of ``layers`` and the final one are joined, so they must have one grid.
        """
        found: backbones.Features = self.encoder(images, layers=layers)
        return torch.cat([*found.intermediates.values(), found.feature_map], 1)

    def encode_cached(
        self, maps: Tensor, *, layers: Sequence[int] = ()
    ) -> tuple[Tensor, backbones.Features]:
        """Return what :meth:`encode` does, from cached :meth:`frozen_maps` of the same layers."""
        dims = [*(self.encoder.layer_dims[layer] for layer in layers), self.encoder.dim]
        *others, final = maps.split(dims, 1)  # type: ignore[no-untyped-call]
        none, found = final.flatten(2).mT[:, :0], dict(zip(layers, others, strict=True))
        return self.neck(final), backbones.Features(final, none, found, {}, {})

    def decode(self, x: Tensor, features: backbones.Features) -> Tensor:
        """Return the logits ``(B, num_classes, h, w)`` of what :meth:`encode` returned."""
        skip = None if self.skip is None else features.intermediates.get(self.skip)
        return cast(Tensor, self.decoder(x, skip=skip))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images; shapes as the class says."""
        return self.decode(*self.encode(images))
