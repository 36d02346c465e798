"""What the builders of mask folders share: keep right files, write missing ones."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsss_blocks.data.images import read_mask, write_mask

__all__ = ["Progress", "no_progress", "put_mask"]

Progress = Callable[..., Iterable[Any]]
"""Called as ``progress(items, total=n)``; yields the items and shows how far they are."""


def no_progress(items: Iterable[Any], *, total: int) -> Iterable[Any]:
    """Yield the items."""
    return items


def put_mask(path: Path, ids: NDArray[np.uint8], *, overwrite: bool) -> bool:
    """Write a mask and return True, or find it there with the same pixels and return False.

    Raises:
        FileExistsError: the file holds anything else and ``overwrite`` is False.
    """
    if path.exists():
        try:
            same = np.array_equal(read_mask(path).numpy(), ids)
        except (OSError, ValueError):
            same = False
        if same:
            return False
        if not overwrite:
            raise FileExistsError(
                f"{path} exists and is another mask: nothing is replaced unless overwrite is set."
            )
    write_mask(path, ids)
    return True
