"""What one item of a data set is, and what a batch of them is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypedDict

import torch
from torch import Generator, Tensor

from wsss_blocks._validate import check_finite, check_floating, check_labels, check_shape
from wsss_blocks.data.geometry import Geometry

__all__ = ["Sample", "SampleSource", "Transform", "collate", "new_sample"]


class Sample(TypedDict, total=False):
    """One item of a data set.

    ``image`` is ``(3, H, W)`` RGB in ``[0, 1]``; ``box`` is ``(4,)`` int64 top, left, bottom,
    right (half-open): the part of the canvas that is image; ``labels`` is ``(K,)`` multi-hot and
    is absent where there are only captions. ``mask`` is ``(H, W)`` int64 and is there only on
    request, for evaluation. The remaining keys come from transforms and from the training script.
    """

    id: str
    image: Tensor
    box: Tensor
    geometry: Geometry
    labels: Tensor
    caption: str
    captions: list[str]
    mask: Tensor
    pseudo_mask: Tensor
    views: dict[str, "Sample"]
    maps: dict[str, Tensor]
    valid: dict[str, Tensor]
    text_ids: Tensor
    text_mask: Tensor


class SampleSource(Protocol):
    """A map-style data set."""

    def __len__(self) -> int:
        """Count the samples."""

    def __getitem__(self, index: int, /) -> Sample:
        """Return one of them."""


Transform = Callable[[Sample, Generator], Sample]
"""What changes a sample and takes its random numbers from the generator."""


def new_sample(image: Tensor, *, id: str, labels: Tensor | None = None) -> Sample:
    """Start a sample from an untouched image: the box is all of it, the geometry the identity.

    Args:
        image: ``(3, H, W)`` RGB in ``[0, 1]``.
        id: name of the image.
        labels: ``(K,)`` multi-hot, or None where there are none.

    Returns:
        A sample with ``id, image, box, geometry`` and, if given, ``labels``.

    Raises:
        ValueError: a shape or device is wrong, or ``image`` is not finite.
        TypeError: ``image`` is not floating-point, or ``labels`` not a tensor of numbers.

    Example:
        >>> new_sample(torch.zeros(3, 4, 6), id="a")["box"].tolist()
        [0, 0, 4, 6]
    """
    check_shape("image", image, "3 H W")
    check_floating("image", image)
    check_finite("image", image)
    height, width = image.shape[-2:]
    sample = Sample(
        id=id,
        image=image,
        box=torch.tensor([0, 0, height, width]),
        geometry=Geometry.identity((height, width)),
    )
    if labels is not None:
        check_shape("labels", labels, "K")
        check_labels(labels[None], batch=1, num_classes=len(labels), device=image.device)
        sample["labels"] = labels
    return sample


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Stack samples into a batch: tensors and geometries on a new first axis, the rest as lists.

    Dictionaries (``views``, ``maps``) are collated key by key. Nothing is padded: samples of
    different sizes need a crop or a resize first.

    Args:
        samples: at least one sample, all with the same keys.

    Returns:
        A dict with the keys of the samples.

    Raises:
        ValueError: no samples, different keys, or tensors of different shapes.

    Example:
        >>> batch = collate([new_sample(torch.zeros(3, 4, 6), id=name) for name in "ab"])
        >>> batch["id"], tuple(batch["image"].shape), tuple(batch["geometry"].matrix.shape)
        (['a', 'b'], (2, 3, 4, 6), (2, 2, 3))
    """
    if not samples:
        raise ValueError("samples must not be empty.")
    return _collate_dicts(list(samples), [str(s.get("id", "?")) for s in samples], "")


def _collate_dicts(
    items: Sequence[Mapping[str, Any]], ids: list[str], prefix: str
) -> dict[str, Any]:
    for item, name in zip(items, ids, strict=True):
        if item.keys() != items[0].keys():
            odd = ", ".join(sorted(item.keys() ^ items[0].keys()))
            raise ValueError(
                f"samples must have the same keys, but {ids[0]!r} and {name!r} differ in {odd}."
            )
    return {
        key: _collate_values([item[key] for item in items], ids, prefix + key) for key in items[0]
    }


def _collate_values(values: list[Any], ids: list[str], key: str) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        for value, name in zip(values, ids, strict=True):
            if value.shape != first.shape:
                raise ValueError(
                    f"samples must have {key!r} of one shape, got {tuple(first.shape)} for "
                    f"{ids[0]!r} and {tuple(value.shape)} for {name!r}: crop or resize them."
                )
        return torch.stack(values)
    if isinstance(first, Geometry):
        return Geometry(*(torch.stack(field) for field in zip(*values, strict=True)))
    if isinstance(first, Mapping):
        return _collate_dicts(values, ids, f"{key}.")
    return values
