"""The projection head of self-distillation (DINO, ICCV 2021), as ToCo has it on class tokens."""

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

__all__ = ["DINOHead"]


class DINOHead(nn.Module):
    r"""Project tokens by a perceptron with a narrow, normalised end, and unit prototypes.

    .. math::

        u = W_3 \operatorname{GELU}(W_2 \operatorname{GELU}(W_1 z)), \qquad
        v_j = \frac{w_j^\top u}{\lVert w_j \rVert \, \lVert u \rVert}

    with biases in the three layers of the perceptron. Follow the head with
    :class:`~wsss_blocks.memory.EMA` for a teacher.

    Reference:
        "Emerging Properties in Self-Supervised Vision Transformers" (DINO, appendix C, with the
        norm of the last weights fixed to 1), https://arxiv.org/abs/2104.14294. ToCo's sizes are
        the defaults, https://arxiv.org/abs/2303.01267.

    Args:
        dim: number of input channels.
        out_dim: number of prototypes.
        hidden_dim: width of the two hidden layers.
        bottleneck_dim: channels that are normalised.
        device: device of the weights.
        dtype: dtype of the weights.

    Shape:
        - input: ``(B, D)`` or ``(B, N, D)``
        - output: the same with ``out_dim`` in place of D, in ``[-1, 1]``

    Raises:
        ValueError: a size is less than 1.

    Example:
        >>> import torch
        >>> head = DINOHead(384, 64, hidden_dim=128, bottleneck_dim=32)
        >>> head(torch.randn(2, 10, 384)).shape
        torch.Size([2, 10, 64])
    """

    def __init__(
        self,
        dim: int,
        out_dim: int = 1024,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "out_dim": out_dim, "hidden_dim": hidden_dim}
        for name, size in (sizes | {"bottleneck_dim": bottleneck_dim}).items():
            check_int(name, size, least=1)
        self.dim, self.out_dim = dim, out_dim
        self.layers = nn.ModuleList(
            nn.Linear(old, new, device=device, dtype=dtype)
            for old, new in ((dim, hidden_dim), (hidden_dim,) * 2, (hidden_dim, bottleneck_dim))
        )
        empty = torch.empty(out_dim, bottleneck_dim, device=device, dtype=dtype)
        self.prototypes = nn.Parameter(empty)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights from a truncated normal, as DINO does; biases are 0."""
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Project tokens.

        Args:
            x: ``(B, D)`` or ``(B, N, D)``.

        Returns:
            Tensor like ``x`` with ``out_dim`` channels; 0 where the narrow end is a zero vector.

        Raises:
            ValueError: the shape or device does not fit, or ``x`` is not finite.
            TypeError: ``x`` is not floating-point or, outside autocast, not of the dtype of the
                weights.
        """
        check_tensor("x", x)
        check_shape("x", x, "B D" if x.ndim == 2 else "B N D", D=self.dim)
        check_floating("x", x)
        check_like_weight("x", x, self.prototypes)
        check_finite("x", x)
        for number, layer in enumerate(self.layers):
            x = layer(F.gelu(x) if number else x)
        unit = l2_normalize(x).to(x.dtype)
        return F.linear(unit, l2_normalize(self.prototypes).to(x.dtype))

    def extra_repr(self) -> str:
        """Show the settings in the repr."""
        return f"{self.dim}, {self.out_dim}"
