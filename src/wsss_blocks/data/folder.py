"""A folder of images with weak labels: the data set of people who bring their own."""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from wsss_blocks.data._matching import check_names, choose_images, find_images
from wsss_blocks.data.images import read_image, read_mask
from wsss_blocks.data.sample import Sample, new_sample
from wsss_blocks.data.weak_labels import WeakLabels

__all__ = ["FolderDataset", "given_labels", "id_lookup", "mask_file", "read_sample"]


class FolderDataset(Dataset[Sample]):
    """Read the images of a folder, their weak labels and, on request, masks.

    An id is the path of an image below ``images_dir`` without its suffix (``cat/001``). Labels come
    from one of :class:`~wsss_blocks.data.WeakLabels`' constructors: a folder per class, a CSV or
    JSON file, or the field's ``.npy``. The ids there and in ``ids`` may carry the suffix of the
    image (``cat/001.JPG``); those of the data set do not. Links to folders are followed.

    With ``strict=False``, ids without an image or without labels, and images that no label row
    names, are left out and listed in ``skipped``: id -> reason.

    Args:
        images_dir: folder of the images.
        labels: weak labels, or None for images alone (the samples then have no ``labels``).
        masks_dir: folder of masks ``<id>.png``, for evaluation.
        ids: the images to use; by default all that ``labels`` knows, or all in the folder.
        exclude: names of folders in ``images_dir`` that hold something else.
        strict: raise where an id has no image or no labels.

    Raises:
        FileNotFoundError: the folder or the image of an id does not exist.
        ValueError: an id without labels, two images or two rows for one id, or no images at all.

    Example:
        >>> import tempfile
        >>> from wsss_blocks.data import write_voc_layout
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     images = write_voc_layout(folder, train=2, val=1) / "JPEGImages"
        ...     FolderDataset(images, None).ids
        ['train_00000', 'train_00001', 'val_00000']
    """

    mask_ids: Tensor | None = None
    """``(256,)`` uint8: our id for each id in the files of masks; None where they are the same."""

    def __init__(
        self,
        images_dir: str | Path,
        labels: WeakLabels | None,
        *,
        masks_dir: str | Path | None = None,
        ids: Sequence[str] | None = None,
        exclude: Collection[str] = (),
        strict: bool = True,
    ) -> None:
        self.images_dir = Path(images_dir)
        if not self.images_dir.is_dir():
            raise FileNotFoundError(f"images_dir must be a folder, got {self.images_dir}.")
        self.masks_dir = None if masks_dir is None else Path(masks_dir)
        files = find_images(self.images_dir, exclude=exclude)
        self.ids, self._files, self.labels, self.skipped = choose_images(
            self.images_dir, files, labels, ids=ids, strict=strict
        )
        self.names = () if labels is None else labels.names

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.images_dir / self._files[index]

    def mask_path(self, index: int) -> Path:
        """Return the file of a mask.

        Raises:
            ValueError: the data set was opened without masks.
        """
        return mask_file(self.masks_dir, self.ids[index])

    def __getitem__(self, index: int) -> Sample:
        mask = None if self.masks_dir is None else self.mask_path(index)
        return read_sample(
            self.ids[index],
            self.path(index),
            labels=self.labels,
            mask=mask,
            mask_ids=self.mask_ids,
        )


def mask_file(folder: Path | None, name: str) -> Path:
    """Return the mask of an id; raise if there is no folder of masks."""
    if folder is None:
        raise ValueError("the data set must be opened with masks (with_masks or masks_dir).")
    return folder / f"{name}.png"


def given_labels(labels: WeakLabels | str | Path | None, names: Sequence[str]) -> WeakLabels | None:
    """Load labels unless they are, and check that they are about these classes."""
    found = WeakLabels.load(labels, names=names) if isinstance(labels, str | Path) else labels
    if found is not None:
        check_names(found, names, labels)
    return found


def id_lookup(raw_ids: Sequence[int], *, others: int) -> Tensor:
    """Return the ``(256,)`` table that turns the k-th raw id into k + 1 and the rest to others."""
    lookup = torch.full((256,), others, dtype=torch.uint8)
    lookup[list(raw_ids)] = torch.arange(1, len(raw_ids) + 1, dtype=torch.uint8)
    return lookup


def read_sample(
    name: str,
    image: Path,
    *,
    labels: WeakLabels | None,
    mask: Path | None,
    mask_ids: Tensor | None = None,
) -> Sample:
    """Read an image, look up its labels and read a mask only if one is named."""
    sample = new_sample(read_image(image), id=name, labels=None if labels is None else labels[name])
    if mask is not None:
        ids = read_mask(mask)
        if mask_ids is not None:
            if int(ids.max()) >= len(mask_ids):
                raise ValueError(f"{mask} must hold ids below 256, got {int(ids.max())}.")
            ids = mask_ids[ids].long()
        sample["mask"] = ids
        if sample["mask"].shape != sample["image"].shape[-2:]:
            raise ValueError(
                f"{mask} must have the size {tuple(sample['image'].shape[-2:])} of {image}, "
                f"got {tuple(sample['mask'].shape)}."
            )
    return sample
