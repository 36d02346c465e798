"""Segment photographs by class names: the model by name, and what each name scored."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from wsss_blocks.backbones import OpenCLIPModel
from wsss_blocks.data import VOC_NAMES, VOC_SPOKEN_NAMES
from wsss_blocks.refine import DenseCRF
from wsss_blocks.segmenters import (
    ImageTextModel,
    LoDAModel,
    ScoredSegmentation,
    Segmentation,
    ZeroShotSegmenter,
    load_loda,
    zero_shot_bank,
)
from wsss_blocks.viz import class_score_figure

__all__ = ["PrintedScores", "load_image_text_model", "segmenter_of_names"]

_BEST = 10  # names in a printed line
_LONG = 10  # names, from which on the rule that chooses among them means something


def load_image_text_model(
    text: str, *, device: torch.device | str = "cpu"
) -> OpenCLIPModel | LoDAModel:
    """Build a model of images and texts from what people call it.

    Args:
        text: the ``model.safetensors`` of a run of ``examples/train_simseg.py``; or of open_clip,
            ``"ARCH/TAG"`` for weights that open_clip downloads (``"ViT-B-16/openai"``), or
            ``"ARCH/PATH"`` for a local file of them. Patches are the values of the last block,
            as CLIP's final tokens mean little: see :class:`~wsss_blocks.backbones.OpenCLIPModel`.
        device: where it goes.

    Returns:
        The model, in evaluation mode, without gradients.

    Raises:
        ValueError: no such architecture, tag or file, or one that holds another model.
        OSError: the weights could not be downloaded; the message says what to do.
    """
    model: OpenCLIPModel | LoDAModel
    if text.endswith(".safetensors") and Path(text).is_file():
        model = load_loda(text)
    else:
        model = OpenCLIPModel.from_name(text, patches="value")
    return model.requires_grad_(False).eval().to(device)


def segmenter_of_names(
    model: ImageTextModel,
    names: Sequence[str],
    *,
    templates: Sequence[str] = (),
    sigma: float | None = None,
    size: int | None = None,
    crf: bool = True,
) -> ZeroShotSegmenter:
    """Build a segmenter of names that somebody typed: SimSeg's, for lists of any length.

    SimSeg looks for the names that stand out among the ten best, which few names cannot do (see
    :func:`~wsss_blocks.segmenters.class_threshold`). Who gives a short list expects to find them.

    Args:
        model: encodes images and texts.
        names: K classes; VOC's that are no words are spoken as words.
        templates: sentences with ``{}`` for the name; default CLIP's 80.
        sigma: deviations above the mean of the ten best that a name needs. None: 1 for ten names
            or more; for fewer the five best are looked for, whatever they score.
        size: side of the square that images are squeezed into; None is the ``size`` of the model,
            if it has one, else 288.
        crf: refine with SimSeg's binary CRF.

    Raises:
        ValueError: names or templates do not fit.
    """
    words = dict(zip(VOC_NAMES, VOC_SPOKEN_NAMES, strict=True))
    spoken = {n: words[n] for n in names if words.get(n, n) not in names}
    return ZeroShotSegmenter(
        model,
        zero_shot_bank(model, names, templates=templates or None, spoken=spoken),
        sigma=1.0 if sigma is None and len(names) >= _LONG else sigma,
        size=getattr(model, "size", 288) if size is None else size,
        refiner=DenseCRF.preset("simseg") if crf else None,
    )


class PrintedScores:
    """Segment like the segmenter inside, and print what each image scored.

    Args:
        segmenter: chooses classes by their scores.
    """

    def __init__(self, segmenter: ZeroShotSegmenter) -> None:
        self.segmenter, self.protocol = segmenter, segmenter.protocol
        self.names: tuple[str, ...] = ()
        self._scores: list[Tensor] = []
        self._thresholds: list[float] = []

    def segment(self, image: str | Path) -> Segmentation:
        """Segment one file, and print its line."""
        found = self.segmenter.segment_scored(image)
        print(_line(Path(image), found))
        self.names = found.names
        self._scores.append(found.scores)
        self._thresholds += [] if found.threshold is None else [found.threshold]
        return found.segmentation

    def save_figure(self, path: Path) -> None:
        """Write the histogram of each name over the images so far."""
        thresholds = torch.tensor(self._thresholds) if self._thresholds else None
        scores = torch.stack(self._scores)
        class_score_figure(scores, names=self.names, path=path, thresholds=thresholds)


def _line(path: Path, found: ScoredSegmentation) -> str:
    """Return the best names with their scores; a star for those that were segmented."""
    limit = "none needed" if found.threshold is None else f"{found.threshold:.4f}"
    order = found.scores.argsort(descending=True, stable=True)[:_BEST].tolist()
    shown = [
        f"{'*' if found.taken[i] else ''}{found.names[i]} {float(found.scores[i]):.4f}"
        for i in order
    ]
    return f"{path.name}: threshold {limit}; {', '.join(shown)}"
