"""Write a CAM store: resumable, by one process or many."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Self

from torch import Tensor

from wsss_blocks._validate import (
    check_finite,
    check_floating,
    check_int,
    check_integer,
    check_labels,
    check_shape,
    check_size,
    check_tensor,
)
from wsss_blocks.data._cam_info import describe, from_cells, info_file, read_info, same_or_raise
from wsss_blocks.data._cam_shards import (
    DamagedError,
    Record,
    Shard,
    encode,
    list_shards,
    remove_temporary,
    shard_file,
    write_shard,
)
from wsss_blocks.distributed import rank as group_rank
from wsss_blocks.distributed import world_size as group_size

__all__ = ["CamStoreWriter"]


class CamStoreWriter:
    """Store the maps of the classes that images show, some hundred images to a file.

    The folder gets ``store.json``, which says what the maps are, and shards, which appear whole or
    not at all. Killed at any moment, a run that is started again finds what is finished, and
    ``todo`` is the rest; what was not flushed yet, at most ``shard_size`` images of each process,
    is made again. A shard that is damaged is removed and made again.

    In a process group each process gets every ``world_size``-th image and writes shards of its own;
    nobody talks to anybody. Wait for the others before reading (:class:`CamStore`). The number of
    processes may change between two runs. One run at a time may write a folder.

    Before the first shard is written, an estimate for the whole data set is made of its records,
    told, and compared with the room on the disk.

    Args:
        folder: made if need be.
        ids: of all images of the data set, of all processes.
        names: of the K classes, without background.
        dtype: of the maps in the files; see :class:`CamStore` for what is lost.
        shard_size: images to a file.
        about: what else decides what the maps are, for JSON: the command, the normalisation, the
            hash of weights. A store whose own differs is refused.
        resume: go on with a store that is there; False refuses it.
        rank: of this process, by default that in the process group.
        world_size: number of processes, likewise.
        progress: takes lines of text.

    Raises:
        ValueError: the store that is there is of something else (the message names what), or an
            argument is out of range.
        TypeError: an argument is of another type.
        FileExistsError: there is a store, without ``resume``.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from wsss_blocks.data import CamStore, Scenes
        >>> scenes = Scenes(size=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with CamStoreWriter(folder, scenes.ids, scenes.names, dtype="float16") as writer:
        ...         for image in writer.todo:
        ...             sample = scenes[scenes.ids.index(image)]
        ...             cam, size = torch.rand(10, 12, 12), sample["image"].shape[-2:]
        ...             writer.write(image, cam, sample["labels"], image_size=tuple(size))
        ...     len(CamStore(folder))
        3 images, 1.33 classes and 192 cells each, float16: about 1.56e-06 GB
        3 of 3 images stored
        3
    """

    def __init__(
        self,
        folder: str | Path,
        ids: Sequence[str],
        names: Sequence[str],
        *,
        dtype: Literal["uint8", "float16"] = "uint8",
        shard_size: int = 512,
        about: Mapping[str, object] = MappingProxyType({}),
        resume: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
        progress: Callable[[str], object] = print,
    ) -> None:
        check_int("shard_size", shard_size, least=1)
        self._rank = group_rank() if rank is None else rank
        self._world = group_size() if world_size is None else world_size
        check_int("world_size", self._world, least=1)
        check_int("rank", self._rank, least=0)
        if self._rank >= self._world:
            raise ValueError(f"rank must be less than world_size={self._world}, got {self._rank}.")
        self.folder, self.shard_size, self.progress = Path(folder), shard_size, progress
        self._info = describe(ids, names, dtype, about)
        self._begin(resume)
        stored = self._look()
        share = self._info["ids"][self._rank :: self._world]
        self._todo = dict.fromkeys(image for image in share if image not in stored)
        self._share, self._stored = len(share), len(stored)
        self._pending: list[Record] = []
        self._told = self._failed = False

    @property
    def todo(self) -> list[str]:
        """Ids of the images that this process still has to write, in the order of ``ids``."""
        return list(self._todo)

    def write(
        self, image: str, cam: Tensor, labels: Tensor, *, image_size: tuple[int, int]
    ) -> None:
        """Store the maps of the classes that ``labels`` names.

        Args:
            image: id, one of ``todo``.
            cam: ``(K, h, w)`` scores over the whole image, on any grid.
            labels: ``(K,)`` multi-hot.
            image_size: height and width of the image in pixels.

        Raises:
            ValueError: a shape is wrong, ``cam`` is not finite or too large for the dtype, or the
                image is not one of ``todo``.
            TypeError: ``cam`` is not floating point.
            OSError: the disk has less room than the estimate.
        """
        k = len(self._info["names"])
        check_shape("cam", cam, "K h w", K=k)
        check_floating("cam", cam)
        check_shape("labels", labels, "K", K=k)
        check_labels(labels[None], batch=1, num_classes=k, device=labels.device)
        classes = (labels > 0).nonzero()[:, 0]
        self.write_present(image, classes, cam[classes.to(cam.device)], image_size=image_size)

    def write_present(
        self, image: str, classes: Tensor, cam: Tensor, *, image_size: tuple[int, int]
    ) -> None:
        """Store the maps of the P classes that an image shows.

        Args:
            image: id, one of ``todo``.
            classes: ``(P,)`` integers, different, counted from 0 without background.
            cam: ``(P, h, w)`` scores over the whole image, on any grid.
            image_size: height and width of the image in pixels.

        Raises:
            ValueError: a shape is wrong, a class is beyond K or named twice, ``cam`` is not finite
                or too large for the dtype, or the image is not one of ``todo``.
            TypeError: ``cam`` is not floating point, or ``classes`` are not integers.
            OSError: the disk has less room than the estimate.
        """
        check_tensor("cam", cam)
        check_tensor("classes", classes)
        if cam.ndim != 3 or 0 in cam.shape[1:]:  # P may be 0
            raise ValueError(f"cam must have shape (P, h, w), got {tuple(cam.shape)}.")
        if classes.shape != cam.shape[:1]:
            raise ValueError(
                f"classes must have shape (P,) with P={len(cam)}, got {tuple(classes.shape)}."
            )
        check_floating("cam", cam)
        check_integer("classes", classes)
        check_size("image_size", image_size)
        classes, order = classes.detach().cpu().long().sort()
        found, k = classes.tolist(), len(self._info["names"])
        if len(set(found)) < len(found) or not all(0 <= x < k for x in found):
            raise ValueError(f"classes must be different and in [0, {k}), got {found}.")
        maps = cam.detach().cpu()[order].float()
        check_finite("cam", maps)
        if image not in self._todo:
            raise ValueError(
                f"image must be one of those that process {self._rank} of {self._world} still has "
                f"to write (todo), got {image!r}."
            )
        codes, low, high = encode(maps, self._info["dtype"])
        if codes.is_floating_point() and not codes.isfinite().all():
            raise ValueError(f"cam must fit into float16, got {float(maps.abs().max()):.4g}.")
        height, width = image_size
        self._pending.append(Record(image, classes, (int(height), int(width)), codes, low, high))
        del self._todo[image]
        if len(self._pending) == self.shard_size:
            self.flush()

    def flush(self) -> None:
        """Write what is held in memory as a shard."""
        if not self._pending:
            return
        self._failed = True
        if not self._told:
            self._estimate()
        numbers = [number for rank, number, _ in list_shards(self.folder) if rank == self._rank]
        path = shard_file(self.folder, self._rank, max(numbers, default=-1) + 1)
        write_shard(path, self._pending, made_with=self._info["made_with"])
        self._pending = []
        self._failed = False
        self.progress(f"{self._share - len(self._todo)} of {self._share} images stored")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Flush, also when an error ends the block: what is held is whole."""
        if not self._failed:
            self.flush()

    def _begin(self, resume: bool) -> None:
        path = info_file(self.folder)
        if path.is_file():
            if not resume:
                raise FileExistsError(f"{self.folder} holds a CAM store: remove it, or resume.")
            same_or_raise(self._info, read_info(self.folder), self.folder)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        # Every process writes the same; a name of its own, as processes on two machines may
        # share an id.
        temporary = path.with_name(f".{path.name}.{self._rank}.tmp")
        try:
            temporary.write_text(json.dumps(self._info, indent=1) + "\n", encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _look(self) -> set[str]:
        """Return what is stored; remove this process's share of what is left of a killed run."""
        stored: set[str] = set()
        remove_temporary(self.folder, rank=self._rank, world_size=self._world)
        for owner, _, path in list_shards(self.folder):
            try:
                shard = Shard(path, made_with=self._info["made_with"], dtype=self._info["dtype"])
                stored.update(shard.ids)
            except FileNotFoundError:  # another process removed it
                continue
            except DamagedError as error:
                if owner % self._world == self._rank:
                    self.progress(f"{error} It is removed, and its images are made again.")
                    path.unlink(missing_ok=True)
        return stored

    def _estimate(self) -> None:
        seen, ids = len(self._pending), self._info["ids"]
        classes = sum(len(record.classes) for record in self._pending) / seen
        cells = sum(record.codes.numel() for record in self._pending) / seen
        whole = from_cells(len(ids), classes, cells, self._info["dtype"])
        self._told = True
        if self._rank == 0:
            self.progress(str(whole))
        room = shutil.disk_usage(self.folder).free
        if whole.bytes * (1 - self._stored / len(ids)) > room:
            raise OSError(f"{self.folder} has {room / 1e9:.3g} GB of room left: {whole}.")
