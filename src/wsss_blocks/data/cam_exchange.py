"""CAMs from and to the dictionaries of PSA (CVPR 2018) and IRN (CVPR 2019) and their successors."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from wsss_blocks._files import replaced
from wsss_blocks._validate import check_choice, check_int, check_size
from wsss_blocks.cam.normalize import normalize_cam
from wsss_blocks.data.cam_store import CamStore, StoredCam
from wsss_blocks.data.cam_store_writer import CamStoreWriter
from wsss_blocks.data.class_maps import ClassMaps, read_class_maps, read_irn_maps
from wsss_blocks.distributed import gather_objects, rank, world_size

__all__ = ["export_irn", "export_psa", "import_irn", "import_psa"]

Found = tuple[ClassMaps, tuple[int, int] | None]


def export_irn(
    store: CamStore, folder: str | Path, *, normalize: bool = True, stride: int = 4
) -> None:
    """Write one ``ID.npy`` per image as IRN does: ``{"keys", "cam", "high_res"}``.

    ``keys`` (P,) and ``cam`` (P, ceil(H / stride), ceil(W / stride)) are torch tensors, as IRN's
    random walk expects them; ``high_res`` (P, H, W) is a float32 array. In a process group each
    process writes its share.

    Note:
        IRN divides by the maximum plus 1e-5 before it sums up scales; here the stored map is
        divided, by the larger of its maximum and 1e-5.

    Args:
        store: where the maps are.
        folder: made if need be.
        normalize: ReLU, and each map divided by its maximum, which IRN's thresholds expect. False
            for scores as they are stored.
        stride: of ``cam``.

    Raises:
        ValueError: ``stride`` is not positive, or maps are damaged.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from wsss_blocks.data import CamStoreWriter
        >>> quiet = dict(progress=lambda line: None)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with CamStoreWriter(f"{folder}/mine", ["a"], ["cat", "dog"], **quiet) as writer:
        ...         labels = torch.tensor([0.0, 1.0])
        ...         writer.write("a", torch.rand(2, 4, 4), labels, image_size=(30, 32))
        ...     export_irn(CamStore(f"{folder}/mine"), f"{folder}/irn")
        ...     again = import_irn(f"{folder}/irn", f"{folder}/again", ["cat", "dog"], **quiet)
        ...     found = again["a"]
        >>> found.classes.tolist(), found.cam.shape, found.image_size
        ([1], torch.Size([1, 8, 8]), (30, 32))
    """
    check_int("stride", stride, least=1)

    def content(stored: StoredCam) -> dict[str, Any]:
        small = _resized(stored, _grid(stored.image_size, stride), normalize)
        large = _resized(stored, stored.image_size, normalize)
        return {"keys": stored.classes, "cam": small, "high_res": large.numpy()}

    _export(store, folder, content)


def export_psa(store: CamStore, folder: str | Path, *, normalize: bool = True) -> None:
    """Write one ``ID.npy`` per image as PSA, SEAM and MCTformer do: ``{class: (H, W)}``.

    Classes count from 0 without background; maps are float32 arrays of the size of the image. In a
    process group each process writes its share.

    Args:
        store: where the maps are.
        folder: made if need be.
        normalize: ReLU, and each map divided by its maximum. False for scores as they are stored.

    Raises:
        ValueError: maps are damaged.
    """

    def content(stored: StoredCam) -> dict[int, Any]:
        maps = _resized(stored, stored.image_size, normalize).numpy()
        return dict(zip(stored.classes.tolist(), maps, strict=True))

    _export(store, folder, content)


def import_irn(
    folder: str | Path,
    store: str | Path,
    names: Sequence[str],
    *,
    ids: Sequence[str] | None = None,
    grid: Literal["cam", "high_res"] = "cam",
    image_sizes: Mapping[str, tuple[int, int]] = MappingProxyType({}),
    dtype: Literal["uint8", "float16"] = "uint8",
    about: Mapping[str, object] = MappingProxyType({}),
    progress: Callable[[str], object] = print,
) -> CamStore:
    """Make a store of the files that IRN and its successors write, ``ID.npy``.

    They are parsed without executing anything of them. An interrupted import goes on; in a process
    group each process reads its share.

    Args:
        folder: holds the files.
        store: folder of the store.
        names: of the K classes, in the order of the ids in the files.
        ids: of the images; by default all files of the folder, sorted.
        grid: the maps at stride 4, or at the size of the image.
        image_sizes: id -> height and width, of images whose files have no ``high_res``.
        dtype: of the maps in the store.
        about: goes into the store, see :class:`CamStoreWriter`.
        progress: takes lines of text.

    Returns:
        The store, complete.

    Raises:
        FileNotFoundError: there is no file, or none of an image.
        ValueError: a file is damaged or holds anything else, names a class beyond K, or nothing
            says how large its image is.
    """
    check_choice("grid", grid, ("cam", "high_res"))

    def read(path: Path) -> Found:
        return read_irn_maps(path, grid=grid)

    about = {"imported": "irn", "grid": grid, **about}
    return _imported(folder, store, names, ids, read, image_sizes, dtype, about, progress)


def import_psa(
    folder: str | Path,
    store: str | Path,
    names: Sequence[str],
    *,
    ids: Sequence[str] | None = None,
    stride: int = 1,
    image_sizes: Mapping[str, tuple[int, int]] = MappingProxyType({}),
    dtype: Literal["uint8", "float16"] = "uint8",
    about: Mapping[str, object] = MappingProxyType({}),
    progress: Callable[[str], object] = print,
) -> CamStore:
    """Make a store of the files that PSA, SEAM and MCTformer write, ``ID.npy``.

    They are parsed without executing anything of them. An interrupted import goes on; in a process
    group each process reads its share.

    Args:
        folder: holds the files.
        store: folder of the store.
        names: of the K classes, in the order of the ids in the files.
        ids: of the images; by default all files of the folder, sorted.
        stride: averages maps over this many pixels in height and width; 1 keeps all, and COCO takes
            about 75 GB in uint8.
        image_sizes: id -> height and width, of images without any class, whose files are empty.
        dtype: of the maps in the store.
        about: goes into the store, see :class:`CamStoreWriter`.
        progress: takes lines of text.

    Returns:
        The store, complete.

    Raises:
        FileNotFoundError: there is no file, or none of an image.
        ValueError: a file is damaged or holds anything else, names a class beyond K, or nothing
            says how large its image is.
    """
    check_int("stride", stride, least=1)

    def read(path: Path) -> Found:
        found = read_class_maps(path)
        if not len(found.classes):
            return found, None
        h, w = found.maps.shape[1:]
        small = F.adaptive_avg_pool2d(found.maps, _grid((h, w), stride))
        return ClassMaps(found.classes, small), (h, w)

    about = {"imported": "psa", "stride": stride, **about}
    return _imported(folder, store, names, ids, read, image_sizes, dtype, about, progress)


def _imported(
    folder: str | Path,
    store: str | Path,
    names: Sequence[str],
    ids: Iterable[str] | None,
    read: Callable[[Path], Found],
    image_sizes: Mapping[str, tuple[int, int]],
    dtype: Literal["uint8", "float16"],
    about: Mapping[str, object],
    progress: Callable[[str], object],
) -> CamStore:
    folder = Path(folder)
    if ids is None:
        ids = sorted(path.stem for path in folder.glob("*.npy"))
        if not ids:
            raise FileNotFoundError(f"no .npy files in {folder}.")
    with CamStoreWriter(
        store, list(ids), names, dtype=dtype, about=about, progress=progress
    ) as writer:
        for image in writer.todo:
            path = folder / f"{image}.npy"
            found, size = read(path)
            size = image_sizes.get(image, size)
            if size is None:
                raise ValueError(
                    f"image_sizes must say how large {image!r} is, as {path} does not, got none."
                )
            check_size(f"image_sizes[{image!r}]", size)
            try:
                writer.write_present(image, *found, image_size=size)
            except ValueError as error:
                raise ValueError(f"{path} does not fit into the store: {error}") from error
    gather_objects(rank())  # all are written
    return CamStore(store)


def _export(
    store: CamStore, folder: str | Path, content: Callable[[StoredCam], dict[Any, Any]]
) -> None:
    for image in store.ids[rank() :: world_size()]:
        with (
            replaced(Path(folder) / f"{image}.npy") as temporary,
            temporary.open("wb") as file,
        ):
            np.save(file, np.array(content(store[image]), dtype=object), allow_pickle=True)


def _resized(stored: StoredCam, size: tuple[int, int], normalize: bool) -> Tensor:
    if not len(stored.cam):
        return stored.cam.new_zeros(0, *size)
    maps = F.interpolate(stored.cam[None], size=size, mode="bilinear", align_corners=False)
    return (normalize_cam(maps, mode="max") if normalize else maps)[0]


def _grid(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return math.ceil(size[0] / stride), math.ceil(size[1] / stride)
