"""A decoder over all blocks of a frozen transformer (WeCLIP, CVPR 2024)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_fraction,
    check_int,
    check_like_weight,
    check_sequence,
    check_shape,
)

__all__ = ["AllBlocksDecoder"]


class AllBlocksDecoder(nn.Module):
    r"""Fuse the maps of several blocks by perceptrons, then classify behind a small transformer.

    .. math::

        F = W_f \bigl[\mathrm{MLP}_1(x_1), \dots, \mathrm{MLP}_L(x_L)\bigr], \qquad
        Z = W_c \, T_n(\cdots T_1(F)), \qquad
        \mathrm{MLP}_l(x) = B_l \operatorname{ReLU}(A_l x)

    position by position but for the transformer layers :math:`T`, in which all positions of an
    image attend to each other:

    .. math::

        T(x) = y + \mathrm{FF}(\mathrm{LN}(y)), \qquad y = x + \mathrm{MHA}(\mathrm{LN}(x)), \qquad
        \mathrm{FF}(x) = B \operatorname{GELU}(A x)

    There is no position embedding: the encoder's is in its tokens, and any grid will do.

    Reference:
        Zhang et al., "Frozen CLIP: A Strong Backbone for Weakly Supervised Semantic Segmentation"
        (WeCLIP), CVPR 2024, section 3.3 (number inferred), https://arxiv.org/abs/2406.11189. The
        fusion of SegFormer, https://arxiv.org/abs/2105.15203, over blocks instead of stages.
        Sizes are those of the released code.

    Note:
        The released code fuses the blocks but for the last. Its transformer's activation is
        inferred.

    Args:
        dims: Channels of each block's map.
        num_classes: Channels of the logits, background included.
        hidden_dim: Channels of the fused map.
        layers: Number of transformer layers; 0 classifies the fused map.
        heads: Of the attention; must divide ``hidden_dim``.
        mlp_ratio: Hidden channels of the feed-forward network per channel.
        dropout: Share of the fused channels that are dropped in training.
        device: Where the parameters are made.
        dtype: Dtype of the parameters.

    Shape:
        - Input: L maps ``(B, dims[l], h, w)``
        - Output: ``(B, num_classes, h, w)``; of :meth:`fuse` ``(B, hidden_dim, h, w)``

    Raises:
        ValueError: If a size is not positive, ``heads`` does not divide ``hidden_dim``, ``dims``
            is empty, ``dropout`` is not in [0, 1], there are not as many maps as ``dims``, or a
            shape, device or value of one does not fit.
        TypeError: If a map is not floating-point or, outside autocast, not of the dtype of the
            weights.

    Example:
        >>> import torch
        >>> decoder = AllBlocksDecoder([32, 32, 32], 21, hidden_dim=16, heads=2)
        >>> maps = [torch.randn(2, 32, 7, 9) for _ in range(3)]
        >>> decoder(maps).shape, decoder.fuse(maps).shape
        (torch.Size([2, 21, 7, 9]), torch.Size([2, 16, 7, 9]))
    """

    def __init__(
        self,
        dims: Sequence[int],
        num_classes: int,
        *,
        hidden_dim: int = 256,
        layers: int = 3,
        heads: int = 8,
        mlp_ratio: int = 4,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sequence("dims", dims)
        if not len(dims):
            raise ValueError("dims must hold the channels of at least one block, got none.")
        for dim in dims:
            check_int("dims", dim, least=1)
        sizes = {"num_classes": num_classes, "hidden_dim": hidden_dim, "heads": heads}
        for name, value in (sizes | {"mlp_ratio": mlp_ratio}).items():
            check_int(name, value, least=1)
        check_int("layers", layers, least=0)
        check_fraction("dropout", dropout)
        if hidden_dim % heads:
            raise ValueError(f"heads must divide hidden_dim={hidden_dim}, got {heads}.")
        self.dims, self.num_classes, self.hidden_dim = tuple(dims), num_classes, hidden_dim
        self.dropout = dropout

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 1, device=device, dtype=dtype)

        self.perceptrons = nn.ModuleList(
            nn.Sequential(conv(dim, hidden_dim), nn.ReLU(), conv(hidden_dim, hidden_dim))
            for dim in dims
        )
        self.fusion = conv(hidden_dim * len(dims), hidden_dim)
        self.layers = nn.ModuleList(
            _Layer(hidden_dim, heads, mlp_ratio * hidden_dim, device=device, dtype=dtype)
            for _ in range(layers)
        )
        self.classifier = conv(hidden_dim, num_classes)

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the fused map ``(B, hidden_dim, h, w)``, of which affinities are made, too."""
        check_sequence("maps", maps)
        if len(maps) != len(self.dims):
            raise ValueError(f"maps must hold one map for each of {self.dims}, got {len(maps)}.")
        found = []
        for perceptron, x, dim in zip(self.perceptrons, maps, self.dims, strict=True):
            check_shape("maps", x, "B D h w", D=dim)
            batch, _, height, width = maps[0].shape
            check_shape("maps", x, "B D h w", B=batch, D=dim, h=height, w=width)
            check_floating("maps", x)
            check_like_weight("maps", x, self.fusion.weight)
            check_finite("maps", x)
            found.append(perceptron(x))
        fused: Tensor = self.fusion(torch.cat(found, 1))
        return F.dropout2d(fused, self.dropout, self.training)

    def decode(self, fused: Tensor) -> Tensor:
        """Return the logits ``(B, num_classes, h, w)`` of what :meth:`fuse` returned."""
        check_shape("fused", fused, "B D h w", D=self.hidden_dim)
        check_floating("fused", fused)
        check_finite("fused", fused)
        batch, dim, height, width = fused.shape
        x = fused.flatten(2).mT
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.classifier(x.mT.reshape(batch, dim, height, width))
        return logits

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the logits; shapes as the class says."""
        return self.decode(self.fuse(maps))


class _Layer(nn.Module):
    """One transformer layer on tokens ``(B, N, D)``, normalised first."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.qkv = nn.Linear(dim, 3 * dim, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.norm2 = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.fc1 = nn.Linear(dim, hidden, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.proj(mixed)
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out
