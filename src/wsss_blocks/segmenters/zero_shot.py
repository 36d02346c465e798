"""Masks of named classes without any mask in training: SimSeg's segmentation, CVPR 2023."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_blocks._evaluating import evaluating
from wsss_blocks._numerics import at_least_float32, l2_normalize
from wsss_blocks._validate import (
    check_choice,
    check_fraction,
    check_images,
    check_int,
    check_labels,
    check_sequence,
    check_shape,
)
from wsss_blocks.backbones import TextBank
from wsss_blocks.metrics import EvaluationProtocol
from wsss_blocks.refine import DenseCRF, MorphologicalClosing, Refiner
from wsss_blocks.segmenters._class_masks import (
    RankedClasses,
    class_maps,
    cover,
    cut,
    rank_classes,
)
from wsss_blocks.segmenters._images import ImageLike, as_image
from wsss_blocks.segmenters._inference import squeezed
from wsss_blocks.segmenters.class_selection import class_threshold, select_classes
from wsss_blocks.segmenters.name_bank import ImageTextModel, zero_shot_bank
from wsss_blocks.segmenters.published_protocols import ProtocolName, zero_shot_protocol
from wsss_blocks.segmenters.segmentation import Segmentation, class_colours

__all__ = ["ScoredSegmentation", "ZeroShotSegmenter"]


class ScoredSegmentation(NamedTuple):
    """Hold a segmentation and why its classes were taken.

    Attributes:
        segmentation: the mask of one image.
        names: what was scored, the background first where it was.
        scores: ``(C,)`` cosines of the image and each name.
        threshold: what a class had to reach; None without a threshold.
        taken: ``(C,)`` bool, the classes that were segmented.
    """

    segmentation: Segmentation
    names: tuple[str, ...]
    scores: Tensor
    threshold: float | None
    taken: Tensor


class ZeroShotSegmenter(nn.Module):
    r"""Segment images by class names, with a model that puts images and texts into one space.

    The image's vector chooses the classes (:func:`select_classes`). The patches of the image draw
    each of them: with unit patches :math:`F_i` and text rows :math:`U_c`,

    .. math::

        A_c = \operatorname{minmax}_i \, \operatorname{up}(F_i \cdot U_c), \qquad
        M_c = \operatorname{close}\bigl(\operatorname{refine}(1 - A_c, A_c)_1 >
            \operatorname{refine}(1 - A_c, A_c)_0\bigr), \qquad
        y = \operatorname*{argmax}_{c \,:\, M_c = 1} s_c

    with :math:`s_c` the cosine of image and class: where masks overlap, the likelier class covers
    the other, and what no mask covers is background. Each class is a binary problem of its own;
    all of an image share the refiner's affinities. Without a refiner :math:`A_c` is cut at
    ``threshold``.

    Reference:
        Yi et al., "A Simple Framework for Text-Supervised Semantic Segmentation", CVPR 2023,
        section 4.1 and the released code (refiner, closing and background prompt are in the code
        only); https://doi.org/10.1109/CVPR52729.2023.00683.

    Note:
        Cut at 0.5 without a CRF: inferred, the variant is in the paper's table 4 alone. Overlaps go
        by the order of scores; the released code multiplies mask and score, so that there a class
        of negative cosine never shows. Images shrink with antialiasing, as pillow's bilinear does
        (inferred). A class that scores below the threshold is lost however clear its map is: SimSeg
        reports "person" (0.15) beside "horse" (0.25). Look at :meth:`segment_scored` where a class
        is missing, lower ``sigma``, or set it None for a short list of names: see
        :func:`class_threshold`.

    Args:
        model: an :class:`ImageTextModel`, as :class:`~wsss_blocks.backbones.OpenCLIPModel`.
        bank: rows of the model's texts, as :func:`zero_shot_bank` makes them; of its background
            rows the first takes part.
        top: how many of the best scores give mean and deviation.
        sigma: deviations above the mean that a class needs; None takes the ``most`` best.
        most: how many classes an image can have.
        size: side of the square that the image is squeezed into; None shows it as it is.
        upsampling: of the patch grid, ``"nearest"`` or ``"bilinear"``.
        similarity: of patches and texts: ``"cosine"``, or ``"dot"`` products with patches of the
            length that they have.
        threshold: of a map in [0, 1] where there is no refiner.
        refiner: gets maps ``(B, most, 2, H, W)``, background first.
        closing: side of the square of :func:`~wsss_blocks.refine.morphological_closing`; 1 does
            without.
        score_background: let the background row take part in the choice of classes.
        palette: ``(n, 3)`` uint8, default :func:`~wsss_blocks.data.voc_palette`.
        protocol: what the masks are called when they are evaluated; default one without a data set.

    Shape:
        - images: ``(B, 3, H, W)``, RGB in ``[0, 1]``
        - masks: ``(B, H, W)`` int64: 0 background, ``1..K`` in the order of ``bank.names``

    Raises:
        ValueError: an option is out of range, there is no background row to score, or the palette
            does not cover the classes.
        TypeError: an option is of another type.

    Example:
        >>> import open_clip
        >>> from wsss_blocks.backbones import OpenCLIPModel
        >>> vision = open_clip.CLIPVisionCfg(layers=1, width=64, image_size=32, patch_size=8)
        >>> text = open_clip.CLIPTextCfg(width=8, heads=1, layers=1)
        >>> model = OpenCLIPModel(open_clip.CLIP(6, vision, text))
        >>> bank = zero_shot_bank(model, ["cat", "dog"], templates=["a photo of a {}."])
        >>> segmenter = ZeroShotSegmenter(model, bank, size=64, sigma=None)
        >>> segmenter.segment(torch.rand(3, 50, 70)).mask.shape
        torch.Size([50, 70])
    """

    def __init__(
        self,
        model: ImageTextModel,
        bank: TextBank,
        *,
        top: int = 10,
        sigma: float | None = 1.0,
        most: int = 5,
        size: int | None = 288,
        upsampling: Literal["nearest", "bilinear"] = "nearest",
        similarity: Literal["cosine", "dot"] = "cosine",
        threshold: float = 0.5,
        refiner: Refiner | None = None,
        closing: int = 7,
        score_background: bool = True,
        palette: Tensor | None = None,
        protocol: EvaluationProtocol | None = None,
    ) -> None:
        super().__init__()
        select_classes(torch.zeros(1, 1), top=top, sigma=sigma, most=most)  # checks the options
        MorphologicalClosing(size=closing)
        check_fraction("threshold", threshold)
        check_choice("upsampling", upsampling, ("nearest", "bilinear"))
        check_choice("similarity", similarity, ("cosine", "dot"))
        if size is not None:
            check_int("size", size, least=1)
        if score_background and not len(bank.background):
            raise ValueError("bank must have a background row with score_background, got none.")
        self.model, self.bank, self.refiner = model, bank, refiner
        self.top, self.sigma, self.most = top, sigma, most
        self.size, self.threshold, self.closing = size, threshold, closing
        self.upsampling, self.similarity = upsampling, similarity
        self.score_background = score_background
        self.names = bank.names
        self.palette = class_colours(palette, len(bank.names) + 1)
        self.protocol = self._protocol() if protocol is None else protocol

    @classmethod
    def from_protocol(
        cls,
        name: ProtocolName,
        model: ImageTextModel,
        *,
        crf: bool = True,
        sigma: float | None = None,
        size: int | None = None,
    ) -> Self:
        """Build the segmenter of a benchmark, its class names encoded: :func:`zero_shot_protocol`.

        Args:
            name: ``"voc21"``, ``"context60"`` or ``"coco_object81"``.
            model: encodes images and texts.
            crf: refine with the binary CRF; else cut at 0.5.
            sigma: in place of the protocol's, which None takes.
            size: likewise.

        Raises:
            ValueError: there is none of that name, or an option is out of range.
        """
        found = zero_shot_protocol(name)
        return cls(
            model,
            zero_shot_bank(model, found.names, spoken=found.spoken),
            top=found.top,
            sigma=found.sigma if sigma is None else sigma,
            most=found.most,
            size=found.size if size is None else size,
            closing=found.closing,
            refiner=DenseCRF.preset("simseg") if crf else None,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return masks at the size of the images; shapes as the class says."""
        return self._segmented(images, (self.threshold,))[0][0]

    def masks_at(
        self, images: Tensor, thresholds: Sequence[float], *, given: Tensor | None = None
    ) -> Tensor:
        """Return the masks at several thresholds, for one pass through the model.

        Args:
            images: ``(B, 3, H, W)``.
            thresholds: T of them, in the place of ``threshold``; with a refiner there is none, and
                the masks are all alike.
            given: ``(B, K)`` multi-hot, the classes to segment, such as image labels; None chooses
                them by their scores.

        Returns:
            ``(T, B, H, W)`` ids, as the class says.

        Raises:
            ValueError: a threshold is outside ``[0, 1]``, there is none, or a shape does not fit.
        """
        check_images("images", images)
        check_sequence("thresholds", thresholds)
        for threshold in thresholds:
            check_fraction("thresholds", threshold)
        if not len(thresholds):
            raise ValueError("thresholds must hold one at least, got none.")
        if given is not None:
            classes = len(self.names)
            check_labels(
                given, batch=len(images), num_classes=classes, device=images.device, name="given"
            )
        return self._segmented(images, thresholds, given)[0]

    def patches(self, images: Tensor) -> Tensor:
        """Return the patches ``(B, D, h, w)`` that are compared with the texts."""
        check_images("images", images)
        return self.model.encode_patches(squeezed(images, self.size))

    def scores(self, images: Tensor) -> Tensor:
        """Return cosines ``(B, K + 1)`` of images and names, background first, if it is scored."""
        check_images("images", images)
        return self._compared(self.model.encode_image(squeezed(images, self.size), normalize=True))

    def segment(self, image: ImageLike) -> Segmentation:
        """Segment one image, in evaluation mode and without gradients.

        Args:
            image: a file (turned upright as its camera noted), a PIL image, a uint8 array
                ``(H, W, 3)`` or, grey, ``(H, W)``, or a tensor ``(3, H, W)`` in [0, 1].

        Returns:
            The mask at the size of the image, on the CPU.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read as an image.
            ValueError: the array or tensor has another shape or range.
            TypeError: it is of another type.
            ImportError: pillow is needed and not installed.
        """
        return self.segment_scored(image).segmentation

    def segment_scored(self, image: ImageLike) -> ScoredSegmentation:
        """Segment one image as :meth:`segment`, and say why its classes were taken."""
        pixels = as_image(image)
        with torch.no_grad(), evaluating(self):
            like = next(self.parameters(), self.bank.classes)
            masks, scores, taken = self._segmented(pixels[None].to(like), (self.threshold,))
            limit = None
            if self.sigma is not None:
                limit = float(class_threshold(scores, top=self.top, sigma=self.sigma))
        names = ("background", *self.names)
        found = Segmentation(masks[0, 0].cpu(), names, self.palette, pixels)
        scored = names if self.score_background else self.names
        return ScoredSegmentation(found, scored, scores[0].cpu(), limit, taken[0].cpu())

    def extra_repr(self) -> str:
        """Return the protocol as one line."""
        return f"{len(self.names)} classes, {self.protocol.describe()}"

    def _compared(self, pooled: Tensor) -> Tensor:
        bank = self.bank
        rows = torch.cat([bank.background[:1], bank.classes])
        rows = at_least_float32(rows if self.score_background else bank.classes)
        check_shape("what model.encode_image returns", pooled, "B D", D=rows.shape[1])
        return l2_normalize(pooled).to(rows.dtype) @ rows.T

    def _segmented(
        self, images: Tensor, thresholds: Sequence[float], given: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return masks ``(T, B, H, W)``, scores and which classes were taken."""
        check_images("images", images)
        x = squeezed(images, self.size)
        dense = getattr(self.model, "encode_dense", None)
        if dense is None:
            pooled = self.model.encode_image(x, normalize=True)
            patches = self.model.encode_patches(x)
        else:
            pooled, patches = dense(x)
        scores = self._compared(pooled)
        taken = select_classes(
            scores,
            top=self.top,
            sigma=self.sigma,
            most=self.most,
            background=0 if self.score_background else None,
        )
        first = int(self.score_background)
        if given is not None:
            taken = torch.cat([torch.zeros_like(taken[:, :first]), given > 0], 1)
        most = self.most if given is None else len(self.names)
        ranked = rank_classes(scores[:, first:], taken[:, first:], most=most)
        masks = self._merged(x, patches, ranked, thresholds)
        if masks.shape[2:] != images.shape[2:]:  # after the merge: it commutes with picking pixels
            size = (images.shape[2], images.shape[3])
            flat = masks.flatten(0, 1)[:, None].float()
            found = F.interpolate(flat, size=size, mode="nearest-exact")
            masks = found.view(*masks.shape[:2], *size)
        return masks.long(), scores, taken

    def _merged(
        self, x: Tensor, patches: Tensor, ranked: RankedClasses, thresholds: Sequence[float]
    ) -> Tensor:
        if ranked.order.shape[1] == 0:
            return x.new_zeros(len(thresholds), len(x), *x.shape[2:], dtype=torch.int64)
        texts = self.bank.classes[ranked.order]
        size = (x.shape[2], x.shape[3])
        maps = class_maps(
            patches, texts, size, mode=self.upsampling, cosine=self.similarity == "cosine"
        )
        masks = [
            cut(x, maps, refiner=self.refiner, threshold=threshold, closing=self.closing)
            for threshold in (thresholds if self.refiner is None else thresholds[:1])
        ]
        found = torch.stack([cover(mask, ranked) for mask in masks])
        return found.expand(len(thresholds), *found.shape[1:])

    def _protocol(self) -> EvaluationProtocol:
        steps = [] if self.refiner is None else [f"binary {' '.join(repr(self.refiner).split())}"]
        steps += [f"closing {self.closing}"] if self.closing > 1 else []
        rule = f"the {self.most} best names"
        if self.sigma is not None:
            rule += f" above mean + {self.sigma:g} deviations of the {self.top} best"
        rule += "" if self.score_background else ", background not scored"
        rule += "" if self.similarity == "cosine" else ", dot products"
        return EvaluationProtocol(
            dataset="no data set",
            split="none",
            num_images=0,
            scales=(1.0,),
            flip=False,
            refiner=" + ".join(steps) or "none",
            labels_used=False,
            size_policy="as they are" if self.size is None else f"{self.size} square",
            threshold=self.threshold if self.refiner is None else None,
            threshold_source="preset" if self.refiner is None else None,
            text=f"{self.bank.source}; {rule}",
        )
