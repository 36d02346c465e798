"""What the consistency losses of CTI share: two maps, each brought to its own range."""

from torch import Tensor

from wsss_blocks._numerics import at_least_float32
from wsss_blocks._validate import check_finite, check_floating, check_same_device
from wsss_blocks.cam.normalize import scale_to_range

__all__ = ["check_pair", "own_ranges"]


def check_pair(**maps: Tensor) -> None:
    """Raise unless two maps of one shape, given by name, are finite numbers on one device."""
    for name, x in maps.items():
        check_floating(name, x)
        check_finite(name, x)
    (first, x), (second, y) = maps.items()
    check_same_device(second, y, first, x)


def own_ranges(x: Tensor, y: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """Normalise both in the mode "cti", in at least float32 and the dtype of the first."""
    x = at_least_float32(x)
    x, y = (scale_to_range(z, mode="cti", relu=True, eps=eps) for z in (x, y.to(x.dtype)))
    return x, y
