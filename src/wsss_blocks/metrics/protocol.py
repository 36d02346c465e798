"""The protocol of an evaluation: what has to be said beside a mIoU."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import cast

from torch import Tensor

from wsss_blocks._validate import (
    check_choice,
    check_int,
    check_integer,
    check_number,
    check_sequence,
)
from wsss_blocks.metrics._counts import Absent, Undecided
from wsss_blocks.ops.mask_pairs import hash_digests, mask_digest

__all__ = ["EvaluationProtocol", "hash_masks"]


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """Everything that can move a mIoU although the weights stay the same.

    Fields without a default are the ones that papers leave out; the object drives inference and
    is written beside the number.

    Attributes:
        dataset: name, with the version where there are several.
        split: the images, as "val" or "train (first 200)".
        num_images: how many were scored; 0 for a network that was not.
        scales: test-time scales; None for predictions of which nobody said.
        flip: whether flipped images were added; likewise.
        refiner: what was applied to the maps ("none", "CRF(...)", "PAR(...)").
        labels_used: whether image labels of the scored images were used to predict them.
        flip_reduce: how flipped pairs were merged.
        scale_reduce: how scales were merged.
        size_policy: how sizes that the stride does not divide were treated.
        threshold: background threshold, or (low, high), of a CAM; None for a segmenter.
        threshold_source: where it comes from ("preset", "sweep on train masks").
        absent_rule: classes left out of the mean: absent from "both" or from the "target".
        ignore_index: target id that was not scored.
        ground_truth_hash: see :func:`hash_masks`; the field has several "COCO masks".
        text: source of the text features ("stand-in", a model's name), None without text.
        undecided: what predicted pixels without a class meant: see :class:`SplitEvaluator`.
        missing: images of the split without a prediction, left out.

    Raises:
        ValueError: a field has an impossible value, or a threshold has no source.

    Example:
        >>> protocol = EvaluationProtocol(
        ...     dataset="scenes", split="val", num_images=200, scales=(1.0,), flip=False,
        ...     refiner="none", labels_used=False,
        ... )
        >>> print(protocol.describe())
        scenes val, 200 images, scales 1, no flip, refiner none, image labels not used, \
absent both, ignore 255
    """

    dataset: str
    split: str
    num_images: int
    scales: tuple[float, ...] | None
    flip: bool | None
    refiner: str
    labels_used: bool
    flip_reduce: str = "mean"
    scale_reduce: str = "mean"
    size_policy: str = "resize"
    threshold: float | tuple[float, float] | None = None
    threshold_source: str | None = None
    absent_rule: Absent = "both"
    ignore_index: int = 255
    ground_truth_hash: str | None = None
    text: str | None = None
    undecided: Undecided = "refused"
    missing: int = 0

    def __post_init__(self) -> None:
        if self.scales is not None:
            check_sequence("scales", self.scales)
            for scale in self.scales:
                check_number("scales", scale)
            object.__setattr__(self, "scales", tuple(float(s) for s in self.scales))
            if not self.scales or not all(0 < s < float("inf") for s in self.scales):
                raise ValueError(f"scales must be positive and finite, got {self.scales}.")
        if isinstance(self.threshold, list):
            object.__setattr__(self, "threshold", tuple(self.threshold))
        for name in ("dataset", "split", "refiner"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty, got {getattr(self, name)!r}.")
        check_int("num_images", self.num_images)
        check_int("ignore_index", self.ignore_index)
        if self.num_images < 0:
            raise ValueError(f"num_images must be >= 0, got {self.num_images}.")
        check_int("missing", self.missing, least=0)
        check_choice("undecided", self.undecided, ("refused", "ignored", "background"))
        check_choice("absent_rule", self.absent_rule, ("both", "target"))
        if (self.threshold is None) != (self.threshold_source is None):
            raise ValueError(
                "threshold and threshold_source go together: the source must say whether it comes "
                f"from a preset or from masks, got {self.threshold} and {self.threshold_source!r}."
            )
        pair = self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)
        if self.threshold is not None and len(pair) not in (1, 2):
            raise ValueError(f"threshold must be one number or (low, high), got {pair}.")
        for threshold in pair if self.threshold is not None else ():
            check_number("threshold", cast(float, threshold))

    def describe(self) -> str:
        """Return the protocol as one line for people."""
        scales = "not stated"
        if self.scales is not None:
            scales = "/".join(f"{s:g}" for s in self.scales)
            scales += f" ({self.scale_reduce})" if len(self.scales) > 1 else ""
        flip = {True: f"flip ({self.flip_reduce})", False: "no flip", None: "flip not stated"}
        parts = [
            f"{self.dataset} {self.split}",
            f"{self.num_images} images",
            f"scales {scales}",
            flip[self.flip],
            f"refiner {self.refiner}",
            f"image labels {'USED' if self.labels_used else 'not used'}",
        ]
        if self.threshold is not None:
            pair = self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)
            shown = "/".join(f"{t:g}" for t in pair)
            parts.append(f"threshold {shown} from {self.threshold_source}")
        if self.size_policy != "resize":
            parts.append(f"sizes {self.size_policy}")
        parts += [f"absent {self.absent_rule}", f"ignore {self.ignore_index}"]
        if self.undecided != "refused":
            parts.append(f"undecided pixels {self.undecided}")
        if self.missing:
            parts.append(f"{self.missing} images MISSING")
        if self.text is not None:
            parts.append(f"text: {self.text}")
        if self.ground_truth_hash is not None:
            parts.append(f"masks {self.ground_truth_hash}")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, object]:
        """Return the fields as JSON writes them."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "EvaluationProtocol":
        """Rebuild a protocol from ``to_dict``."""
        return cls(**values)  # type: ignore[arg-type]


def hash_masks(masks: Iterable[Tensor]) -> str:
    """Hash ground-truth masks in their order, whatever their integer type or file format.

    Two evaluations with the same hash were scored against the same pixels.

    Args:
        masks: ``(H, W)`` or ``(B, H, W)`` ids in [0, 65535]; may be a generator.

    Returns:
        16 hexadecimal digits.

    Raises:
        TypeError: a mask does not hold integers.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[0, 1], [2, 255]])
        >>> hash_masks([mask]) == hash_masks([mask.to(torch.uint8)])
        True
    """
    digests = []
    for mask in masks:
        check_integer("masks", mask)
        images = mask.unbind(0) if mask.ndim == 3 else (mask,)
        digests += [mask_digest(image.cpu().numpy()) for image in images]
    return hash_digests(digests)
