"""CAM by patch-text similarity (DIAL, ECCV 2024, supplement Figs. 7, 9 and 10)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_blocks._numerics import at_least_float32, l2_normalize
from wsss_blocks._validate import (
    check_choice,
    check_finite,
    check_floating,
    check_positive,
    check_same_device,
    check_shape,
)

__all__ = ["SimilarityCAM", "similarity_cam"]

Mode = Literal["cosine", "margin", "softmax"]


def similarity_cam(
    features: Tensor,
    text: Tensor,
    *,
    background: Tensor | None = None,
    mode: Mode = "cosine",
    temperature: float = 1.0,
) -> Tensor:
    r"""Score each patch against each class name by cosine similarity.

    With :math:`s(v_i, t_c)` the cosine of patch :math:`i` and class text :math:`c`, and background
    texts :math:`t_m`, the modes are

    .. math::

        \text{cosine: } s(v_i, t_c) \qquad
        \text{margin: } s(v_i, t_c) - \max_m s(v_i, t_m) \qquad
        \text{softmax: } \frac{e^{s(v_i, t_c) / \tau}}
            {\sum_k e^{s(v_i, t_k) / \tau} + \sum_m e^{s(v_i, t_m) / \tau}} .

    The product with the unit text rows is divided by the patch norms afterwards, so no tensor with
    both a class and a feature axis appears. A zero vector has similarity 0. Time is O(B D K h w);
    peak memory one copy of the features, squared for their norms, and two of the scores: 28 MiB for
    16 images with D = 512, K = 20 on a 28 x 28 grid.

    Reference:
        "DIAL: Dense Image-text ALignment for Weakly Supervised Semantic Segmentation", similarity
        maps of the supplement (inferred: the figures are known, not their code);
        https://arxiv.org/abs/2409.15801

    Args:
        features: ``(B, D, h, w)`` patch features in the joint image-text space.
        text: ``(K, D)`` class text features.
        background: ``(M, D)`` background text features, or None. Cosine scores do not use them.
        mode: ``"cosine"``, ``"margin"`` (needs ``background``) or ``"softmax"``.
        temperature: :math:`\tau` of the softmax; the other modes do not use it.

    Returns:
        ``(B, K, h, w)`` in the dtype of ``features``; background channels are left out.

    Raises:
        ValueError: If a shape, device, ``mode`` or ``temperature`` does not fit, or ``mode`` is
            ``"margin"`` without ``background``, or an input is not finite.
        TypeError: If an input is not floating-point.

    Example:
        >>> import torch
        >>> patches, names, prompt = (
        ...     torch.randn(2, 512, 28, 28),
        ...     torch.eye(20, 512),
        ...     torch.ones(1, 512),
        ... )
        >>> similarity_cam(patches, names, background=torch.ones(1, 512), mode="margin").shape
        torch.Size([2, 20, 28, 28])
    """
    check_shape("features", features, "B D h w")
    check_floating("features", features)
    check_finite("features", features)
    check_shape("text", text, "K D", D=features.shape[1])
    _check_options(text, background, mode, temperature)
    check_same_device("text", text, "features", features)
    values = at_least_float32(features)
    bank = text if background is None else torch.cat([text, background])
    kernel = l2_normalize(bank.to(values.dtype))[:, :, None, None]
    norms = values.square().sum(1, keepdim=True).clamp_min(1e-24)
    scores = F.conv2d(values, kernel) * norms.rsqrt()
    classes = text.shape[0]
    if mode == "margin":
        scores = scores[:, :classes] - scores[:, classes:].amax(1, keepdim=True)
    elif mode == "softmax":
        scores = (scores / temperature).softmax(1)
    return scores[:, :classes].to(features.dtype)


class SimilarityCAM(nn.Module):
    """Hold a frozen text bank and score patches against it: see :func:`similarity_cam`.

    Args:
        text: ``(K, D)`` class text features, kept as a buffer.
        background: ``(M, D)`` background text features, kept as a buffer, or None.
        mode: ``"cosine"``, ``"margin"`` or ``"softmax"``.
        temperature: Temperature of the softmax.

    Shape:
        - Input: ``(B, D, h, w)``
        - Output: ``(B, K, h, w)``

    Raises:
        ValueError: If a shape, ``mode`` or ``temperature`` does not fit, or a text is not finite.
        TypeError: If an input is not floating-point.

    Example:
        >>> import torch
        >>> to_cam = SimilarityCAM(torch.eye(20, 512))
        >>> to_cam(torch.randn(2, 512, 28, 28)).shape
        torch.Size([2, 20, 28, 28])
    """

    text: Tensor
    background: Tensor | None

    def __init__(
        self,
        text: Tensor,
        *,
        background: Tensor | None = None,
        mode: Mode = "cosine",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        check_shape("text", text, "K D")
        _check_options(text, background, mode, temperature)
        self.register_buffer("text", text.detach().clone())
        self.register_buffer(
            "background", None if background is None else background.detach().clone()
        )
        self.mode: Mode = mode
        self.temperature = temperature

    def forward(self, features: Tensor) -> Tensor:
        """Return the class maps of ``features``."""
        return similarity_cam(
            features,
            self.text,
            background=self.background,
            mode=self.mode,
            temperature=self.temperature,
        )

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"mode={self.mode!r}, temperature={self.temperature}"


def _check_options(text: Tensor, background: Tensor | None, mode: str, temperature: float) -> None:
    check_floating("text", text)
    check_finite("text", text)
    check_choice("mode", mode, ("cosine", "margin", "softmax"))
    check_positive("temperature", temperature)
    if background is not None:
        check_shape("background", background, "M D", D=text.shape[1])
        check_floating("background", background)
        check_finite("background", background)
        check_same_device("background", background, "text", text)
    elif mode == "margin":
        raise ValueError('background must be given with mode="margin", got None.')
