"""Projection into the joint image-text space (DALNet, arXiv 2409.15801; SimSeg, CVPR 2023)."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsss_blocks._numerics import l2_normalize
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_int,
    check_like_weight,
    check_shape,
    check_tensor,
)

__all__ = ["ProjectionHead"]


class ProjectionHead(nn.Module):
    r"""Project class tokens, patch tokens or feature maps by one linear layer or a small MLP.

    .. math::

        v = W z \quad\text{or}\quad v = W_2 \operatorname{GELU}(W_1 z), \qquad
        \text{optionally } v \leftarrow v / \lVert v \rVert_2

    One head serves class token and patch tokens, so that both live in the same space.

    Reference:
        DALNet, ECCV 2024, "projected vision-language embedding space":
        https://arxiv.org/abs/2409.15801; that it is one linear layer into the space of the text
        encoder is inferred. SimSeg, CVPR 2023, projects each token with one bias-free linear layer
        before it pools: https://doi.org/10.1109/CVPR52729.2023.00683.

    Args:
        dim: number of input channels.
        out_dim: number of channels of the joint space.
        hidden_dim: width of the hidden layer; a single linear layer if None.
        bias: add a bias in each layer. Off, as in CLIP and SimSeg.
        normalize: return unit vectors, computed in at least float32.
        device: device of the weights.
        dtype: dtype of the weights.

    Shape:
        - input: ``(B, D)``, ``(B, N, D)`` or ``(B, D, h, w)``; four axes are always a map
        - output: the same with ``out_dim`` in place of D

    Raises:
        ValueError: a size is less than 1.

    Example:
        >>> import torch
        >>> head = ProjectionHead(768, 512, normalize=True)
        >>> head(torch.randn(2, 196, 768)).shape
        torch.Size([2, 196, 512])
        >>> head(torch.randn(2, 768, 14, 14)).shape
        torch.Size([2, 512, 14, 14])
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        hidden_dim: int | None = None,
        bias: bool = False,
        normalize: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("dim", dim), ("out_dim", out_dim), ("hidden_dim", hidden_dim)):
            if size is not None or name != "hidden_dim":
                check_int(name, cast(int, size), least=1)
        self.dim, self.out_dim, self.normalize = dim, out_dim, normalize
        self.hidden: nn.Linear | None = None
        if hidden_dim is not None:
            self.hidden = nn.Linear(dim, hidden_dim, bias=bias, device=device, dtype=dtype)
        self.out = nn.Linear(hidden_dim or dim, out_dim, bias=bias, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw all layers as :class:`torch.nn.Linear` does."""
        if self.hidden is not None:
            self.hidden.reset_parameters()
        self.out.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Project the channels of ``x``.

        Args:
            x: tokens ``(B, D)`` or ``(B, N, D)``, or a map ``(B, D, h, w)``.

        Returns:
            Tensor like ``x`` with ``out_dim`` channels; a zero vector stays zero when normalised.

        Raises:
            ValueError: the shape or device does not fit, or ``x`` is not finite.
            TypeError: ``x`` is not floating-point or, outside autocast, not of the dtype of the
                weights.
        """
        check_tensor("x", x)
        axes = {2: "B D", 4: "B D h w"}.get(x.ndim, "B N D")
        check_shape("x", x, axes, D=self.dim)
        check_floating("x", x)
        check_like_weight("x", x, self.out.weight)
        check_finite("x", x)
        tokens = x.movedim(1, -1) if x.ndim == 4 else x
        if self.hidden is not None:
            tokens = F.gelu(self.hidden(tokens))
        tokens = self.out(tokens)
        if self.normalize:
            tokens = l2_normalize(tokens).to(tokens.dtype)
        return tokens.movedim(-1, 1) if x.ndim == 4 else tokens

    def extra_repr(self) -> str:
        """Show the settings in the repr."""
        return f"{self.dim}, {self.out_dim}, normalize={self.normalize}"
