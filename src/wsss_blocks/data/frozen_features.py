"""Features of a frozen encoder, averaged over scales and mirror images (DHR, ECCV 2024)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsss_blocks._evaluating import evaluating
from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import check_images, check_int
from wsss_blocks.backbones.features import Encoder
from wsss_blocks.decoders.multi_scale_logits import multi_scale_logits

__all__ = ["check_frozen", "dense_features"]


def dense_features(
    encoder: Encoder,
    images: Tensor,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = True,
    layer: int | None = None,
    size: tuple[int, int] | None = None,
) -> Tensor:
    r"""Average an encoder's features over scaled and mirrored copies of the images.

    .. math::

        F = \frac{1}{2 S} \sum_s \mathrm{up} \big( F_s + \mathrm{mirror}(F_s') \big)

    with :math:`F_s` the features of the images at scale :math:`s` and :math:`F_s'` those of their
    mirror images, and :math:`\mathrm{up}` bilinear resizing to the grid of the largest scale. The
    encoder runs in eval mode and without gradients; its modes come back as they were.

    Reference:
        "DHR: Dual Features-Driven Hierarchical Rebalancing in Inter- and Intra-Class Regions for
        Weakly-Supervised Semantic Segmentation", released code (the paper's text was not
        recovered), https://arxiv.org/abs/2404.00380. Its scales are 2, 1, 1.5 and 0.5, so that
        its grid, that of the first scale, is the one of the largest scale, too.

    Note:
        The released code resizes each scaled image once, to sides rounded up to the patch size;
        here the encoder resizes up what the scaling left. The features are not normalised.

    Args:
        encoder: an ``nn.Module`` under the contract :class:`~wsss_blocks.backbones.Encoder`, with
            ``size_policy="resize"``: other policies move the grid against the image.
        images: ``(B, 3, H, W)``, RGB in ``[0, 1]``, on the encoder's device.
        scales: image scales; sides are rounded half up.
        flip: also look at the mirrored images.
        layer: intermediate layer, or None for the final features.
        size: grid ``(h, w)`` of the result, or None for the grid of the largest scale.

    Returns:
        ``(B, D, h, w)``, at least float32; the grid covers exactly the image.

    Raises:
        ValueError: images are not RGB in ``[0, 1]``, a scale, ``layer`` or ``size`` does not fit,
            or the encoder pads or cuts images.
        TypeError: the encoder is no ``nn.Module``, or ``images`` are not floating-point.

    Example:
        >>> import torch
        >>> from wsss_blocks.backbones import SmallCNN
        >>> dense_features(SmallCNN(), torch.rand(1, 3, 40, 60), scales=(2.0, 1.0)).shape
        torch.Size([1, 128, 10, 15])
    """
    module = check_frozen(encoder)
    check_images("images", images)
    if layer is not None:
        check_int("layer", layer)

    def features(x: Tensor) -> Tensor:
        if layer is None:
            return at_least_float32(encoder(x).feature_map)
        (found,) = encoder(x, layers=(layer,)).intermediates.values()
        return at_least_float32(found)

    with torch.no_grad(), evaluating(module):
        return multi_scale_logits(features, images, scales=scales, flip=flip, size=size)


def check_frozen(encoder: Encoder) -> nn.Module:
    """Return the encoder as a module, or say why its features cannot be cached."""
    if not isinstance(encoder, nn.Module):
        raise TypeError(f"encoder must be an nn.Module, got {type(encoder).__name__}.")
    policy = getattr(encoder, "size_policy", "resize")
    if policy != "resize":
        raise ValueError(
            "encoder must have size_policy='resize', so that the grid covers the image, "
            f"got {policy!r}."
        )
    return encoder
