"""``wsss segment``: masks of photographs from a trained network."""

from pathlib import Path
from typing import Annotated

import tyro

__all__ = ["segment"]


def segment(
    segmenter: tyro.conf.Positional[Path],
    images: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE|FOLDER ...")],
    output: Path,
    strict: bool = False,
) -> int:
    """Segment photographs with a trained network.

    Writes NAME.png, an indexed mask, and NAME_overlay.png, a figure, for each image.

        wsss segment runs/pets/segmenter.safetensors --images photos --output masks

    Args:
        segmenter: the segmenter.safetensors of a run.
        images: image files, and folders with all images in and below them.
        output: folder to write into.
        strict: end at the first image that cannot be read, instead of going on without it.
    """
    from wsss_blocks.cli.segment import segment_files
    from wsss_blocks.segmenters import Segmenter

    done = segment_files(Segmenter.load(segmenter), images, output=output, strict=strict)
    print(f"{len(done)} masks in {output}")
    return 0
