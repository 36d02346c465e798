"""Image-level labels of a data set: which classes each image shows, nothing about where."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsss_blocks._files import replaced
from wsss_blocks.data import _label_files as files
from wsss_blocks.data import _label_tables as tables
from wsss_blocks.data.names import VOC_NAMES

__all__ = ["WeakLabels"]


class WeakLabels:
    """Hold class names and, for each image id, the set of classes present.

    ``labels[id]`` is the ``(K,)`` float32 multi-hot vector. An image without any class is legal.

    Args:
        names: the K class names, in the order of the columns; mask id = position + 1.
        rows: for each image id the names of its classes.

    Raises:
        ValueError: names are not unique, or a row holds a class that is not among them.
        TypeError: names are not strings, or rows no mapping to collections of names.

    Example:
        >>> labels = WeakLabels(("cat", "dog"), {"a": ["dog"], "b": ["cat", "dog"], "c": []})
        >>> labels["b"].tolist(), labels.counts()
        ([1.0, 1.0], {'cat': 1, 'dog': 2})
    """

    def __init__(self, names: Iterable[str], rows: Mapping[str, Collection[str]]) -> None:
        self.names = tables.check_class_names(names)
        column = {name: k for k, name in enumerate(self.names)}
        tables.check_rows(rows, column)
        self._index = {name: row for row, name in enumerate(rows)}
        self._matrix: NDArray[np.bool_] = np.zeros((len(self._index), len(self.names)), dtype=bool)
        for row, present in enumerate(rows.values()):
            self._matrix[row, [column[name] for name in present]] = True

    @property
    def ids(self) -> list[str]:
        """Image ids in the order of the rows."""
        return list(self._index)

    @property
    def hash(self) -> str:
        """SHA-256 of names and rows, whatever the order of the rows."""
        digest = hashlib.sha256(json.dumps(self.names).encode())
        for image in sorted(self._index):
            digest.update(json.dumps([image, self.classes(image)]).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, image: object) -> bool:
        return image in self._index

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeakLabels) and self.hash == other.hash

    def __repr__(self) -> str:
        return f"WeakLabels({len(self)} images, {len(self.names)} classes)"

    def __getitem__(self, image: str) -> Tensor:
        """Return the ``(K,)`` float32 multi-hot vector of an image."""
        return torch.from_numpy(self._row(image).astype(np.float32))

    def classes(self, image: str) -> list[str]:
        """List the class names of an image."""
        return [self.names[k] for k in np.flatnonzero(self._row(image))]

    def counts(self) -> dict[str, int]:
        """Count the images of each class."""
        return dict(zip(self.names, self._matrix.sum(0).tolist(), strict=True))

    def subset(self, ids: Iterable[str]) -> "WeakLabels":
        """Keep the rows of ``ids``, in that order."""
        return WeakLabels(self.names, {image: self.classes(image) for image in ids})

    def save(self, path: str | Path) -> None:
        """Write ``.json`` (class names per image) or ``.csv`` (a column of 0/1 per class).

        The JSON file also says how many images each class has, and the hash of when it was written;
        :meth:`load` reads neither, so the rows may be edited.
        """
        path = Path(path)
        tables.check_suffix(path)
        with replaced(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            rows = {image: self.classes(image) for image in self}
            if path.suffix == ".csv":
                tables.write_csv(file, self.names, rows)
            else:
                tables.write_json(file, self.names, rows, counts=self.counts(), digest=self.hash)

    @classmethod
    def load(cls, path: str | Path, *, names: Sequence[str] | None = None) -> "WeakLabels":
        """Read ``.json``, ``.csv``, the field's ``.npy``, or a ``.txt`` of 0-based class ids.

        The ``.npy`` is a pickled dictionary from id to multi-hot vector; it is parsed without
        executing anything of it. ``names`` are required for ``.npy`` and ``.txt``, which have none;
        for the other formats they give the order and must be the classes of the file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: names are missing or differ, or the file is not what its suffix says.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix == ".json":
            return cls(*tables.in_order(path, tables.read_json(path), names))
        if suffix == ".csv":
            return cls.from_csv(path, names=names)
        if suffix not in (".npy", ".txt"):
            raise ValueError(f"path must end in .json, .csv, .npy or .txt, got {path}.")
        if suffix == ".npy":
            return cls(*files.read_npy(path, names))
        if names is None:
            raise ValueError(f"names must be given for {path}: {files.NAMELESS}")
        return cls.from_coco_txt(path, names=names)

    @classmethod
    def from_csv(cls, path: str | Path, *, names: Sequence[str] | None = None) -> "WeakLabels":
        """Read a table with a header: ``id`` and a 0/1 column per class, or ``id,labels``.

        With the second column called ``label``, ``labels``, ``class`` or ``classes`` it holds class
        names separated by ``;`` and the rows of one id are merged. Columns may be separated by
        ``;`` or tabs instead (Excel); beside ``;``, class names may be separated by commas.
        """
        return cls(*tables.in_order(Path(path), tables.read_csv(Path(path), names), names))

    @classmethod
    def from_folders(
        cls,
        root: str | Path,
        *,
        exclude: Collection[str] = (),
        names: Sequence[str] | None = None,
    ) -> "WeakLabels":
        """Read a folder per class: id ``cat/001`` has class cat; images in ``root`` have none."""
        return cls(*tables.in_order(Path(root), files.read_folders(Path(root), exclude), names))

    @classmethod
    def from_voc_xml(
        cls, annotations_dir: str | Path, ids: Iterable[str], *, names: Sequence[str] = VOC_NAMES
    ) -> "WeakLabels":
        """Read the object names of VOC annotations, difficult and truncated objects included."""
        root = Path(annotations_dir)
        return cls(names, {i: files.read_xml(root / f"{i}.xml", names) for i in ids})

    @classmethod
    def from_masks(
        cls,
        masks_dir: str | Path,
        ids: Iterable[str],
        *,
        names: Sequence[str],
        mask_ids: Tensor | None = None,
        workers: int = 4,
    ) -> "WeakLabels":
        """Read the classes that occur in masks ``<id>.png`` (0 background, 255 ignored).

        ``mask_ids`` is the ``(256,)`` uint8 table from the ids in the files to 0, 1..K and 255, for
        data sets whose files hold other ids (``COCOStuff.mask_ids``). ``workers`` threads read.
        """
        lookup = None if mask_ids is None else mask_ids.numpy()
        rows = files.read_masks(Path(masks_dir), ids, names, lookup=lookup, workers=workers)
        return cls(names, rows)

    @classmethod
    def from_coco_txt(cls, path: str | Path, *, names: Sequence[str]) -> "WeakLabels":
        """Read lines of an image id followed by contiguous 0-based class ids."""
        return cls(names, files.read_coco_txt(Path(path), names))

    @classmethod
    def from_coco_json(
        cls, path: str | Path, *, names: Sequence[str] | None = None
    ) -> "WeakLabels":
        """Read a COCO ``instances_*.json``; ids are file names without suffix, crowds count."""
        return cls(*tables.in_order(Path(path), files.read_coco_json(Path(path)), names))

    def _row(self, image: str) -> NDArray[np.bool_]:
        if image not in self._index:
            raise KeyError(f"no labels for {image!r} among {len(self)} images.")
        row: NDArray[np.bool_] = self._matrix[self._index[image]]
        return row
