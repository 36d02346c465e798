"""Cut a mask into parts (connected through sides) and group these into objects."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["Instances", "Region", "find_regions"]

Instances = Literal["components", "classes"]

AROUND = np.ones((3, 3), np.int64)  # corners count, too


class Region(NamedTuple):
    """An object: its class id, and the numbers of its parts."""

    value: int
    parts: tuple[int, ...]


def find_regions(
    ids: NDArray[np.uint8], *, instances: Instances
) -> tuple[NDArray[np.int64], list[Region]]:
    """Number the parts of all classes and say which make up an object.

    Args:
        ids: ``(H, W)``: 0 background, 255 ignored.
        instances: an object is a group of pixels of a class that touch, be it at a corner
            (``"components"``), or all of a class (``"classes"``).

    Returns:
        ``(H, W)``, 0 where no class is, else the number of a part; and the objects by class, those
        of a class from the top.
    """
    parts = np.zeros(ids.shape, np.int64)
    regions: list[Region] = []
    total = 0
    for value in np.unique(ids).tolist():
        if value in (0, 255):
            continue
        there = ids == value
        numbered, count = ndimage.label(there)
        parts[there] = numbered[there] + total
        numbers = range(total + 1, total + count + 1)
        if instances == "classes":
            regions.append(Region(value, tuple(numbers)))
        else:
            grouped, groups = ndimage.label(there, AROUND)
            # All pixels of a part are in one group: the one its last pixel says.
            group_of = np.zeros(count + 1, np.int64)
            group_of[numbered[there]] = grouped[there]
            members: list[list[int]] = [[] for _ in range(groups)]
            for number, group in zip(numbers, group_of[1:].tolist(), strict=True):
                members[group - 1].append(number)
            regions += [Region(value, tuple(found)) for found in members]
        total += count
    return parts, regions
