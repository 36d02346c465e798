"""Transport refinement: a class map times how strongly transport ties its cells to the class.

Paper: Jo et al., "DHR: Dual Features-Driven Hierarchical Rebalancing", ECCV 2024,
https://arxiv.org/abs/2404.00380
"""

from torch import Tensor, nn

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_labels,
    check_same_device,
    check_shape,
    check_valid,
)
from wsss_blocks.backbones.features import Features
from wsss_blocks.cam.box import box_to_valid
from wsss_blocks.refine import _present, _transport

__all__ = ["TransportRefine", "transport_refine"]


def transport_refine(
    cam: Tensor,
    labels: Tensor,
    *,
    guide: Tensor | None = None,
    reg: float = 0.1,
    num_iters: int = 20,
    valid: Tensor | None = None,
    official: bool = False,
) -> Tensor:
    r"""Weight class activation maps by an optimal transport plan between cells and classes.

    With :math:`A_n` the map of class :math:`n` and :math:`S_n` that of the guide, both after a
    ReLU and divided by their maximum, over the :math:`M` valid cells and :math:`N` present classes:

    .. math::

        A_{mn} \hat T_{mn}, \qquad
        \hat T_{mn} = \frac{T_{mn} - \min_m T_{mn}}{\max_m T_{mn} - \min_m T_{mn}}

        T = \operatorname{diag}(r)\, e^{(S - 1) / \epsilon} \operatorname{diag}(c), \qquad
        T \mathbf 1 = \tfrac1M \mathbf 1, \quad T^\top \mathbf 1 = \tfrac1N \mathbf 1

    Each class is given the same mass, so a weak class keeps the cells where it is relatively
    strong, and a strong one loses those.

    Reference:
        Jo et al., "DHR: Dual Features-Driven Hierarchical Rebalancing in Inter- and Intra-Class
        Regions for Weakly-Supervised Semantic Segmentation", ECCV 2024, Eq. 1 (seeds) and, with
        ``guide``, Eq. 4. https://arxiv.org/abs/2404.00380. Inferred from the released code and a
        public review: the text of the paper was not recovered.

    Note:
        Where the released code takes maxima over padding too, this takes them over valid cells.
        Where it stops by a rule that depends on the number of cells, this makes ``num_iters``
        iterations (20 leave factors within about 1e-3 of their limit). Where it clips the range of
        the plan at 1e-5, which shrinks large grids and scales up the rounding noise of constant
        maps, a range below 0.1 % of the largest entry gives factors towards 1 here. Below two
        present classes the factor is 1: there is nothing to compete for. Its seeds have no channel
        for "none of these" either: append one with :func:`add_background`.

        ``official=True`` brings back their stop (mean change of the row scaling, which is not
        normalised, below 1e-2; at most 100 iterations) and clip, for parity only. On dense maps of
        32 x 32 cells or more it stops after 2 iterations with factors 0.15 off: the result depends
        on the resolution.

        An iteration takes O(B M N) time. Peak memory is about eight tensors ``(B, N, M)`` and the
        result (with gradients about thirty; measured on a CPU: N = K on a GPU).

    Args:
        cam: Scores ``(B, K, h, w)`` of any range, before or after normalisation.
        labels: Multi-hot image labels ``(B, K)``.
        guide: Scores ``(B, K, h, w)`` that make the plan, normalised alike. None: ``cam`` itself.
        reg: Entropic regularisation :math:`\epsilon`, on the scale of the cost :math:`1 - S`.
        num_iters: Sinkhorn iterations (rows, then columns); not used where ``official``.
        valid: ``(B, h, w)`` bool, True where a cell is image. None: all cells are.
        official: Stop and clip as the released code does; needs ``reg`` of at least 0.05.

    Returns:
        ``(B, K, h, w)`` in [0, 1] and in the dtype of ``cam``; absent classes and cells that are
        not valid are 0. Differentiable in ``cam`` and ``guide``, through the plan too.

    Raises:
        ValueError: If a shape, device or option does not fit, ``labels`` are not multi-hot, or
            scores are not finite where ``valid``.
        TypeError: If scores are not floating point or ``valid`` is not bool.

    Example:
        >>> import torch
        >>> cam = torch.tensor([[[[8.0, 6.0, 1.0]], [[0.0, 2.0, 2.0]]]])
        >>> transport_refine(cam, torch.ones(1, 2))[0, :, 0]
        tensor([[1.0000, 0.3726, 0.0000],
                [0.0000, 0.5032, 1.0000]])
    """
    check_shape("cam", cam, "B K h w")
    check_floating("cam", cam)
    batch, classes, height, width = cam.shape
    check_labels(labels, batch=batch, num_classes=classes, device=cam.device)
    check_valid(valid, batch=batch, size=(height, width))
    inside = None
    if valid is not None:
        check_same_device("valid", valid, "cam", cam)
        inside = valid.unsqueeze(1)
    check_finite("cam", cam, where=inside)
    if guide is not None:
        check_shape("guide", guide, "B K h w", B=batch, K=classes, h=height, w=width)
        check_floating("guide", guide)
        check_same_device("guide", guide, "cam", cam)
        check_finite("guide", guide, where=inside)
    _transport.check_options(reg, num_iters, official=official)

    present, order = _transport.present_first(labels > 0)
    scores = _transport.normalised(cam, order, valid)
    factor = _transport.transport_factor(
        (scores if guide is None else _transport.normalised(guide, order, valid)).flatten(2),
        present,
        None if valid is None else valid.flatten(1),
        reg=reg,
        num_iters=num_iters,
        official=official,
    )
    refined = (scores * factor.view_as(scores)).unsqueeze(1)
    return _present.put_back(refined, order, like=cam)


class TransportRefine(nn.Module):
    """Refine maps with the plan of :func:`transport_refine`, background being one more class.

    The plan is made at the resolution of the maps, over background and the present classes; the
    weighted maps are resized bilinearly (``align_corners=False``). Colours are not looked at.

    Note:
        Scores are taken as they are, the cost is 1 - maps: dividing by the maximum would turn a
        constant background into 1, whatever its level. That background competes in the plan follows
        later code of the authors (inferred: the paper is not known to do it).

    Args:
        reg: Entropic regularisation, on the scale of the scores.
        num_iters: Sinkhorn iterations.

    Shape:
        - images: ``(B, 3, H, W)``; maps: ``(B, K+1, h, w)`` or ``(B, G, K+1, h, w)``
        - output: ``(B, K+1, H, W)`` or ``(B, G, K+1, H, W)``

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> import torch
        >>> refiner = TransportRefine()
        >>> labels = torch.tensor([[1.0, 0.0]])
        >>> refiner(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 4, 4), labels=labels).shape
        torch.Size([1, 3, 32, 32])
    """

    def __init__(self, *, reg: float = 0.1, num_iters: int = 20) -> None:
        super().__init__()
        _transport.check_options(reg, num_iters)
        self.reg, self.num_iters = reg, num_iters

    def forward(
        self,
        images: Tensor,
        maps: Tensor,
        *,
        labels: Tensor | None = None,
        box: Tensor | None = None,
        features: Features | None = None,
    ) -> Tensor:
        """Return refined maps at the size of the images.

        Arguments as in :class:`~wsss_blocks.refine.Refiner`; ``features`` are not used. Cells whose
        centre is outside ``box`` do not take part and are 0 before the resize.
        """
        _present.check_refiner_inputs(images, maps, labels, box)
        size = (images.shape[-2], images.shape[-1])
        taken = _present.take_present(_present.as_sets(maps), labels)
        _, groups, _, height, width = taken.maps.shape
        valid = None
        if box is not None:
            valid = box_to_valid(box, image_size=size, size=(height, width)).flatten(1)
            valid = valid.repeat_interleave(groups, 0)
        scores = at_least_float32(taken.maps)
        factor = _transport.transport_factor(
            scores.flatten(0, 1).flatten(2),
            taken.mask.repeat_interleave(groups, 0),
            valid,
            reg=self.reg,
            num_iters=self.num_iters,
        )
        resized = _present.resize_sets(scores * factor.view_as(scores), size)
        return _present.put_back(resized, taken.channels, like=maps)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"reg={self.reg}, num_iters={self.num_iters}"
