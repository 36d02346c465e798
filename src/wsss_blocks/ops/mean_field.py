r"""Mean-field inference of a dense CRF, whatever way its kernels are applied.

Paper: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NeurIPS 2011, https://arxiv.org/abs/1210.5644
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Kernel", "mean_field"]


class Kernel(Protocol):
    r"""Multiply maps with the matrix :math:`K_{ij} = \exp(-|f_i - f_j|^2 / 2)` of some features.

    Built from features ``(B, N, d)``, or ``(1, N, d)`` where all images share them.
    """

    def __call__(self, values: Tensor) -> Tensor:
        """Return ``K @ values`` for ``(B, V, N)``; the diagonal (1) is part of K."""
        ...


def mean_field(
    unary: Tensor,
    kernels: Sequence[tuple[Kernel, float]],
    iterations: int,
    *,
    valid: Tensor | None = None,
) -> Tensor:
    r"""Iterate mean field with Potts compatibility and symmetrically normalised kernels.

    .. math::

        Q \leftarrow \operatorname{softmax}\Bigl(-U + \sum_m w_m \tilde K_m Q\Bigr), \qquad
        \tilde K = D^{-1/2} K D^{-1/2}, \quad D = \operatorname{diag}(K \mathbf 1)

    starting from the softmax of :math:`-U`.

    Args:
        unary: Energies ``(B, G, C, N)``, float32 or float64; infinite where a class is ruled out.
        kernels: Un-normalised kernels over the N pixels, each with its weight.
        iterations: Number of updates.
        valid: Pixels that take part ``(B, N)``, bool. The others send and receive nothing: they
            keep the softmax of :math:`-U`.

    Returns:
        Probabilities ``(B, G, C, N)``.
    """
    batch, groups, channels, pixels = unary.shape
    scores = -unary.flatten(1, 2)
    ones = scores.new_ones(batch, 1, pixels)
    if valid is not None:
        ones = valid.to(scores.dtype).unsqueeze(1)
    with torch.autocast(unary.device.type, enabled=False):
        scaled = []
        for kernel, weight in kernels:
            # The sum is >= 1 where every pixel takes part; elsewhere the root needs the guard.
            root = ones / (kernel(ones) + 1e-20).sqrt()
            scaled.append((kernel, root, weight * root))
        probs = (-unary).softmax(2)
        for _ in range(iterations):
            total = scores
            for kernel, root, weighted in scaled:
                message = kernel(probs.flatten(1, 2) * root)
                total = torch.addcmul(total, message, weighted)
            probs = total.view(batch, groups, channels, pixels).softmax(2)
    return probs
