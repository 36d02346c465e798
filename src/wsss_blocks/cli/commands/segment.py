"""``wsss segment``: masks of photographs, from a trained network or from class names alone."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from wsss_blocks.cli.commands._common import class_names

__all__ = ["segment"]

_FILES = "FILE|FOLDER ..."


def segment(
    inputs: tyro.conf.Positional[
        Annotated[tuple[Path, ...], tyro.conf.arg(metavar=_FILES, help_behavior_hint="")]
    ],
    images: Annotated[tuple[Path, ...], tyro.conf.arg(metavar=_FILES, help_behavior_hint="")] = (),
    classes: Annotated[str | None, tyro.conf.arg(metavar="NAMES", help_behavior_hint="")] = None,
    prompts: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="TEXT ...", help_behavior_hint="")
    ] = (),
    model: Annotated[str, tyro.conf.arg(metavar="ARCH/TAG|ARCH/PATH|FILE")] = "ViT-B-16/openai",
    sigma: Annotated[float | None, tyro.conf.arg(metavar="X", help_behavior_hint="")] = None,
    size: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None,
    refiner: Literal["crf", "none"] = "crf",
    scores: tyro.conf.FlagCreatePairsOff[bool] = False,
    output: Path = Path("masks"),
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "cpu",
    strict: bool = False,
) -> int:
    """Segment photographs, with a trained network or by class names alone.

    Writes NAME.png, an indexed mask, and NAME_overlay.png, a figure, for each image.

        wsss segment photo.jpg --classes "dog,grass"
        wsss segment runs/pets/segmenter.safetensors --images photos --output masks

    With --classes nothing is trained: a model of images and texts compares the photograph with
    each name, and its patches with those that fit. The weights are downloaded, or a local file:
    --model ViT-B-16-quickgelu//path/to/weights.safetensors.

    Args:
        inputs: image files, and folders with all images in and below them; without --classes the
            segmenter.safetensors of a run comes first.
        images: further images and folders.
        classes: what to look for: dog,grass, or a known data set (voc, coco, ...), or a file of
            names.
        prompts: sentences with {} for the name, as "a photo of a {}."; default are 80 of CLIP's.
        model: a model of images and texts in open_clip, or the model.safetensors of a run of
            examples/train_simseg.py.
        sigma: a name is looked for if it scores as many deviations above the mean of the ten best,
            background included. Without it 1 for ten names or more, and no such choice for fewer.
        size: of the square that the image is squeezed into; by default 288, or what a trained
            model says.
        refiner: what fits the masks to the image.
        scores: print what each name scored in each image, and write class_scores.png.
        output: folder to write into.
        device: where the network runs, as cuda.
        strict: end at the first image that cannot be read, instead of going on without it.
    """
    if classes is not None:
        return _segment_names(
            _some((*inputs, *images)),
            _typed_names(classes),
            prompts,
            model=model,
            sigma=sigma,
            size=size,
            crf=refiner == "crf",
            scores=scores,
            output=output,
            device=device,
            strict=strict,
        )
    if scores:
        raise ValueError("--scores are those of class names: give --classes, too.")
    if not inputs or inputs[0].suffix != ".safetensors":
        raise ValueError(
            "say what to look for, as --classes dog,grass, or begin with the .safetensors of a "
            f"trained segmenter, got {' '.join(map(str, inputs)) or 'nothing'}."
        )
    photos = _some((*inputs[1:], *images))
    from wsss_blocks.cli.segment import segment_files
    from wsss_blocks.segmenters import Segmenter

    trained = Segmenter.load(inputs[0], device=device)
    done = segment_files(trained, photos, output=output, strict=strict)
    print(f"{len(done)} masks in {output}")
    return 0


def _segment_names(
    photos: tuple[Path, ...],
    names: tuple[str, ...],
    prompts: tuple[str, ...],
    *,
    model: str,
    sigma: float | None,
    size: int | None,
    crf: bool,
    scores: bool,
    output: Path,
    device: str,
    strict: bool,
) -> int:
    from wsss_blocks.cli.segment import segment_files
    from wsss_blocks.cli.zero_shot import (
        PrintedScores,
        load_image_text_model,
        segmenter_of_names,
    )

    segmenter = segmenter_of_names(
        load_image_text_model(model, device=device),
        names,
        templates=prompts,
        sigma=sigma,
        size=size,
        crf=crf,
    ).to(device)
    if not scores:
        done = segment_files(segmenter, photos, output=output, strict=strict)
    else:
        printed = PrintedScores(segmenter)
        done = segment_files(printed, photos, output=output, strict=strict)
        figure = output / "class_scores.png"
        if figure in done:
            raise ValueError(f"{figure} is the mask of an image: choose another --output.")
        if done:
            printed.save_figure(figure)
    print(f"{len(done)} masks in {output}")
    return 0


def _some(photos: tuple[Path, ...]) -> tuple[Path, ...]:
    if not photos:
        raise ValueError("say which images to segment: files or folders, got none.")
    return photos


def _typed_names(text: str) -> tuple[str, ...]:
    """Read names as other commands do; a single word is a name here."""
    from wsss_blocks.data._tables import CLASS_TABLES

    if "," in text or text in CLASS_TABLES or Path(text).suffix.lower() in (".txt", ".json"):
        return class_names(text)
    if not text.strip():
        raise ValueError("--classes must hold a name, got nothing.")
    return (text.strip(),)
