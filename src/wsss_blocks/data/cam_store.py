"""Class activation maps of a whole data set: the present classes, sharded and memory-mapped."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from wsss_blocks.data._cam_info import CamStoreEstimate, estimate_cam_store, read_info
from wsss_blocks.data._cam_shards import Shard, decode, list_shards
from wsss_blocks.data.class_maps import ClassMaps
from wsss_blocks.data.geometry import Geometry
from wsss_blocks.data.maps import MapFiles

__all__ = ["CamStore", "CamStoreEstimate", "StoredCam", "estimate_cam_store"]


class StoredCam(NamedTuple):
    """Maps of the P classes that an image shows, and what they lie on.

    Attributes:
        cam: ``(P, h, w)`` float32, over the whole image.
        classes: ``(P,)`` int64, ascending, counted from 0 without background.
        image_size: height and width of the image in pixels.

    Example:
        >>> import torch
        >>> stored = StoredCam(torch.rand(2, 4, 6), torch.tensor([1, 3]), (32, 48))
        >>> stored.class_maps.to_dense(5).shape
        torch.Size([1, 5, 4, 6])
        >>> stored.geometry.matrix.tolist()  # the centre of cell (0, 0) is at pixel (3.5, 3.5)
        [[8.0, 0.0, 3.5], [0.0, 8.0, 3.5]]
    """

    cam: Tensor
    classes: Tensor
    image_size: tuple[int, int]

    @property
    def class_maps(self) -> ClassMaps:
        """Classes and maps, to be made dense."""
        return ClassMaps(self.classes, self.cam)

    @property
    def geometry(self) -> Geometry:
        """Where the centres of cells lie in the image."""
        h, w = self.cam.shape[-2:]
        return Geometry.identity(self.image_size).resize((h, w))


class CamStore:
    r"""Read what :class:`CamStoreWriter` wrote: one entry per image, by its id.

    Reading maps shards into memory: what is not looked at is not read. Each entry is compared with
    its checksum. A store pickles as the path of its folder, so it goes to worker processes however
    they are started, and each opens the files for itself.

    With ``"float16"`` the maps come back as the nearest half of what was written. With ``"uint8"``
    each map has its own range, whose two ends come back exactly, and

    .. math:: |x' - x| \le \frac{\max x - \min x}{510}

    up to the rounding of float32; a constant map is exact. Maps of absent classes are not stored.

    Note:
        Maps cover the whole image. Of an encoder that pads, cut the padding off before writing.

    Args:
        folder: of the store; it may still lack images (``missing``).

    Raises:
        FileNotFoundError: there is no ``store.json``.
        ValueError: it or a shard is damaged, belongs to another store, or two shards hold the same
            image. The message names the file.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from wsss_blocks.cam import cam_to_label
        >>> from wsss_blocks.data import CamStoreWriter
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with CamStoreWriter(folder, ["a"], ["cat", "dog", "cow"]) as writer:
        ...         cam, labels = torch.rand(3, 8, 8), torch.tensor([0.0, 1.0, 1.0])
        ...         writer.write("a", cam, labels, image_size=(60, 64))
        ...     store = CamStore(folder)
        ...     found = store["a"]
        ...     dense, labels = store.dense("a"), store.labels("a")
        1 images, 2.00 classes and 128 cells each, uint8: about 2.72e-07 GB
        1 of 1 images stored
        >>> found.classes.tolist(), found.cam.shape, found.image_size
        ([1, 2], torch.Size([2, 8, 8]), (60, 64))
        >>> cam_to_label(dense[None], labels[None], size=found.image_size).shape
        torch.Size([1, 60, 64])
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._info = read_info(self.folder)
        self.names = tuple(self._info["names"])
        self.dtype, self.about = self._info["dtype"], self._info["about"]
        self._where: dict[str, tuple[Shard, int]] = {}
        for _, _, path in list_shards(self.folder):
            shard = Shard(path, made_with=self._info["made_with"], dtype=self.dtype)
            for row, image in enumerate(shard.ids):
                if image in self._where:
                    raise ValueError(
                        f"{path} must hold images of its own, got {image!r}, which is also in "
                        f"{self._where[image][0].path.name}: remove one of the two."
                    )
                self._where[image] = (shard, row)

    @property
    def ids(self) -> list[str]:
        """Ids of the stored images, in the order of the data set."""
        return [image for image in self._info["ids"] if image in self._where]

    @property
    def missing(self) -> list[str]:
        """Ids of the images that are not stored yet."""
        return [image for image in self._info["ids"] if image not in self._where]

    def __len__(self) -> int:
        """Count the stored images."""
        return len(self._where)

    def __contains__(self, image: object) -> bool:
        """Tell whether an image is stored."""
        return image in self._where

    def __getitem__(self, image: str) -> StoredCam:
        """Return the maps of the image with this id.

        Raises:
            KeyError: it is not stored.
            ValueError: its bytes have changed.
        """
        if image not in self._where:
            raise KeyError(f"{self.folder} has no maps of {image!r}: {len(self)} images are there.")
        shard, row = self._where[image]
        found = shard[row]
        cam = decode(found.codes, found.low, found.high)
        return StoredCam(cam, found.classes.long(), found.image_size)

    def dense(self, image: str) -> Tensor:
        """Return the cam ``(K, h, w)`` of an image, 0 for absent classes."""
        return self[image].class_maps.to_dense(len(self.names))[0]

    def labels(self, image: str) -> Tensor:
        """Return the labels ``(K,)`` of an image: the classes that it has maps of."""
        return self[image].class_maps.to_labels(len(self.names))[0]

    def maps(self, ids: Iterable[str]) -> MapFiles:
        """Return the dense cams of images as a sequence for :class:`WithMaps`.

        Args:
            ids: of the images, in the order of the data set (``dataset.ids``).

        Raises:
            ValueError: an image is not stored.
        """
        ids = list(ids)
        missing = [image for image in ids if image not in self]
        if missing:
            raise ValueError(
                f"{self.folder} lacks the maps of {len(missing)} of {len(ids)} images "
                f"({', '.join(map(repr, missing[:3]))}): write the store to its end."
            )
        return MapFiles(self.dense, ids)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self.folder),)
