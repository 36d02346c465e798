"""One token per class for a vision transformer (MCTformer, arXiv 2203.02891; CTI, CVPR 2024)."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_int,
    check_same_device,
    check_shape,
)

__all__ = ["ClassTokens"]


class ClassTokens(nn.Module):
    r"""Hold the tokens that stand in front of the patches, one per class.

    Without ``generator`` token c is a free vector, :math:`T_c = t_c + e_c` with the embedding
    :math:`e_c` of its position. With ``generator`` all classes share one vector, and a perceptron
    :math:`g` (D to 5 D to n D, ReLU) says where each departs from it:

    .. math::

        T_c = g(t)_c + t + e_c \quad (c = 1 \dots K), \qquad T_0 = g(t)_0 + b + e_0

    where the background token, number 0, has a vector :math:`b` of its own. The generator reads a
    constant: it re-parameterises the tokens for training (16.2 million weights for D = 384 and
    K = 20, 60.5 for K = 80), and :meth:`fold` turns it into free vectors afterwards.

    Reference:
        Xu et al., "Multi-class Token Transformer for Weakly Supervised Semantic Segmentation"
        (MCTformer), CVPR 2022, section 3.1, https://arxiv.org/abs/2203.02891: free vectors. "Class
        Tokens Infusion for Weakly Supervised Semantic Segmentation" (CTI), CVPR 2024, released
        code: background and generator.

    Args:
        dim: D, as the transformer has it.
        num_classes: K, without background.
        background: a token for the background comes first.
        generator: make the tokens with the perceptron.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - Output: ``(n, D)``, n = K, with ``background`` K + 1

    Raises:
        ValueError: ``dim`` or ``num_classes`` is below 1.
        TypeError: one of them is no int.

    Example:
        >>> tokens = ClassTokens(8, 20, background=True, generator=True)
        >>> tokens().shape, sorted(dict(tokens.fold().named_parameters()))
        (torch.Size([21, 8]), ['position', 'tokens'])
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        background: bool = False,
        generator: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_int("dim", dim, least=1)
        check_int("num_classes", num_classes, least=1)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim, self.num_classes, self.background = dim, num_classes, background
        self.num_tokens = num_classes + int(background)
        self.position = nn.Parameter(torch.empty(self.num_tokens, dim, **factory))
        self.generator: nn.Sequential | None = None
        if generator:
            self.token = nn.Parameter(torch.empty(dim, **factory))
            if background:
                self.background_token = nn.Parameter(torch.empty(dim, **factory))
            self.generator = nn.Sequential(
                nn.Linear(dim, 5 * dim, **factory),
                nn.ReLU(),
                nn.Linear(5 * dim, self.num_tokens * dim, **factory),
            )
        else:
            self.tokens = nn.Parameter(torch.empty(self.num_tokens, dim, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all vectors anew (normal, cut at two standard deviations of 0.02); b becomes 0."""
        nn.init.trunc_normal_(self.position, std=0.02)
        if self.generator is None:
            nn.init.trunc_normal_(self.tokens, std=0.02)
            return
        nn.init.trunc_normal_(self.token, std=0.02)
        if self.background:
            nn.init.zeros_(self.background_token)
        for layer in self.generator:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def forward(self) -> Tensor:
        """Return the tokens ``(n, D)``, positions included."""
        if self.generator is None:
            return self.tokens + self.position
        own = self.token.expand(self.num_classes, -1)
        if self.background:
            own = torch.cat([self.background_token[None], own])
        made: Tensor = self.generator(self.token)
        return made.view_as(own) + own + self.position

    @torch.no_grad()
    def start_from(self, token: Tensor, position: Tensor | None = None) -> Self:
        """Copy a trained class token ``(D,)`` and its position ``(D,)`` to all; return itself.

        A generator keeps its weights and the background its own vector. Without ``position`` the
        embeddings become 0.
        """
        for name, x in (("token", token), ("position", position)):
            if x is not None:
                check_shape(name, x, "D", D=self.dim)
                check_floating(name, x)
                check_same_device(name, x, "the tokens", self.position)
                check_finite(name, x)
        (self.tokens if self.generator is None else self.token).copy_(token)
        self.position.copy_(self.position.new_zeros(self.dim) if position is None else position)
        return self

    @torch.no_grad()
    def fold(self) -> "ClassTokens":
        """Return free vectors with the same values, their positions 0: no generator to carry."""
        like = self.position
        folded = ClassTokens(
            self.dim,
            self.num_classes,
            background=self.background,
            device=like.device,
            dtype=like.dtype,
        ).train(self.training)
        folded.tokens.copy_(self())
        folded.position.zero_()
        return folded

    def extra_repr(self) -> str:
        """Show sizes and kind."""
        return f"{self.dim}, {self.num_classes}, background={self.background}"
