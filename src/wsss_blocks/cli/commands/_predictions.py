"""Predicted masks of a split: files, or what a network says; and how they came about."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wsss_blocks.cli.commands._ground_truth import GroundTruth

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Predictions", "predictions_of_files", "predictions_of_network"]

PROTOCOL_FILE = "protocol.json"


class Predictions(NamedTuple):
    """Predictions of a split.

    Attributes:
        truth: the images that have predictions.
        paths: of the masks; None if a network predicts them.
        read: position in the split -> ids ``(H, W)``.
        stated: fields of an EvaluationProtocol, how they came about.
        palette: colours of the classes; None for the usual ones.
    """

    truth: GroundTruth
    paths: list[Path] | None
    read: "Callable[[int], NDArray[np.integer[Any]]]"
    stated: dict[str, Any]
    palette: "Tensor | None"


def predictions_of_files(
    folder: Path, truth: GroundTruth, *, stated: dict[str, Any], allow_missing: bool
) -> Predictions:
    """Find a mask for each image of the split; what was ``stated`` overrides protocol.json.

    Raises:
        FileNotFoundError: there is no such folder, or an image has no mask.
        ValueError: nobody says whether image labels were used, or protocol.json is broken.
    """
    from wsss_blocks.data._files import files_below
    from wsss_blocks.data._mask_files import read_mask_ids

    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of predictions, and no segmenter, at {folder}.")
    there = files_below(folder, ".png")
    kept = [i for i, name in enumerate(truth.ids) if name in there]
    missing = [name for name in truth.ids if name not in there]
    if missing and (not allow_missing or not kept):
        raise FileNotFoundError(
            f"{len(missing)} of {len(truth.ids)} images have no prediction ID.png in {folder}, "
            f"among them {', '.join(missing[:3])}"
            + ("; --allow-missing scores the others." if kept else ".")
        )
    paths = [folder / f"{truth.ids[i]}.png" for i in kept]
    known = _stated(folder / PROTOCOL_FILE, stated)
    return Predictions(
        truth=truth.only(kept),
        paths=paths,
        read=lambda i: read_mask_ids(paths[i]),
        stated={**known, "missing": len(missing)},
        palette=None,
    )


def predictions_of_network(file: Path, truth: GroundTruth, *, device: str) -> Predictions:
    """Load a segmenter that predicts the images of the split.

    Raises:
        ValueError: there are masks but no images to look at, or its classes are other ones.
    """
    from wsss_blocks.segmenters import Segmenter

    segmenter = Segmenter.load(file, device=device)
    if truth.images is None:
        raise ValueError("a segmenter needs photographs: give --data and --root, or --images.")
    if segmenter.names != truth.names:
        raise ValueError(
            f"{file} knows {len(segmenter.names)} classes ({', '.join(segmenter.names[:3])}, ...), "
            f"the masks have {len(truth.names)} ({', '.join(truth.names[:3])}, ...)."
        )
    images = truth.images
    return Predictions(
        truth=truth,
        paths=None,
        read=lambda i: segmenter.segment(images[i]).mask.numpy(),
        stated=segmenter.protocol.to_dict(),
        palette=segmenter.palette,
    )


def _stated(file: Path, stated: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"scales": None, "flip": None, "refiner": "not stated"}
    if file.is_file():
        try:
            found |= dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file} must hold a protocol, got: {error}") from error
        found.pop("line", None)
    found |= {name: value for name, value in stated.items() if value is not None}
    if "labels_used" not in found:
        raise ValueError(
            "say whether the labels of the scored images were used to predict their masks: "
            f"--image-labels used, or not-used (there is no {file})."
        )
    return found
