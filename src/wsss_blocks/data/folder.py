"""A folder of images with weak labels: the data set of people who bring their own."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch.utils.data import Dataset

from wsss_blocks.data.images import IMAGE_SUFFIXES, read_image, read_mask
from wsss_blocks.data.sample import Sample, new_sample
from wsss_blocks.data.weak_labels import WeakLabels

__all__ = ["FolderDataset", "check_labelled", "read_sample"]


class FolderDataset(Dataset[Sample]):
    """Read the images of a folder, their weak labels and, on request, masks.

    An id is the path of an image below ``images_dir`` without its suffix (``cat/001``). Labels come
    from one of :class:`~wsss_blocks.data.WeakLabels`' constructors: a folder per class, a CSV or
    JSON file, or the field's ``.npy``.

    Args:
        images_dir: folder of the images.
        labels: weak labels, or None for images alone (the samples then have no ``labels``).
        masks_dir: folder of masks ``<id>.png``, for evaluation.
        ids: the images to use; by default all that ``labels`` knows, or all in the folder.

    Raises:
        FileNotFoundError: the folder or the image of an id does not exist.
        ValueError: an id without labels, two images with one id, or no images at all.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.data import write_voc_layout
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     images = write_voc_layout(folder, train=2, val=1) / "JPEGImages"
        ...     FolderDataset(images, None).ids
        ['train_00000', 'train_00001', 'val_00000']
    """

    def __init__(
        self,
        images_dir: str | Path,
        labels: WeakLabels | None,
        *,
        masks_dir: str | Path | None = None,
        ids: Sequence[str] | None = None,
    ) -> None:
        self.images_dir = Path(images_dir)
        if not self.images_dir.is_dir():
            raise FileNotFoundError(f"images_dir must be a folder, got {self.images_dir}.")
        self.masks_dir = None if masks_dir is None else Path(masks_dir)
        self.labels = labels
        self.names = () if labels is None else labels.names
        files = find_images(self.images_dir)
        if ids is None:
            ids = sorted(files) if labels is None else labels.ids
        elif labels is not None:
            check_labelled(ids, labels)
        missing = [name for name in ids if name not in files]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(ids)} ids have no image in {self.images_dir}: "
                f"{_some(missing)}."
            )
        if not ids:
            raise ValueError(f"no images in {self.images_dir}.")
        self.ids = list(ids)
        self._files = [files[name] for name in self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        name = self.ids[index]
        mask = None if self.masks_dir is None else self.masks_dir / f"{name}.png"
        return read_sample(
            name, self.images_dir / self._files[index], labels=self.labels, mask=mask
        )


def find_images(root: Path) -> dict[str, str]:
    """Map the id of each image below ``root`` to its path relative to ``root``."""
    found: dict[str, str] = {}
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            path = (Path(folder) / file).relative_to(root)
            if path.suffix.lower() not in IMAGE_SUFFIXES or file.startswith("."):
                continue
            name = path.with_suffix("").as_posix()
            if name in found:
                raise ValueError(f"{root} has two images with id {name!r}: {found[name]}, {path}.")
            found[name] = str(path)
    return found


def check_labelled(ids: Iterable[str], labels: WeakLabels) -> None:
    """Raise where an id has no row in the labels."""
    wanted = list(ids)
    missing = [name for name in wanted if name not in labels]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} ids have no row in labels: {_some(missing)}. "
            f"The {len(labels)} rows are named like {_some(labels.ids)}."
        )


def read_sample(name: str, image: Path, *, labels: WeakLabels | None, mask: Path | None) -> Sample:
    """Read an image, look up its labels and read a mask only if one is named."""
    sample = new_sample(read_image(image), id=name, labels=None if labels is None else labels[name])
    if mask is not None:
        sample["mask"] = read_mask(mask)
        if sample["mask"].shape != sample["image"].shape[-2:]:
            raise ValueError(
                f"{mask} must have the size {tuple(sample['image'].shape[-2:])} of {image}, "
                f"got {tuple(sample['mask'].shape)}."
            )
    return sample


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
