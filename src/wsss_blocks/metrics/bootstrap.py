"""How far a mIoU would move with other images: a bootstrap interval without keeping the images."""

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsss_blocks._validate import (
    check_int,
    check_integer,
    check_number,
    check_sequence,
    check_shape,
)
from wsss_blocks.metrics._counts import Absent, Counts, mean_iou

__all__ = ["ImageBootstrap", "Interval"]


class Interval(NamedTuple):
    """An interval of a mean IoU, in fractions.

    Attributes:
        low: lower end.
        high: upper end.
        level: share of the replicates between them.
        replicates: ``(R,)`` float64 mIoU of each resampled split, in an order that is the same for
            all runs: differences between two runs on the same images are paired.
    """

    low: float
    high: float
    level: float
    replicates: Tensor


class ImageBootstrap(Counts):
    r"""Score a split as if its images had been drawn again and again.

    .. math::

        n_i^{(r)} \sim \mathrm{Poisson}(1) \qquad
        \mathrm{mIoU}^{(r)} = \frac{1}{|S|} \sum_{c \in S}
        \frac{\sum_i n_i^{(r)} TP_{ic}}{\sum_i n_i^{(r)} U_{ic}}

    for images i, classes c and replicates r; the interval is that of the percentiles. Poisson
    weights are the limit of drawing with replacement, and need no list of images: memory is
    O(R C), whatever their number. The weight of an image depends on its id, ``seed`` and r alone,
    so the result does not depend on the order of the images or on how processes share them.

    The interval is about the images. It says nothing about another seed of the training.

    Reference:
        Chamandy et al., "Estimating Uncertainty for Massive Data Streams", Google, 2012.

    Args:
        num_classes: C, counting background.
        replicates: R.
        seed: of the weights.
        absent: as in :class:`SegmentationEvaluator`.

    Raises:
        ValueError: ``replicates < 2``, or an unknown option.

    Example:
        >>> bootstrap = ImageBootstrap(2, replicates=200)
        >>> for i in range(50):
        ...     bootstrap.update([f"image {i}"], torch.tensor([[[80, i], [10, 100 - i]]]))
        >>> interval = bootstrap.compute(level=0.95)
        >>> round(interval.low, 2), round(interval.high, 2)
        (0.66, 0.72)
    """

    def __init__(
        self, num_classes: int, *, replicates: int = 1000, seed: int = 0, absent: Absent = "both"
    ) -> None:
        check_int("replicates", replicates, least=2)
        check_int("seed", seed)
        super().__init__(
            (replicates, 3, num_classes), num_classes=num_classes, ignore_index=-1, absent=absent
        )
        self.replicates, self.seed = replicates, seed

    def update(self, ids: Sequence[str], confusion: Tensor) -> None:
        """Count the images of a batch.

        Args:
            ids: their names, B of them.
            confusion: ``(B, C, C)`` integers, rows target, columns prediction.

        Raises:
            TypeError: ``confusion`` does not hold integers.
            ValueError: the shape is wrong.
        """
        check_sequence("ids", ids)
        c = self.num_classes
        check_shape("confusion", confusion, "B C C", B=len(ids), C=c)
        check_integer("confusion", confusion)
        if not len(ids):
            return
        parts = torch.stack(
            [confusion.diagonal(dim1=1, dim2=2), confusion.sum(2), confusion.sum(1)], 1
        )
        weights = torch.from_numpy(np.stack([_weights(i, self.seed, self.replicates) for i in ids]))
        classes = parts.any(1).any(0).nonzero()[:, 0]
        drawn = torch.einsum("br,bpc->rpc", weights.double(), parts[..., classes].cpu().double())
        # Not in place: a copy of this object may share the table.
        counts = self.counts.to(confusion.device)
        self.counts = counts.index_add(2, classes, drawn.long().to(confusion.device))

    def compute(self, *, level: float = 0.95) -> Interval:
        """Return the percentile interval of everything counted so far by this process.

        Args:
            level: share of the replicates that the interval holds.

        Raises:
            ValueError: ``level`` is not in (0, 1).
        """
        check_number("level", level)
        if not 0 < level < 1:
            raise ValueError(f"level must be in (0, 1), got {level}.")
        replicates = mean_iou(*self.counts.cpu().double().unbind(1), absent=self.absent)
        tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        low, high = replicates.nanquantile(tails).tolist()
        return Interval(low, high, level, replicates)

    def _settings(self) -> tuple[object, ...]:
        return (*super()._settings(), self.replicates, self.seed)


def _poisson_table() -> NDArray[np.uint8]:
    """Map 16 uniform bits to a Poisson(1) number: entry u is the quantile of (u + 1/2) / 65536."""
    below = np.cumsum([math.exp(-1) / math.factorial(n) for n in range(12)])
    return np.searchsorted(below, (np.arange(2**16) + 0.5) / 2**16).astype(np.uint8)


_POISSON = _poisson_table()


def _weights(name: str, seed: int, replicates: int) -> NDArray[np.uint8]:
    # A hash, not a generator: the same numbers with every version of numpy, and for each image.
    bits = hashlib.shake_128(f"{seed}/{name}".encode(errors="surrogateescape"))
    drawn: NDArray[np.uint8] = _POISSON[np.frombuffer(bits.digest(2 * replicates), dtype="<u2")]
    return drawn
