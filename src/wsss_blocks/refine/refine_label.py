"""Pseudo-labels from a refined CAM: two backgrounds, one refinement, disagreement is ignored.

Paper: Ru et al., "Token Contrast for Weakly-Supervised Semantic Segmentation" (ToCo), CVPR 2023,
https://arxiv.org/abs/2303.01267
"""

import torch
from torch import Tensor

from wsss_blocks._numerics import first_argmax
from wsss_blocks._validate import (
    check_box,
    check_finite,
    check_floating,
    check_images,
    check_int,
    check_labels,
    check_number,
    check_same_device,
    check_sequence,
    check_shape,
    values_are_checked,
)
from wsss_blocks.cam.box import box_to_valid
from wsss_blocks.refine._present import take_present
from wsss_blocks.refine.contract import Refiner, add_background

__all__ = ["refine_to_label"]


def refine_to_label(
    cam: Tensor,
    images: Tensor,
    labels: Tensor,
    refiner: Refiner,
    *,
    thresholds: tuple[float, float] | Tensor = (0.25, 0.7),
    box: Tensor | None = None,
    ignore_index: int = 255,
) -> Tensor:
    r"""Make pseudo-labels from a CAM refined against a low and a high background.

    .. math::

        L_t = \operatorname{argmax}_c \operatorname{refine}([t, M_1, \dots, M_K])_c, \qquad
        L = \begin{cases}
            L_{high} & L_{high} \ne 0 \\
            0 & L_{high} = L_{low} = 0 \\
            \text{ignore} & \text{otherwise, and outside the box}
        \end{cases}

    Both backgrounds go through one call of the refiner, as two map sets, and only the classes
    present in the batch take part where that can be found out without waiting for a GPU. No
    gradient flows. Time is that of the refiner. Beside what it takes itself, peak memory is about
    three and a half times its maps, ``(B, 2, P + 1, H, W)`` floats with P classes present in an
    image: 63 MiB for four images of 448 x 448 with P = 2, and 95 MiB with
    :class:`~wsss_blocks.refine.PixelAdaptiveRefine`.

    Reference:
        Ru et al., "Token Contrast for Weakly-Supervised Semantic Segmentation", CVPR 2023,
        https://arxiv.org/abs/2303.01267. The rule is that of the authors' code.

    Note:
        Ties go to background, then to the lowest class. A refiner that needs features gets them
        as ``functools.partial(refiner, features=features)``.

    Args:
        cam: Scores normalised to [0, 1], ``(B, K, h, w)``.
        images: RGB images in [0, 1], ``(B, 3, H, W)``.
        labels: Multi-hot image labels ``(B, K)``; an all-zero row gives background.
        refiner: Any refiner: :class:`~wsss_blocks.refine.NoRefiner`,
            :class:`~wsss_blocks.refine.PixelAdaptiveRefine`, ...
        thresholds: Background scores (low, high), or one pair per image ``(B, 2)``.
        box: The part of each image that is not padding, ``(B, 4)`` integers top, left, bottom,
            right, in pixels of ``images``.
        ignore_index: Value of undecided pixels and of pixels outside the box.

    Returns:
        Labels ``(B, H, W)``, int64: 0 background, 1..K, ``ignore_index``.

    Raises:
        ValueError: If a shape does not fit, a score is negative or not finite, images are not in
            [0, 1], the thresholds are not 0 <= low <= high, ``ignore_index`` is a class, or the
            refiner returns another shape.
        TypeError: If a dtype does not fit.

    Example:
        >>> import torch
        >>> from wsss_blocks.refine import NoRefiner
        >>> cam = torch.tensor([0.1, 0.5, 0.9]).view(1, 1, 1, 3)
        >>> images, labels = torch.rand(1, 3, 1, 3), torch.ones(1, 1)
        >>> refine_to_label(cam, images, labels, NoRefiner())
        tensor([[[  0, 255,   1]]])
    """
    check_images("images", images)
    batch, _, height, width = images.shape
    check_shape("cam", cam, "B K h w", B=batch)
    check_floating("cam", cam)
    check_same_device("cam", cam, "images", images)
    num_classes = cam.shape[1]
    check_labels(labels, batch=batch, num_classes=num_classes, device=cam.device)
    check_finite("cam", cam)
    check_box(box, batch=batch, device=images.device)
    check_int("ignore_index", ignore_index)
    if 0 <= ignore_index <= num_classes:
        raise ValueError(
            f"ignore_index must not be one of the classes 0..{num_classes}, got {ignore_index}."
        )
    low, high = _low_high(thresholds, cam)
    with torch.no_grad():
        maps = torch.stack([add_background(cam, value=high), add_background(cam, value=low)], 1)
        kept = take_present(maps, labels, at_least=2)
        present = kept.mask[:, 1:].to(labels.dtype)
        refined = refiner(images, kept.maps, labels=present, box=box)
        expected = (*kept.maps.shape[:3], height, width)
        if refined.shape != expected:
            raise ValueError(
                f"refiner must return maps of shape {tuple(expected)}, got {tuple(refined.shape)}."
            )
        winner = first_argmax(refined, 2).long()
        if kept.channels is not None:
            winner = kept.channels.gather(1, winner.flatten(1)).view_as(winner)
        label_high, label_low = winner.unbind(1)
        undecided = (label_high == 0) & (label_low != 0)
        if box is not None:
            size = (height, width)
            undecided = undecided | ~box_to_valid(box, image_size=size, size=size)
        return label_high.masked_fill(undecided, ignore_index)


def _low_high(
    thresholds: tuple[float, float] | Tensor, cam: Tensor
) -> tuple[float | Tensor, float | Tensor]:
    if not isinstance(thresholds, Tensor):
        check_sequence("thresholds", thresholds)
        if len(thresholds) != 2:
            raise ValueError(f"thresholds must be (low, high), got {thresholds!r}.")
        low, high = thresholds
        check_number("thresholds", low)
        check_number("thresholds", high)
        if not 0 <= low <= high:
            raise ValueError(f"thresholds must be 0 <= low <= high, got {(low, high)}.")
        return low, high
    check_shape("thresholds", thresholds, "B 2", B=cam.shape[0])
    check_floating("thresholds", thresholds)
    check_same_device("thresholds", thresholds, "cam", cam)
    check_finite("thresholds", thresholds)
    first, second = thresholds.unbind(1)
    if values_are_checked(thresholds) and not bool(((first >= 0) & (first <= second)).all()):
        raise ValueError(f"thresholds must be 0 <= low <= high, got {thresholds.tolist()}.")
    return first, second
