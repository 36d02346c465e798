"""Segment image files and write what people look at."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import torch

from wsss_blocks._files import replaced
from wsss_blocks.cli.run import RunConfig
from wsss_blocks.data._files import walk
from wsss_blocks.data.images import is_image
from wsss_blocks.metrics import EvaluationProtocol
from wsss_blocks.segmenters import Segmentation, Segmenter

__all__ = ["segment_files", "segment_predicted"]


class _SegmentsFiles(Protocol):
    protocol: EvaluationProtocol

    def segment(self, image: Path) -> Segmentation: ...


def segment_files(
    segmenter: _SegmentsFiles,
    paths: Iterable[str | Path],
    *,
    output: str | Path,
    strict: bool = True,
) -> list[Path]:
    """Write ``NAME.png``, an indexed mask, and ``NAME_overlay.png``, a figure, per image.

    Beside them goes ``protocol.json``, which tells ``wsss evaluate`` how they were predicted.
    Nothing is written if two results would have one name or a result would replace an image.

    Args:
        segmenter: a :class:`~wsss_blocks.segmenters.Segmenter` or
            :class:`~wsss_blocks.segmenters.ZeroShotSegmenter`, or what has ``segment`` and
            ``protocol`` like them.
        paths: image files, and folders: all images in and below a folder are segmented, and their
            results keep the path they have in it. Hidden files, and ``output`` itself where it
            lies in such a folder, are left out.
        output: folder, made if need be.
        strict: end at the first file that cannot be read; else go on, and say at the end which
            ones were left out.

    Returns:
        The mask files, in the order of the paths, those of a folder by name.

    Raises:
        FileNotFoundError: a file or folder is not there; the message names it.
        OSError: a file cannot be read as an image; likewise. Those before it are done.
        ValueError: a folder without images, results with one name, or one that would replace an
            image.
        ImportError: pillow is not installed.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.data import write_voc_layout
        >>> from wsss_blocks.metrics import EvaluationProtocol
        >>> from wsss_blocks.segmenters import SegmentationNetwork, Segmenter
        >>> data = {"dataset": "pets", "split": "val", "num_images": 9}
        >>> views = {"scales": (1.0,), "flip": True, "refiner": "none", "labels_used": False}
        >>> protocol = EvaluationProtocol(**data, **views)
        >>> network = SegmentationNetwork("small-cnn", num_classes=3, hidden_dim=16)
        >>> segmenter = Segmenter(network, names=("cat", "dog"), protocol=protocol)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     photos = write_voc_layout(folder, train=1, val=1) / "JPEGImages"
        ...     [p.name for p in segment_files(segmenter, [photos], output=Path(folder) / "out")]
        ['train_00000.png', 'val_00000.png']
    """
    output = Path(output)
    plan = _plan([Path(path) for path in paths], output)
    written, skipped = [], []
    for source, mask, figure in plan:
        try:
            found = segmenter.segment(source)
        except OSError as error:
            if strict:
                raise
            skipped.append(str(error))
            continue
        found.save(mask)
        found.save_figure(figure)
        written.append(mask)
    stated = {"line": segmenter.protocol.describe(), **segmenter.protocol.to_dict()}
    with replaced(output / "protocol.json") as temporary:
        temporary.write_text(json.dumps(stated, indent=1) + "\n")
    if skipped:
        print(f"{len(written)} images segmented; {len(skipped)} skipped:", *skipped, sep="\n  ")
    return written


def segment_predicted(cfg: RunConfig, *, device: torch.device | str = "cpu") -> dict[str, float]:
    """Segment the images of ``--predict`` with the network that a run left in ``OUTPUT``.

    Args:
        cfg: its ``predict`` are files and folders for :func:`segment_files`; the masks go to
            ``OUTPUT/predictions``.
        device: where the network goes.

    Returns:
        An empty dictionary, in the place of the results of a run.

    Raises:
        FileNotFoundError: the run left no ``segmenter.safetensors``, or a file is not there.
        OSError: a file cannot be read as an image, with ``cfg.strict``.
    """
    trained = Segmenter.load(cfg.output / "segmenter.safetensors", device=device)
    segment_files(trained, cfg.predict, output=cfg.output / "predictions", strict=cfg.strict)
    return {}


def _plan(paths: Iterable[Path], output: Path) -> list[tuple[Path, Path, Path]]:
    """List image, mask file and figure file of all that is to be done; refuse what would clash."""
    plan = {}
    for path in paths:
        for source, name in _images(path, output):
            folder = output / name.parent
            mask, figure = folder / f"{name.stem}.png", folder / f"{name.stem}_overlay.png"
            plan[source.resolve(), mask.resolve()] = source, mask, figure  # named twice: done once
    images = {source for source, _ in plan}
    owner: dict[Path, Path] = {}
    for source, mask, figure in plan.values():
        for file in (mask.resolve(), figure.resolve()):
            if file in images:
                raise ValueError(
                    f"output must not be where images would be replaced: {file} is one."
                )
            if file in owner:
                raise ValueError(
                    f"results must have different names, but {owner[file]} and {source} both give "
                    f"{file}: name their common folder, or run them one by one."
                )
            owner[file] = source
    return list(plan.values())


def _images(path: Path, output: Path) -> Iterator[tuple[Path, Path]]:
    """Yield each image and what its result is called after, below the output folder."""
    if not path.exists():
        raise FileNotFoundError(f"no image or folder at {path}.")
    if not path.is_dir():
        yield path, Path(path.name)
        return
    found = []
    for here, inner, files in walk(path):
        inner[:] = [
            name
            for name in inner
            if not name.startswith(".") and (here / name).resolve() != output.resolve()
        ]
        found += [here / name for name in files if is_image(name)]
    if not found:
        raise ValueError(f"no images in {path}.")
    for file in sorted(found):
        yield file, file.relative_to(path)
