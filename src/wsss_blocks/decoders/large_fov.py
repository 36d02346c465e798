"""Two dilated convolutions and a classifier (DeepLab's LargeFOV, as in ToCo and DIAL)."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_int,
    check_like_weight,
    check_shape,
)

__all__ = ["LargeFOV"]


class LargeFOV(nn.Module):
    r"""Classify each position from a wide field of view.

    .. math::

        W_3 * \mathrm{ReLU}(W_2 *_d \mathrm{ReLU}(W_1 *_d x))

    with two :math:`3 \times 3` convolutions of dilation :math:`d` and a :math:`1 \times 1` one, all
    without bias. With ``skip_dim``, a finer map joins before the classifier: a :math:`1 \times 1`
    convolution, normalised per image, is concatenated with the resized hidden map and mixed by a
    :math:`3 \times 3` convolution, and the logits are on the finer grid.

    Reference:
        "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs"
        (DeepLab-LargeFOV); https://arxiv.org/abs/1412.7062. Sizes of "Token Contrast for
        Weakly-Supervised Semantic Segmentation" (ToCo), released code;
        https://arxiv.org/abs/2303.01267

    Note:
        The skip path is in neither paper: it is DeepLabV3+'s
        (https://arxiv.org/abs/1802.02611, 48 low-level features) with one convolution instead of
        two and a normalisation that does not depend on the batch.

    Args:
        dim: Channels of ``features``.
        num_classes: Channels of the logits, background included.
        hidden_dim: Channels in between.
        dilation: Dilation of the two convolutions.
        skip_dim: Channels of the finer map, or None for no skip path.
        skip_hidden_dim: Channels that the finer map is reduced to.
        device: Where the parameters are made.
        dtype: Dtype of the parameters.

    Shape:
        - Input: ``(B, dim, h, w)``, with ``skip_dim`` also ``skip`` ``(B, skip_dim, h2, w2)``
        - Output: ``(B, num_classes, h, w)``, or ``(B, num_classes, h2, w2)`` with ``skip_dim``

    Raises:
        ValueError: If a size is not positive or a shape or device does not fit; if ``skip`` is
            given without ``skip_dim`` or missing with it; if an input is not finite.
        TypeError: If an input is not floating-point or, outside autocast, not of the dtype of the
            weights.

    Example:
        >>> import torch
        >>> LargeFOV(768, 21)(torch.randn(2, 768, 28, 28)).shape
        torch.Size([2, 21, 28, 28])
        >>> decoder = LargeFOV(64, 21, hidden_dim=32, skip_dim=16)
        >>> decoder(torch.randn(2, 64, 7, 7), skip=torch.randn(2, 16, 28, 28)).shape
        torch.Size([2, 21, 28, 28])
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        hidden_dim: int = 512,
        dilation: int = 5,
        skip_dim: int | None = None,
        skip_hidden_dim: int = 48,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "dim": dim,
            "num_classes": num_classes,
            "hidden_dim": hidden_dim,
            "dilation": dilation,
            "skip_dim": skip_dim,
            "skip_hidden_dim": skip_hidden_dim,
        }
        for name, value in sizes.items():
            if value is not None or name != "skip_dim":
                check_int(name, cast(int, value), least=1)
        self.dim, self.num_classes, self.skip_dim = dim, num_classes, skip_dim

        def conv(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Conv2d:
            padding = dilation * (kernel // 2)
            return nn.Conv2d(
                inputs,
                outputs,
                kernel,
                padding=padding,
                dilation=dilation,
                bias=False,
                device=device,
                dtype=dtype,
            )

        self.conv1 = conv(dim, hidden_dim, 3, dilation)
        self.conv2 = conv(hidden_dim, hidden_dim, 3, dilation)
        if skip_dim is not None:
            self.skip_proj = conv(skip_dim, skip_hidden_dim, 1)
            self.skip_norm = nn.GroupNorm(1, skip_hidden_dim, device=device, dtype=dtype)
            self.fuse = conv(hidden_dim + skip_hidden_dim, hidden_dim, 3)
        self.classifier = conv(hidden_dim, num_classes, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights that keep the variance of activations (He et al.)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                rectified = module is not self.classifier
                nn.init.kaiming_normal_(
                    module.weight, nonlinearity="relu" if rectified else "linear"
                )
        if self.skip_dim is not None:
            self.skip_norm.reset_parameters()

    def forward(self, features: Tensor, *, skip: Tensor | None = None) -> Tensor:
        """Return logits ``(B, num_classes, h, w)``, on the grid of ``skip`` where there is one."""
        check_shape("features", features, "B D h w", D=self.dim)
        check_floating("features", features)
        check_like_weight("features", features, self.conv1.weight)
        check_finite("features", features)
        x = self.conv2(self.conv1(features).relu()).relu()
        if self.skip_dim is None:
            if skip is not None:
                raise ValueError("skip must be left out without skip_dim, got a tensor.")
        else:
            x = self._join(x, skip, self.skip_dim)
        logits: Tensor = self.classifier(x)
        return logits

    def _join(self, x: Tensor, skip: Tensor | None, skip_dim: int) -> Tensor:
        if skip is None:
            raise ValueError(f"skip must be given with skip_dim={skip_dim}, got None.")
        check_shape("skip", skip, "B D h w", B=x.shape[0], D=skip_dim)
        check_floating("skip", skip)
        check_like_weight("skip", skip, self.conv1.weight)
        check_finite("skip", skip)
        fine = self.skip_norm(self.skip_proj(skip)).relu()
        coarse = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        joined: Tensor = self.fuse(torch.cat([coarse, fine], dim=1)).relu()
        return joined
