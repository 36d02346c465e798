"""Features that others saved as arrays, such as those of CAUSE (Kim et al., 2023)."""

import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wsss_blocks._validate import check_finite
from wsss_blocks.data.maps import MapFiles

__all__ = ["SavedFeatures", "read_cause_features"]

_KINDS = (".npy", ".npz", ".pt")


class SavedFeatures:
    """Read features that others saved, one file per image, as :class:`FeatureCache` reads its own.

    Args:
        folder: holds ``ID.npy``, ``ID.npz`` or ``ID.pt`` for :func:`read_cause_features`.

    Raises:
        FileNotFoundError: no such folder; on reading, no file of an image.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/a.npy", np.zeros((90, 6, 8), np.float16))
        ...     SavedFeatures(folder)["a"].shape
        torch.Size([90, 6, 8])
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no folder of features at {self.folder}.")

    def __getitem__(self, image: str) -> Tensor:
        """Return the features ``(D, h, w)`` of the image with this id."""
        return read_cause_features(self._file(image))

    def maps(self, ids: Iterable[str]) -> MapFiles:
        """Return the features of images as a sequence for :class:`WithMaps`.

        Raises:
            FileNotFoundError: an image has no file.
        """
        ids = list(ids)
        for image in ids:
            self._file(image)
        return MapFiles(self.__getitem__, ids)

    def _file(self, image: str) -> Path:
        for kind in _KINDS:
            path = self.folder / f"{image}{kind}"
            if path.is_file():
                return path
        raise FileNotFoundError(f"no features {image}{{{','.join(_KINDS)}}} in {self.folder}.")


def read_cause_features(path: str | Path) -> Tensor:
    """Read the features of one image that CAUSE (or any other) made: ``.npy``, ``.npz``, ``.pt``.

    Nothing in a file is executed. The features must cover the whole image, as those that DHR
    extracts do; then :class:`WithMaps` and :class:`MapFiles` use them like any cached map.

    Reference:
        CAUSE: "Causal Unsupervised Semantic Segmentation", https://arxiv.org/abs/2310.07379; its
        90 channels are the unsupervised features of DHR, https://arxiv.org/abs/2404.00380.

    Args:
        path: a file with one floating-point array ``(D, h, w)`` or ``(1, D, h, w)``; in ``.npz``
            and in a dictionary of ``.pt`` it may have any name if it is the only one.

    Returns:
        ``(D, h, w)`` on the CPU, in the dtype of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, pickled, of another kind, or holds several arrays, one of
            another shape, or values that are not finite.
        TypeError: the array does not hold floating-point numbers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/a.npy", np.zeros((1, 90, 6, 8), np.float16))
        ...     read_cause_features(f"{folder}/a.npy").shape
        torch.Size([90, 6, 8])
    """
    path = Path(path)
    if path.suffix not in _KINDS:
        raise ValueError(f"path must end in .npy, .npz or .pt, got {path}.")
    if not path.is_file():
        raise FileNotFoundError(f"no features at {path}.")
    found = _read(path)
    if isinstance(found, dict):
        if len(found) != 1:
            raise ValueError(f"{path} must hold one array, got {sorted(map(str, found))}.")
        (found,) = found.values()
    if not isinstance(found, Tensor):
        raise ValueError(f"{path} must hold an array, got {type(found).__name__}.")
    if found.ndim == 4 and found.shape[0] == 1:
        found = found[0]
    if found.ndim != 3 or 0 in found.shape:
        raise ValueError(
            f"{path} must hold features of shape (D, h, w) or (1, D, h, w), "
            f"got {tuple(found.shape)}."
        )
    if not found.is_floating_point():
        raise TypeError(f"{path} must hold floating-point features, got {found.dtype}.")
    check_finite(f"features in {path}", found)
    return found


def _read(path: Path) -> object:
    try:
        if path.suffix == ".pt":
            return torch.load(path, map_location="cpu", weights_only=True)
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return torch.from_numpy(found)
            return {name: torch.from_numpy(found[name]) for name in found.files}
    except (
        *(OSError, ValueError, TypeError, EOFError, RuntimeError),
        *(pickle.UnpicklingError, zipfile.BadZipFile),
    ) as error:
        raise ValueError(f"{path} must hold plain arrays, whole: {error}") from error
