"""A folder of images with weak labels: the data set of people who bring their own."""

from collections.abc import Collection, Sequence
from pathlib import Path

from torch.utils.data import Dataset

from wsss_blocks.data._matching import choose_images, find_images
from wsss_blocks.data.images import read_image, read_mask
from wsss_blocks.data.sample import Sample, new_sample
from wsss_blocks.data.weak_labels import WeakLabels

__all__ = ["FolderDataset", "read_sample"]


class FolderDataset(Dataset[Sample]):
    """Read the images of a folder, their weak labels and, on request, masks.

    An id is the path of an image below ``images_dir`` without its suffix (``cat/001``). Labels come
    from one of :class:`~wsss_blocks.data.WeakLabels`' constructors: a folder per class, a CSV or
    JSON file, or the field's ``.npy``. The ids there and in ``ids`` may carry the suffix of the
    image (``cat/001.JPG``); those of the data set do not.

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

    def __getitem__(self, index: int) -> Sample:
        name = self.ids[index]
        mask = None if self.masks_dir is None else self.masks_dir / f"{name}.png"
        return read_sample(name, self.path(index), labels=self.labels, mask=mask)


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
