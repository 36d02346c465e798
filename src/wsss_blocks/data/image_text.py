"""Photographs with captions: the data of models that learn from image-text pairs."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Generator
from torch.utils.data import Dataset

from wsss_blocks.data._files import read_text
from wsss_blocks.data._matching import NO_LABELS, choose_images, find_images, image_id, spelled
from wsss_blocks.data.folder import read_sample
from wsss_blocks.data.sample import Sample
from wsss_blocks.data.weak_labels import WeakLabels

__all__ = ["ImageTextPairs", "RandomCaption"]

NO_CAPTIONS = "without captions"
HEADER = ["image", "caption"]


class ImageTextPairs(Dataset[Sample]):
    """Read the images of a folder and their captions, one item per image.

    A sample has ``captions``, all of them, and ``caption``, the first; :class:`RandomCaption` draws
    another in training. Captions come from

    - a CSV or TSV file of two columns, image and caption, where an image may have several rows (a
      first row ``image,caption`` is its header);
    - a JSON file ``{image: caption}`` or ``{image: [captions]}``, or such a mapping;
    - COCO's ``captions_*.json``.

    An image is named by its path below ``images_dir``, with its suffix or without.

    Args:
        images_dir: folder of the images.
        captions: the file or mapping; it chooses the images.
        strict: raise where captions have no image; else leave them out, and images without
            captions too, and list both in ``skipped``: id -> reason.

    Raises:
        FileNotFoundError: the folder, the file or an image does not exist.
        ValueError: a file of another format, an image without any caption, or no images at all.
        TypeError: ``captions`` is neither a path nor a mapping.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.data import write_voc_layout
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     images = write_voc_layout(folder, train=1, val=1) / "JPEGImages"
        ...     pairs = ImageTextPairs(images, {"train_00000.jpg": ["a seven", "a digit"]})
        ...     pairs.ids, pairs[0]["caption"], pairs[0]["captions"]
        (['train_00000'], 'a seven', ['a seven', 'a digit'])
    """

    def __init__(
        self,
        images_dir: str | Path,
        captions: str | Path | Mapping[str, str | Sequence[str]],
        *,
        strict: bool = True,
    ) -> None:
        self.images_dir = Path(images_dir)
        if not self.images_dir.is_dir():
            raise FileNotFoundError(f"images_dir must be a folder, got {self.images_dir}.")
        if isinstance(captions, str | Path):
            rows = _read(Path(captions))
        elif isinstance(captions, Mapping):
            rows = _checked(captions, "captions")
        else:
            raise TypeError(f"captions must be a path or mapping, got {type(captions).__name__}.")
        if not rows:
            raise ValueError(f"captions must not be empty, got none from {captions}.")
        # Rows without classes: images are matched with captions as they are with labels.
        found = choose_images(
            self.images_dir,
            find_images(self.images_dir),
            WeakLabels(("caption",), dict.fromkeys(rows, ())),
            strict=strict,
        )
        self.ids, self._files = found.ids, found.files
        self.names: tuple[str, ...] = ()
        self.skipped = {i: why.replace(NO_LABELS, NO_CAPTIONS) for i, why in found.skipped.items()}
        texts = {spelled(name): row for name, row in rows.items()}
        self.captions = [
            texts[key] if (key := spelled(image_id(file))) in texts else texts[spelled(file)]
            for file in self._files
        ]

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.images_dir / self._files[index]

    def __getitem__(self, index: int) -> Sample:
        sample = read_sample(self.ids[index], self.path(index), labels=None, mask=None)
        sample["captions"] = list(self.captions[index])
        sample["caption"] = self.captions[index][0]
        return sample


class RandomCaption:
    """Draw ``caption`` from the ``captions`` of a sample; a sample without them stays as it is.

    Example:
        >>> from wsss_blocks.data import new_sample
        >>> sample = new_sample(torch.zeros(3, 2, 2), id="a") | {"captions": ["a cat", "a pet"]}
        >>> RandomCaption()(sample, torch.Generator().manual_seed(0))["caption"]
        'a cat'
    """

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return the sample with one of its captions."""
        captions = sample.get("captions")
        if not captions:
            return sample
        drawn = int(torch.randint(len(captions), (), generator=generator).item())
        return {**sample, "caption": captions[drawn]}


def _read(path: Path) -> dict[str, list[str]]:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _read_json(path)
    if suffix not in (".csv", ".tsv"):
        raise ValueError(f"captions must end in .csv, .tsv or .json, got {path}.")
    rows: dict[str, list[str]] = {}
    lines = io.StringIO(read_text(path, "caption file"))
    reader = csv.reader(lines, delimiter="\t" if suffix == ".tsv" else ",")
    try:
        for number, row in enumerate(reader):
            cells = [cell.strip() for cell in row]
            if not any(cells) or (number == 0 and [c.lower() for c in cells] == HEADER):
                continue
            if len(cells) != 2 or not all(cells):
                raise ValueError(
                    f"{path}:{reader.line_num} must have two cells, image and caption, got "
                    f"{cells!r}. A caption with the separator in it needs quotes."
                )
            rows.setdefault(cells[0], []).append(cells[1])
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num} is not CSV: {error}") from error
    return rows


def _read_json(path: Path) -> dict[str, list[str]]:
    try:
        content = json.loads(read_text(path, "caption file"))
        if not (isinstance(content, dict) and {"images", "annotations"} <= content.keys()):
            return _checked(content, path)
        file_of = {image["id"]: str(image["file_name"]) for image in content["images"]}
        rows: dict[str, list[str]] = {}
        for annotation in content["annotations"]:
            rows.setdefault(file_of[annotation["image_id"]], []).append(annotation["caption"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a JSON file of captions: {error!r}") from error
    return _checked(rows, path)


def _checked(rows: object, source: object) -> dict[str, list[str]]:
    """Return lists of captions; raise unless each image has one, and all are text."""
    if not isinstance(rows, Mapping):
        raise ValueError(f"{source} must map images to captions, got {type(rows).__name__}.")
    found: dict[str, list[str]] = {}
    for image, row in rows.items():
        texts = [row] if isinstance(row, str) else row
        listed = isinstance(texts, Sequence) and len(texts) > 0
        if not listed or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"{source} must give {image!r} a caption or a list, got {row!r}.")
        found[str(image)] = [text.strip() for text in texts]
    return found
