"""Class activation maps of one image in one file: the present classes, nothing else."""

import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsss_blocks._files import replaced
from wsss_blocks._validate import (
    check_choice,
    check_finite,
    check_floating,
    check_int,
    check_labels,
    check_shape,
)
from wsss_blocks.data._plain_pickle import load_map_arrays, skip_npy_header

__all__ = ["ClassMaps", "read_class_maps", "read_irn_maps", "write_class_maps"]

_BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


class ClassMaps(NamedTuple):
    """Maps of the P classes that an image is said to show.

    Attributes:
        classes: ``(P,)`` int64, counted from 0 without background.
        maps: ``(P, h, w)`` float32.
    """

    classes: Tensor
    maps: Tensor

    def to_labels(self, num_classes: int) -> Tensor:
        """Return the classes as ``(1, K)`` multi-hot labels, K = ``num_classes``.

        Raises:
            ValueError: there is a class beyond K.
        """
        self._check(num_classes)
        return torch.zeros(1, num_classes).index_fill_(1, self.classes, 1)

    def to_dense(self, num_classes: int) -> Tensor:
        """Return a cam ``(1, K, h, w)``, K = ``num_classes``, with 0 where there is no map.

        Raises:
            ValueError: there is a class beyond K.
        """
        self._check(num_classes)
        cam = self.maps.new_zeros(1, num_classes, *self.maps.shape[1:])
        cam[0, self.classes] = self.maps
        return cam

    def _check(self, num_classes: int) -> None:
        check_int("num_classes", num_classes, least=1)
        if len(self.classes) and int(self.classes.max()) >= num_classes:
            raise ValueError(
                f"classes must be less than num_classes={num_classes}, got "
                f"{self.classes.tolist()}: are they counted from 1, or of other data?"
            )


def write_class_maps(
    path: str | Path,
    cam: Tensor,
    labels: Tensor,
    *,
    dtype: Literal["float16", "float32"] = "float16",
) -> None:
    """Write the maps of the classes that an image shows as ``.npz``.

    The file holds ``classes`` (P,), counted from 0 without background, and ``maps`` (P, h, w). It
    is written under a temporary name first.

    Args:
        path: the file; ``wsss sweep`` expects ``<id>.npz``.
        cam: ``(K, h, w)`` scores, at any size.
        labels: ``(K,)`` multi-hot.
        dtype: of the maps in the file.

    Raises:
        ValueError: a shape is wrong, ``cam`` is not finite or too large for ``dtype``, or ``path``
            does not end in ``.npz``.
        TypeError: ``cam`` is not floating point.

    Example:
        >>> import tempfile
        >>> cam = torch.rand(20, 28, 28)
        >>> labels = torch.zeros(20)
        >>> labels[[4, 11]] = 1
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_class_maps(f"{folder}/2007_000032.npz", cam, labels)
        ...     found = read_class_maps(f"{folder}/2007_000032.npz")
        >>> found.classes.tolist(), tuple(found.maps.shape)
        ([4, 11], (2, 28, 28))
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path must end in .npz, got {path}.")
    check_choice("dtype", dtype, ("float16", "float32"))
    check_shape("cam", cam, "K h w")
    check_floating("cam", cam)
    check_finite("cam", cam)
    check_shape("labels", labels, "K", K=len(cam))
    check_labels(labels[None], batch=1, num_classes=len(cam), device=labels.device)
    classes = (labels > 0).nonzero()[:, 0].cpu()
    maps = cam.detach()[classes.to(cam.device)].to("cpu", getattr(torch, dtype))
    if not maps.isfinite().all():
        raise ValueError(f"cam must fit into {dtype}, got {float(cam.abs().max()):.4g}.")
    with replaced(path) as temporary, temporary.open("wb") as file:
        np.savez(file, classes=classes.numpy(), maps=maps.numpy())


def read_class_maps(path: str | Path) -> ClassMaps:
    """Read the maps of one image: a file of :func:`write_class_maps`, or one of the field's.

    Known are pickled dictionaries of numpy arrays or torch tensors, in ``.npy``, which are parsed
    without executing anything of them:

    - ``{"keys": (P,), "cam": (P, h, w), "high_res": (P, H, W)}`` of IRN and its successors, of
      which ``high_res`` is taken where it is there;
    - ``{class: (H, W)}`` of PSA, SEAM and MCTformer.

    Both count classes from 0, without background.

    Args:
        path: ``.npz`` or ``.npy``.

    Returns:
        Classes, in ascending order, and their maps.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, holds anything else, or maps that are not finite.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".npz", ".npy"):
        raise ValueError(f"path must end in .npz or .npy, got {path}.")
    if not path.is_file():
        raise FileNotFoundError(f"no class maps at {path}.")
    try:
        classes, maps = _read_npz(path) if suffix == ".npz" else _read_npy(path)
        return _checked(classes, maps)
    except _BROKEN as error:
        raise ValueError(f"{path} must hold class maps: {error}") from error


def read_irn_maps(
    path: Path, *, grid: Literal["cam", "high_res"]
) -> tuple[ClassMaps, tuple[int, int] | None]:
    """Read either of the maps of an IRN file, and how large its image is, if it says so."""
    if not path.is_file():
        raise FileNotFoundError(f"no class maps at {path}.")
    try:
        found = _dictionary(path)
        if {"keys", grid} - set(found):
            raise ValueError(f"expected 'keys' and {grid!r}, got {list(found)[:5]}")
        if "high_res" not in found:
            return _checked(found["keys"], found[grid]), None
        large = _checked(found["keys"], found["high_res"])
        size = (large.maps.shape[1], large.maps.shape[2])
        return large if grid == "high_res" else _checked(found["keys"], found[grid]), size
    except _BROKEN as error:
        raise ValueError(f"{path} must hold class maps: {error}") from error


def _read_npz(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        if {"classes", "maps"} - set(file.files):
            raise ValueError(f"expected the arrays 'classes' and 'maps', got {file.files}")
        return file["classes"], file["maps"]


def _read_npy(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    found = _dictionary(path)
    if "keys" in found:
        name = "high_res" if "high_res" in found else "cam"
        if name not in found:
            raise ValueError(f"expected 'cam' or 'high_res' beside 'keys', got {list(found)}")
        return found["keys"], found[name]
    if not all(isinstance(key, int) for key in found):
        raise ValueError(f"expected 'keys' and 'cam', or whole numbers, got {list(found)[:5]}")
    classes = np.array(list(found), dtype=np.int64)
    return classes, np.stack(list(found.values())) if found else np.zeros((0, 1, 1))


def _dictionary(path: Path) -> dict[str | int, NDArray[Any]]:
    with path.open("rb") as file:
        skip_npy_header(file)
        return load_map_arrays(file)


def _checked(classes: NDArray[Any], maps: NDArray[Any]) -> ClassMaps:
    if classes.ndim != 1 or (len(classes) and classes.dtype.kind not in "iu"):
        raise ValueError(f"classes must be whole numbers (P,), got {classes.dtype} {classes.shape}")
    if maps.ndim != 3 or len(maps) != len(classes) or 0 in maps.shape[1:]:
        raise ValueError(f"maps must have shape ({len(classes)}, h, w), got {maps.shape}")
    with np.errstate(over="ignore"):
        maps = maps.astype(np.float32)  # a copy: what was parsed out of bytes is read-only
    if not np.isfinite(maps).all():
        raise ValueError("maps must hold finite numbers")
    if len(set(classes.tolist())) < len(classes) or (len(classes) and classes.min() < 0):
        raise ValueError(f"classes must be different and not negative, got {classes.tolist()}")
    order = np.argsort(classes)
    return ClassMaps(
        torch.from_numpy(classes[order].astype(np.int64)), torch.from_numpy(maps[order])
    )
