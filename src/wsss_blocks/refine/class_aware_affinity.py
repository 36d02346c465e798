"""Class-aware attention-based affinity: spread each class over its boxes along attention.

Paper: Lin et al., "CLIP is Also an Efficient Segmenter" (CLIP-ES), CVPR 2023,
https://arxiv.org/abs/2212.09506
"""

import torch
from torch import Tensor, nn

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_fraction,
    check_int,
    check_labels,
    check_non_negative,
    check_same_device,
    check_shape,
)
from wsss_blocks.refine._component_boxes import fill_component_boxes
from wsss_blocks.refine._present import put_back
from wsss_blocks.refine._transport import present_first

__all__ = ["ClassAwareAffinity", "class_aware_affinity"]


def class_aware_affinity(
    cam: Tensor,
    attention: Tensor,
    labels: Tensor,
    *,
    threshold: float = 0.4,
    rounds: int = 3,
    power: int = 2,
) -> Tensor:
    r"""Refine each class map by attention between patches, inside boxes around its strong parts.

    .. math::

        M_c' = A^t \,(B_c \odot M_c), \qquad A = \frac{D + D^\top}{2}, \qquad
        D = \operatorname{diag}(u)\, W \operatorname{diag}(v)

    with :math:`W` the attention, scaled :math:`r` times so that its columns, then its rows sum to
    1, and :math:`B_c` 1 inside the bounding boxes of the 8-connected components of
    :math:`M_c > \lambda \max M_c`.

    The affinity depends on the image only: it is balanced once for all classes, by the vectors
    :math:`u, v`, and applied to all maps at once; neither :math:`D` nor a power of :math:`A` is
    formed. With P present classes time is O(B N^2 (r + t P)), and peak memory beside the maps one
    float32 copy of the attention if it is of half precision, else none.

    Components are found by scipy on the host: a GPU has to wait once per call.

    Reference:
        Lin et al., "CLIP is Also an Efficient Segmenter: A Text-Driven Approach for Weakly
        Supervised Semantic Segmentation", CVPR 2023, section 3.4,
        https://arxiv.org/abs/2212.09506. The number of rounds (3), the power (2) and that the mean
        of the last 8 layers' attentions is taken are those of the authors' code.

    Note:
        The released code rounds scores to bytes before the threshold and cuts boxes that touch the
        right or lower border one cell short; here neither. It builds the affinity anew for each
        class, and squares it. The result is not normalised: :func:`~wsss_blocks.cam.normalize_cam`
        follows there.

    Args:
        cam: Scores >= 0, ``(B, K, h, w)``.
        attention: From patch (row) to patch, ``(B, N, N)`` with N = h w, >= 0: the mean over heads
            and layers, without class token, ``torch.stack(maps).mean(0)[:, 1:, 1:]``.
        labels: Multi-hot image labels ``(B, K)``.
        threshold: :math:`\lambda`, a share of the maximum of each map.
        rounds: Number :math:`r` of column and row normalisations.
        power: Number :math:`t` of multiplications with :math:`A`.

    Returns:
        Maps ``(B, K, h, w)`` in the dtype of ``cam``; absent classes are 0. Differentiable in
        ``cam`` and ``attention``, the boxes being constants.

    Raises:
        ValueError: If a shape, device or option does not fit, a score is negative or not finite,
            or ``labels`` are not multi-hot.
        TypeError: If ``cam`` or ``attention`` is not floating point.

    Example:
        >>> import torch
        >>> cam = torch.tensor([[[[0.9, 0.1, 0.0, 0.3]]]])
        >>> attention = torch.tensor([[4.0, 4, 1, 1], [4, 4, 1, 1], [1, 1, 4, 4], [1, 1, 4, 4]])
        >>> class_aware_affinity(cam, attention[None], torch.ones(1, 1)).flatten()
        tensor([0.3060, 0.3060, 0.1440, 0.1440])
    """
    check_shape("cam", cam, "B K h w")
    check_floating("cam", cam)
    batch, classes, height, width = cam.shape
    n = height * width
    check_shape("attention", attention, "B N N", B=batch, N=n)
    check_floating("attention", attention)
    check_same_device("attention", attention, "cam", cam)
    check_labels(labels, batch=batch, num_classes=classes, device=cam.device)
    for name, scores in (("cam", cam), ("attention", attention)):
        check_finite(name, scores)
        check_non_negative(name, scores)
    _check_options(threshold, rounds, power)

    present, order = present_first(labels > 0)
    dtype = torch.promote_types(at_least_float32(cam).dtype, at_least_float32(attention).dtype)
    maps, weights = cam.to(dtype), attention.to(dtype)
    if order is not None:
        maps = maps.gather(1, order[:, :, None, None].expand(-1, -1, height, width))
    maps = maps * present[:, :, None, None]
    top = maps.detach().amax((2, 3), keepdim=True)
    strong = (maps.detach() > threshold * top).flatten(0, 1)
    boxes = fill_component_boxes(strong).view_as(maps)
    with torch.autocast(cam.device.type, enabled=False):
        left, right = _balance(weights, rounds)
        x = (maps * boxes).flatten(2).mT
        for _ in range(power):
            x = (left * (weights @ (right * x)) + right * (weights.mT @ (left * x))) / 2
    return put_back(x.mT.reshape(maps.shape).unsqueeze(1), order, like=cam)


class ClassAwareAffinity(nn.Module):
    """Configured :func:`class_aware_affinity`.

    Args:
        threshold: Share of the maximum of a map above which boxes are drawn.
        rounds: Number of column and row normalisations.
        power: Number of multiplications with the affinity.

    Shape:
        - cam: ``(B, K, h, w)``; attention: ``(B, N, N)``; labels: ``(B, K)``
        - output: ``(B, K, h, w)``

    Example:
        >>> import torch
        >>> refine = ClassAwareAffinity()
        >>> refine(torch.rand(2, 5, 4, 6), torch.rand(2, 24, 24), torch.ones(2, 5)).shape
        torch.Size([2, 5, 4, 6])
    """

    def __init__(self, *, threshold: float = 0.4, rounds: int = 3, power: int = 2) -> None:
        super().__init__()
        _check_options(threshold, rounds, power)
        self.threshold, self.rounds, self.power = threshold, rounds, power

    def forward(self, cam: Tensor, attention: Tensor, labels: Tensor) -> Tensor:
        """Return the refined maps; arguments as in :func:`class_aware_affinity`."""
        return class_aware_affinity(
            cam,
            attention,
            labels,
            threshold=self.threshold,
            rounds=self.rounds,
            power=self.power,
        )

    def extra_repr(self) -> str:
        """Show the options."""
        return f"threshold={self.threshold}, rounds={self.rounds}, power={self.power}"


def _check_options(threshold: float, rounds: int, power: int) -> None:
    check_fraction("threshold", threshold)
    check_int("rounds", rounds, least=0)
    check_int("power", power, least=0)


def _balance(weights: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Factors ``(B, N, 1)`` of rows and columns that make columns, then rows sum to 1."""
    left = right = weights.new_ones(weights.shape[0], weights.shape[1], 1)
    for _ in range(rounds):
        right = _inverse(weights.mT @ left)
        left = _inverse(weights @ right)
    return left, right


def _inverse(sums: Tensor) -> Tensor:
    # A patch that nothing attends to has a factor, which multiplies zeros.
    return sums.masked_fill(sums < torch.finfo(sums.dtype).tiny, 1).reciprocal()
