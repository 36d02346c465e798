"""Small data sets in every layout, with two classes, for tests of what is wrong with them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsss_blocks.data import WeakLabels, examine, write_mask

NAMES = ("cat", "dog")
TRAIN, VAL = ("a", "b", "c", "d"), ("e", "f")
SHOWS = {"a": ["cat"], "b": ["dog"], "c": ["cat", "dog"], "d": ["cat"], "e": ["dog"], "f": ["cat"]}
WIDTH, HEIGHT = 12, 9


@dataclass
class Tree:
    """A clean data set: paths of its files by letter, and how to examine it."""

    root: Path
    image: dict[str, Path]
    mask: dict[str, Path]
    new: Path  # an image that has no label
    options: dict[str, Any] = field(default_factory=dict)

    def examine(self, **options: Any) -> list[tuple[str, str]]:
        """Kinds and paths (below the root, or absolute) of all findings."""
        found = examine(self.root, **{**self.options, **options})
        assert found.complete
        return [(kind, str(path)) for kind, path, _ in found.findings]


def write_photo(path: Path, *, seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def _fill(image: dict[str, Path], mask: dict[str, Path]) -> None:
    for number, (name, path) in enumerate(image.items()):
        write_photo(path, seed=number)
        ids = np.zeros((HEIGHT, WIDTH), np.uint8)
        ids[0] = 255
        for row, shown in enumerate(SHOWS[name]):
            ids[2 * row + 1] = NAMES.index(shown) + 1
        write_mask(mask[name], ids)


def _lists(root: Path, lists: str, masks: str) -> tuple[dict[str, Path], dict[str, Path]]:
    image = {name: root / "JPEGImages" / f"{name}.jpg" for name in SHOWS}
    mask = {name: root / masks / f"{name}.png" for name in SHOWS}
    _fill(image, mask)
    folder = root / "ImageSets" / lists
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("\n".join(TRAIN) + "\n")
    (folder / "val.txt").write_text("\n".join(VAL) + "\n")
    (folder / "trainval.txt").write_text("\n".join(TRAIN + VAL) + "\n")
    return image, mask


def voc(root: Path) -> Tree:
    image, mask = _lists(root, "Segmentation", "SegmentationClass")
    (root / "Annotations").mkdir()
    for name, shown in SHOWS.items():
        objects = "".join(f"<object><name>{s}</name></object>" for s in shown)
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    return Tree(root, image, mask, root / "JPEGImages" / "new.jpg", {"names": NAMES})


def context(root: Path) -> Tree:
    image, mask = _lists(root, "SegmentationContext", "SegmentationClassContext")
    WeakLabels(NAMES, SHOWS).save(root / "labels.json")
    options = {"names": NAMES, "labels": root / "labels.json"}
    return Tree(root, image, mask, image["a"].with_stem("new"), options)


def ade20k(root: Path) -> Tree:
    split = {n: "training" if n in TRAIN else "validation" for n in SHOWS}
    image = {n: root / "images" / split[n] / f"{n}.jpg" for n in SHOWS}
    mask = {n: root / "annotations" / split[n] / f"{n}.png" for n in SHOWS}
    _fill(image, mask)
    WeakLabels(NAMES, SHOWS).save(root / "labels.json")
    options = {"names": NAMES, "labels": root / "labels.json"}
    return Tree(root, image, mask, image["a"].with_stem("new"), options)


def coco(root: Path) -> Tree:
    number = {name: k + 1 for k, name in enumerate(SHOWS)}
    split = {name: "train2014" if name in TRAIN else "val2014" for name in SHOWS}
    stem = {name: f"COCO_{split[name]}_{number[name]:012d}" for name in SHOWS}
    image = {n: root / split[n] / f"{stem[n]}.jpg" for n in SHOWS}
    mask = {n: root / "masks" / split[n] / f"{number[n]:012d}.png" for n in SHOWS}
    _fill(image, mask)
    (root / "annotations").mkdir()
    for own in ("train2014", "val2014"):
        mine = [name for name in SHOWS if split[name] == own]
        content = {
            "images": [{"id": number[n], "file_name": f"{stem[n]}.jpg"} for n in mine],
            "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
            "annotations": [
                {"image_id": number[n], "category_id": 17 + NAMES.index(s)}
                for n in mine
                for s in SHOWS[n]
            ],
        }
        (root / "annotations" / f"instances_{own}.json").write_text(json.dumps(content))
    return Tree(root, image, mask, root / "train2014" / "COCO_train2014_000000000099.jpg")


def folder(root: Path) -> Tree:
    image, mask = {}, {}
    for split, own in (("train", TRAIN), ("val", VAL)):
        image |= {n: root / split / "images" / f"{n}.jpg" for n in own}
        mask |= {n: root / split / "masks" / f"{n}.png" for n in own}
        (root / split).mkdir(parents=True)
        rows = {n: SHOWS[n] for n in own}
        WeakLabels(NAMES, rows).save(root / split / "labels.json")
    _fill(image, mask)
    return Tree(root, image, mask, image["a"].with_stem("new"))


def classes(root: Path) -> Tree:
    """A folder for each class; here c shows a cat only."""
    first = {name: shown[0] for name, shown in SHOWS.items()}
    image = {n: root / first[n] / f"{n} ü.jpg" for n in SHOWS}
    mask = {n: root / "masks" / first[n] / f"{n} ü.png" for n in SHOWS}
    _fill(image, mask)
    ids = np.array(Image.open(mask["c"]))
    write_mask(mask["c"], np.where(ids == 2, 0, ids))
    return Tree(root, image, mask, root / "cat" / "more" / "new.jpg")


LAYOUTS: dict[str, Callable[[Path], Tree]] = {
    "voc": voc,
    "context": context,
    "ade20k": ade20k,
    "coco": coco,
    "folder": folder,
    "classes": classes,
}
