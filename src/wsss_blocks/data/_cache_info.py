"""What a cache of features was made with, and how much disk it takes."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

from torch import nn

from wsss_blocks._validate import check_positive, check_sequence
from wsss_blocks.data._feature_files import Grid, weights_hash
from wsss_blocks.data.opening import WeakDataset

__all__ = ["DiskEstimate", "Info", "estimate", "read_info", "same_or_raise", "settings"]

_SEEN = 32


class Info(TypedDict, total=False):
    """The content of ``cache.json``; ``made_with`` is a hash of all but itself and the estimate."""

    encoder: str
    weights: str
    scales: list[float]
    flip: bool
    layer: int | None
    size: list[int] | None
    size_policy: str
    grid_rule: str
    dim: int
    made_with: str
    estimate: dict[str, object]


class DiskEstimate(NamedTuple):
    """What the features of a data set take on disk, from the sizes of up to 32 of its images.

    Args:
        images: number of images.
        dim: channels D.
        mean_grid: mean height and width of the grids.
        bytes: of all files together.

    Example:
        >>> str(DiskEstimate(10582, 90, (54.0, 72.0), 10582 * 90 * 54 * 72 * 2))
        '10582 images, 90 channels, mean grid 54.0 x 72.0, float16: about 7.41 GB'
    """

    images: int
    dim: int
    mean_grid: tuple[float, float]
    bytes: int

    def __str__(self) -> str:
        h, w = self.mean_grid
        return (
            f"{self.images} images, {self.dim} channels, mean grid {h:.1f} x {w:.1f}, float16: "
            f"about {self.bytes / 1e9:.3g} GB"
        )


def estimate(
    dataset: WeakDataset, grid: Grid, *, scales: Sequence[float], size: tuple[int, int] | None
) -> DiskEstimate:
    """Look at up to 32 images, evenly spread, and compute their grids."""
    check_sequence("scales", scales)
    for scale in scales:
        check_positive("scales", scale)
    ids = list(dataset.ids)
    if not ids or not len(scales):
        raise ValueError(
            f"dataset and scales must not be empty, got {len(ids)} images and {len(scales)} scales."
        )
    if len(set(ids)) != len(ids):
        twice = next(image for image in ids if ids.count(image) > 1)
        raise ValueError(f"dataset must name each image once, got {twice!r} again.")
    seen = min(_SEEN, len(ids))
    grids = [size] * seen if size else []
    for i in range(0 if size else seen):
        h, w = dataset[i * len(ids) // seen]["image"].shape[-2:]
        grids.append(grid.of((h, w), max(scales)))
    cells = sum(h * w for h, w in grids) / seen
    mean = (sum(h for h, _ in grids) / seen, sum(w for _, w in grids) / seen)
    return DiskEstimate(len(ids), grid.dim, mean, round(len(ids) * grid.dim * cells * 2))


def settings(
    module: nn.Module,
    grid: Grid,
    *,
    scales: Sequence[float],
    flip: bool,
    size: tuple[int, int] | None,
    name: str | None,
) -> Info:
    """Say all that decides what the features are."""
    y, x = grid.cell
    rule = f"side * {max(scales):g} up to a multiple of {grid.stride}, in cells of {y:g} x {x:g}"
    info = Info(
        encoder=name or type(module).__name__,
        weights=weights_hash(module),
        scales=[float(scale) for scale in scales],
        flip=bool(flip),
        layer=grid.layer,
        size=[int(side) for side in size] if size else None,
        size_policy="resize",
        grid_rule=f"whole image; {rule}" + (", then resized to size" if size else ""),
        dim=grid.dim,
    )
    info["made_with"] = hashlib.sha256(json.dumps(info).encode()).hexdigest()
    return info


def read_info(path: Path) -> Info:
    """Read ``cache.json``."""
    if not path.is_file():
        raise FileNotFoundError(f"no cache of features at {path.parent}: there is no {path.name}.")
    try:
        found: Info = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found["made_with"], str) and isinstance(found["dim"], int):
            return found
        raise TypeError("values of other types")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be what FeatureCache.build wrote, got {error!r}.") from error


def same_or_raise(wanted: Info, found: Info, folder: Path) -> None:
    """Refuse features made with something else, and name what."""
    if wanted["made_with"] == found["made_with"]:
        return
    keys = [key for key in wanted if key != "made_with"]
    differ = [
        f"{key} {found.get(key)!r} instead of {wanted.get(key)!r}"
        for key in keys
        if found.get(key) != wanted.get(key)
    ]
    raise ValueError(
        f"{folder} must hold features made as those asked for, got {'; '.join(differ)}: "
        "choose another folder, or remove this one."
    )
