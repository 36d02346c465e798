"""What encoders return and promise: the contracts between backbones and every other block."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, Self, runtime_checkable

import torch.nn.functional as F
from torch import Tensor, nn

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._symbols import are_symbols
from wsss_blocks._validate import check_choice, check_finite, check_floating, check_int, check_shape
from wsss_blocks.backbones.query_key import QueryKey

__all__ = [
    "Encoder",
    "Features",
    "SizePolicy",
    "TextEncoder",
    "TextFeatures",
    "resize_to_stride",
]

SizePolicy = Literal["resize", "pad", "floor"]


def resize_to_stride(images: Tensor, *, stride: int, policy: SizePolicy = "resize") -> Tensor:
    """Bring images to a size that the stride divides.

    ``"resize"`` scales up (bilinear, ``align_corners=False``) to the next multiple, so that the
    feature grid covers exactly the image; ``"pad"`` appends zeros below and to the right, so that
    the grid covers more than the image; ``"floor"`` cuts there what does not fill a cell, as a
    patch convolution does. An image that already fits comes back as it is.

    Args:
        images: ``(B, C, H, W)``.
        stride: pixels per feature cell.
        policy: ``"resize"``, ``"pad"`` or ``"floor"``.

    Returns:
        ``(B, C, H', W')`` with both sides divisible by ``stride``.

    Raises:
        ValueError: wrong shape, unknown policy, ``stride < 1``, images that are not finite, or
            ``"floor"`` with an image smaller than one cell.
        TypeError: images are not floating point.

    Example:
        >>> import torch
        >>> resize_to_stride(torch.rand(1, 3, 30, 41), stride=16).shape
        torch.Size([1, 3, 32, 48])
    """
    check_shape("images", images, "B C H W")
    check_floating("images", images)
    check_choice("policy", policy, ("resize", "pad", "floor"))
    check_int("stride", stride, least=1)
    check_finite("images", images)
    spare = 0 if policy == "floor" else stride - 1
    height, width = ((side + spare) // stride * stride for side in images.shape[-2:])
    if not are_symbols(height, width) and (height, width) == tuple(images.shape[-2:]):
        return images
    if policy == "resize":
        x = at_least_float32(images)
        x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
        return x.to(images.dtype)
    if policy == "pad":
        return F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))
    if min(height, width) == 0:
        raise ValueError(
            f"images must be at least {stride} pixels high and wide, "
            f"got {tuple(images.shape[-2:])}."
        )
    return images[..., :height, :width]


class Features(NamedTuple):
    """Hold what an image encoder computed for one batch.

    Args:
        feature_map: final features ``(B, D, h, w)``.
        class_tokens: final class tokens ``(B, n, D)``; n is 0 for a CNN, 1 for most ViTs.
        intermediates: requested layer -> ``(B, D_l, h_l, w_l)``, before any final norm.
        class_tokens_at: requested layer -> class tokens ``(B, n, D_l)`` there.
        taps: requested layer -> the very tensor that the next layer consumed, for gradient CAMs
            (``torch.autograd.grad`` with respect to a reshaped intermediate finds no path):
            ``(B, prefix + N, D_l)`` with class and register tokens first in a transformer,
            ``(B, D_l, h_l, w_l)`` in a CNN.
        attention: layer of ``attention_layers`` -> its queries and keys; empty for a CNN.

    Example:
        >>> import torch
        >>> features = Features(torch.rand(2, 8, 3, 4), torch.rand(2, 1, 8), {}, {}, {})
        >>> features.patch_tokens.shape, features.global_token.shape
        (torch.Size([2, 12, 8]), torch.Size([2, 8]))
    """

    feature_map: Tensor
    class_tokens: Tensor
    intermediates: dict[int, Tensor]
    class_tokens_at: dict[int, Tensor]
    taps: dict[int, Tensor]
    attention: Mapping[int, QueryKey] = {}

    @property
    def patch_tokens(self) -> Tensor:
        """The feature map's values as tokens ``(B, N, D)``, row by row."""
        return self.feature_map.flatten(2).mT

    @property
    def global_token(self) -> Tensor:
        """One vector per image ``(B, D)``: the class token, without one the mean of the map."""
        count = self.class_tokens.shape[1]
        if count == 0:
            mean = at_least_float32(self.feature_map).mean((2, 3))
            return mean.to(self.feature_map.dtype)
        if count > 1:
            raise ValueError(
                f"global_token needs class_tokens with n=0 or n=1, got n={count}: "
                "choose among class_tokens."
            )
        return self.class_tokens[:, 0]


class TextFeatures(NamedTuple):
    """Hold what a text encoder computed for one batch.

    Args:
        tokens: ``(B, T, D)`` in the joint space.
        mask: ``(B, T)`` bool, True where a real token stands (not padding).
        special: ``(B, T)`` bool, True at real tokens that are no words (start, end).
        global_token: ``(B, D)``, the tower's own sentence vector, not normalised.
    """

    tokens: Tensor
    mask: Tensor
    special: Tensor
    global_token: Tensor


@runtime_checkable
class Encoder(Protocol):
    """Describe an image encoder: RGB images in ``[0, 1]`` to :class:`Features`.

    Layers are 0-based block indices in a transformer and stages 1, 2, ... (stride 2, 4, ...) in a
    CNN; negative numbers count from the last layer, and the dictionaries of :class:`Features` are
    keyed by the number so resolved. A network without attention refuses ``attention_layers``.
    """

    @property
    def dim(self) -> int:
        """Channels D of the feature map."""

    @property
    def layer_dims(self) -> Mapping[int, int]:
        """Layer -> channels D_l."""

    @property
    def stride(self) -> int:
        """Pixels per cell of the feature map."""

    @property
    def num_class_tokens(self) -> int:
        """Number n of class tokens."""

    def __call__(
        self, images: Tensor, *, layers: Sequence[int] = (), attention_layers: Sequence[int] = ()
    ) -> Features:
        """Encode images ``(B, 3, H, W)``."""

    def project(self, tokens: Tensor) -> Tensor:
        """Map final tokens ``(..., D)`` into the joint text space; identity without one."""


@runtime_checkable
class TextEncoder(Protocol):
    """Describe a text encoder, an ``nn.Module``: token ids to :class:`TextFeatures`."""

    training: bool

    def __call__(self, ids: Tensor, mask: Tensor) -> TextFeatures:
        """Encode token ids ``(B, T)`` with ``mask (B, T)``, True at real tokens."""

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Turn texts into ``ids`` and ``mask``, both ``(B, T)``, on the CPU."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Yield the parameters; ids belong on their device."""

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation."""

    def eval(self) -> Self:
        """Switch to evaluation."""
