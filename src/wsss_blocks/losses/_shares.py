"""What the losses that take ``counts`` share: the check of counts, and the division by them."""

from torch import Tensor

from wsss_blocks._validate import (
    check_finite,
    check_non_negative,
    check_same_device,
    check_shape,
)
from wsss_blocks.distributed import mean_over_ranks

__all__ = ["check_counts", "contrasted_images", "share"]


def check_counts(counts: Tensor | None, axes: str, *, other_name: str, other: Tensor) -> None:
    """Raise unless ``counts`` is None or numbers >= 0 of this shape on the device of ``other``."""
    if counts is None:
        return
    check_shape("counts", counts, axes)
    check_same_device("counts", counts, other_name, other)
    if counts.is_complex():
        raise TypeError(f"counts must be a tensor of real numbers, got {counts.dtype}.")
    check_finite("counts", counts)
    check_non_negative("counts", counts)


def contrasted_images(ids: Tensor, *, ignore_index: int) -> Tensor:
    """Count the images with a foreground pixel among ids of labelled classes."""
    return ((ids > 0) & (ids != ignore_index)).flatten(1).any(1).sum()


def share(total: Tensor, counts: Tensor, *, gather_distributed: bool) -> Tensor:
    """Divide by the counts, in the dtype of ``total`` whatever numbers the counts are."""
    counts = counts.detach()
    return mean_over_ranks(total, counts, gather_distributed=gather_distributed).to(total.dtype)
