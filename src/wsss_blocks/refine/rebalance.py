"""Class rebalancing: better masks from a CAM, self-supervised and weakly supervised features.

Paper: Jo et al., "DHR: Dual Features-Driven Hierarchical Rebalancing", ECCV 2024,
https://arxiv.org/abs/2404.00380
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsss_blocks.refine import _rebalance_ids as ids
from wsss_blocks.refine import _rebalance_maps as steps
from wsss_blocks.refine._rebalance_checks import check_inputs, check_settings
from wsss_blocks.refine._rebalance_heat import ClassMass, balanced_heatmaps
from wsss_blocks.refine._rebalance_maps import RebalancedMask
from wsss_blocks.refine.contract import NoRefiner, Refiner

__all__ = ["ClassRebalancer", "RebalancedMask"]


class ClassRebalancer(nn.Module):
    r"""Rebalance the classes of masks by the features under them (DHR).

    For all images of a batch at once, whatever classes each has:

    1. Seeds (Eq. 1): the CAM, times its transport plan over the classes of the image, and the
       complement :math:`1 - \max_k` go through the refiner. Where a class wins, it overwrites the
       mask; where the complement wins, the mask stays.
    2. USS balancing (Eqs. 2, 3): centroids of the classes of this mask in self-supervised features,
       and their heat-maps :math:`H^{us}`, :func:`~wsss_blocks.refine.class_heatmaps`.
    3. WSS balancing (Eq. 4): for each group :math:`G` of classes with like centroids
       (:func:`~wsss_blocks.refine.class_groups`), :math:`H_G = H^{us}_G \odot f_{OT}(H^{ws}_G)`,
       with :math:`H^{ws}` the mean heat-map of the weakly supervised features, normalised, and
       :math:`f_{OT}` the plan of :func:`~wsss_blocks.refine.transport_refine`, scaled to [0, 1].
    4. :math:`H \odot f_{OT}(H)` over all classes, normalised, refined; the best class wins.

    One map of area weights serves all features. What is not given is left out, so that the rows of
    the paper's component tables are:

    ===================  ======  =================  ========  ========
    row                  cam     refine_seed        uss       wss
    ===================  ======  =================  ========  ========
    none                 None                       None      ()
    ot                   given   False              None      ()
    ot + refine          given   True               None      ()
    ot + refine + wss    given   True               None      given
    ot + refine + uss    given   True               given     ()
    full                 given   True               given     given
    ===================  ======  =================  ========  ========

    No gradient flows. Without a refiner, time is two passes over the features and a dozen over the
    masks; peak memory is what resized features take (none where they are on the grid), a few masks
    of int64 and ten maps ``(B, S, h, w)`` of the S classes of an image (on a GPU: of all of them).

    Reference:
        Jo et al., "DHR: Dual Features-Driven Hierarchical Rebalancing in Inter- and Intra-Class
        Regions for Weakly-Supervised Semantic Segmentation", ECCV 2024, Eqs. 1-4,
        https://arxiv.org/abs/2404.00380. Inferred from the supplement, the released code and a
        public review: the text of Eqs. 2-4 was not recovered.

    Note:
        The released training code cannot finish a step. Beside mending that, this differs from it
        (all inferred):

        - The complement takes part in the seed's refinement, in place of being appended after it.
          Else the one class of an image wins everywhere, and of two classes one always does.
        - Patches are weighed by area, not by their majority: a class smaller than half a patch
          keeps its centroid.
        - Groups are connected components, a class is in one at most.
        - Transport makes ``num_iters`` iterations, whatever the resolution, and is left out where
          there are fewer than two classes.
        - All features are brought to one grid: that of the first of ``wss_features``, which are
          wide, or of ``uss_features`` without them. The released code resizes all to the latter.
        - ``class_mass="area"`` is ours. Equal masses spread a small object over the share of the
          image that a class gets: on ``scenes``, whose digits fill a tenth of it, they destroy
          perfect masks.
        - With ``wss_features`` alone (the table's fourth row) :math:`H = H^{ws}`, and there are no
          groups.
        - Classes of the mask that ``labels`` exclude are not looked at.

    Args:
        refiner: Refines seeds and heat-maps; the paper's is ``DenseCRF.preset("dhr")``. None:
            bilinear resize.
        refine_seed: Use the refiner for the seeds too.
        threshold: :math:`\tau`, the cosine above which two classes are alike.
        size: Grid ``(h, w)`` of the heat-maps. None: see the note.
        class_mass: What each class gets of the cells in the transport problems of the heat-maps:
            ``"uniform"``, all the same, as in the released code, or ``"area"``, in proportion to
            its area in the mask they were pooled with.
        reg: Entropic regularisation of the transport.
        num_iters: Sinkhorn iterations.
        ignore_index: Id of pixels without a class.

    Shape:
        - images: ``(B, 3, H, W)``; cam: ``(B, K, h', w')``; mask: ``(B, H, W)``; labels: ``(B, K)``
        - features: ``(B, D, h, w)`` each, of any grid
        - output: :class:`RebalancedMask` of ``(B, H, W)`` int64 twice and ``(B, K+1, h, w)``

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> import torch
        >>> mask, labels = torch.zeros(1, 32, 32, dtype=torch.int64), torch.tensor([[1.0, 0.0]])
        >>> uss, wss = torch.rand(1, 6, 8, 8), (torch.rand(1, 9, 4, 4), torch.rand(1, 5, 4, 4))
        >>> rebalancer = ClassRebalancer()
        >>> images, cam = torch.rand(1, 3, 32, 32), torch.rand(1, 2, 4, 4)
        >>> out = rebalancer(images, cam, mask, labels, uss, wss)
        >>> out.mask.shape, out.heatmaps.shape
        (torch.Size([1, 32, 32]), torch.Size([1, 3, 4, 4]))
    """

    def __init__(
        self,
        *,
        refiner: Refiner | None = None,
        refine_seed: bool = True,
        threshold: float = 0.8,
        size: tuple[int, int] | None = None,
        class_mass: ClassMass = "uniform",
        reg: float = 0.1,
        num_iters: int = 20,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        check_settings(threshold, size, class_mass, reg, num_iters, ignore_index)
        self.refiner: Refiner = NoRefiner() if refiner is None else refiner
        self.refine_seed, self.threshold, self.size = refine_seed, threshold, size
        self.class_mass = class_mass
        self.reg, self.num_iters, self.ignore_index = reg, num_iters, ignore_index

    def forward(
        self,
        images: Tensor,
        cam: Tensor | None,
        mask: Tensor,
        labels: Tensor,
        uss_features: Tensor | None = None,
        wss_features: Sequence[Tensor] = (),
        *,
        box: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> RebalancedMask:
        """Return the rebalanced masks.

        Args:
            images: RGB images in [0, 1], ``(B, 3, H, W)``. Resize them, with the masks, to choose
                the resolution of the result.
            cam: Scores ``(B, K, h', w')`` of any range. None: no seeds.
            mask: Masks to start from, ``(B, H, W)`` integers: 0 background, 1..K, ignored.
            labels: Multi-hot image labels ``(B, K)``.
            uss_features: Features of a frozen self-supervised backbone. None: no USS balancing.
            wss_features: Features of the network that is trained (C4, C5). Empty: no WSS balancing.
            box: The part of each image that is not padding, ``(B, 4)`` integers top, left, bottom,
                right, in pixels of ``images``.
            valid: ``(B, h, w)`` bool on the grid of ``uss_features``, True where they are features
                of the image. None: wherever the box is.

        Returns:
            The masks; outside the box, and where an image has no class at all, ``ignore_index``.

        Raises:
            ValueError: If a shape, device or id does not fit, values are not finite, ``valid`` has
                no features to go with, or the refiner returns another shape.
            TypeError: If a dtype does not fit.
        """
        check_inputs(
            images, cam, mask, labels, uss_features, wss_features, box, valid, self.ignore_index
        )
        classes = labels.shape[1] + 1
        with torch.no_grad():
            initial = ids.class_ids(mask, classes, self.ignore_index)
            if cam is not None:
                refiner = self.refiner if self.refine_seed else NoRefiner()
                seed = steps.seed_classes(
                    cam, images, labels, refiner, box, reg=self.reg, num_iters=self.num_iters
                )
                initial = initial * (seed == 0) + seed
            initial = ids.in_box(initial, box, classes)
            before = ids.as_mask(initial, classes, self.ignore_index)
            every = [*wss_features, *(() if uss_features is None else (uss_features,))]
            if not every:
                return RebalancedMask(before, before, None)
            size = self.size or (every[0].shape[2], every[0].shape[3])
            inside = steps.valid_cells(box, images, size)
            if valid is not None and uss_features is not None:
                inside = inside & steps.whole_cells(valid, size)
                uss_features = uss_features.masked_fill(~valid.unsqueeze(1), 0)
            slots = steps.take_slots(initial, labels, inside)
            settings = self.threshold, self.class_mass, self.reg, self.num_iters
            maps = balanced_heatmaps(uss_features, wss_features, slots, inside, *settings)
            found = steps.decide(maps, slots, images, self.refiner, box, classes)
            after = ids.as_mask(found, classes, self.ignore_index)
            return RebalancedMask(after, before, steps.spread_slots(maps, slots, classes))

    def extra_repr(self) -> str:
        """Show the options."""
        names = ("refine_seed", "threshold", "size", "class_mass", "reg", "num_iters")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
