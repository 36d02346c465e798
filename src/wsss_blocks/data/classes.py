"""Names, ids, colours and split sizes of the data sets of the field, from ``tables/*.json``."""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from wsss_blocks._validate import check_choice, check_int
from wsss_blocks.data._tables import CLASS_TABLES, read_table

__all__ = ["CLASS_TABLES", "ClassTable", "check_split_size", "class_table"]


class ClassTable(NamedTuple):
    """What a data set calls its classes, and how many images its splits have.

    Attributes:
        names: the K classes, without background; mask id = position + 1.
        raw_ids: for each class its id in the official files: pixel values of masks, or the
            category ids of COCO's JSON files.
        background: whether the data set has a background; else masks never hold 0.
        palette: ``(K + 1, 3)`` uint8, background first.
        sizes: images of each official split; where the field uses several numbers, the usual first.
        source: where names, ids and colours come from.
        notes: what the numbers mean.
    """

    names: tuple[str, ...]
    raw_ids: tuple[int, ...]
    background: bool
    palette: Tensor
    sizes: Mapping[str, tuple[int, ...]]
    source: str
    notes: str


def class_table(name: str) -> ClassTable:
    """Return the class table of a data set.

    Args:
        name: one of :data:`CLASS_TABLES`.

    Returns:
        Its table.

    Raises:
        ValueError: there is none of that name.

    Example:
        >>> table = class_table("coco")
        >>> len(table.names), table.names[11], table.raw_ids[11], table.sizes["train2014"]
        (80, 'stop sign', 13, (82081, 82783))
    """
    check_choice("name", name, CLASS_TABLES)
    table = _read(name)
    return table._replace(palette=table.palette.clone())


def check_split_size(table: str, split: str, count: int) -> None:
    """Raise unless a split has as many images as the official one; unknown splits pass.

    Args:
        table: one of :data:`CLASS_TABLES`.
        split: ``"train"``, ``"val2014"``, ...
        count: the number of images found.

    Raises:
        ValueError: the number is another one or negative, or there is no such table.
        TypeError: ``count`` is not an int.

    Example:
        >>> check_split_size("voc", "train_aug", 10582)
    """
    check_choice("table", table, CLASS_TABLES)
    check_int("count", count, least=0)
    sizes = class_table(table).sizes.get(split, (count,))
    if count not in sizes:
        official = " or ".join(f"{size:,}" for size in sizes)
        raise ValueError(
            f"split {split!r} of {table!r} must have {official} images, got {count:,}: a subset?"
        )


@cache
def _read(name: str) -> ClassTable:
    content = read_table(name)
    return ClassTable(
        names=tuple(content["names"]),
        raw_ids=tuple(content["raw_ids"]),
        background=content["background"],
        palette=torch.tensor(content["palette"], dtype=torch.uint8, device="cpu"),
        sizes=MappingProxyType({split: tuple(n) for split, n in content["sizes"].items()}),
        source=content["source"],
        notes=content["notes"],
    )
