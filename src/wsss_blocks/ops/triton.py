"""Triton kernels: CAM to label in two launches, without a tensor of all classes at full size.

``_ranges`` finds the range of each present class from the samples next to cell borders and lists
the present classes of each image; ``_labels`` walks through that list for each tile of pixels. The
number of present classes is read on the device, so nothing waits for it.
"""

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["cam_to_label"]

ROWS, COLUMNS = 8, 128  # the tile of one program


@triton.jit
def _place(sample, source, size, dtype: tl.constexpr):
    """Return the cell of a sample, the next cell, and how far in between the sample stands."""
    # As bilinear.axis: whole numbers until the last division.
    position = tl.maximum((2 * sample + 1) * source - size, 0)
    cell = position // (2 * size)
    fraction = (position - 2 * size * cell).to(dtype) / (2 * size)
    return cell, tl.minimum(cell + 1, source - 1), fraction


@triton.jit
def _bilinear(plane, y, y_next, fy, x, x_next, fx, width, mask, dtype: tl.constexpr):
    """Sample a map; a constant map stays exactly constant."""
    a = tl.load(plane + y * width + x, mask=mask, other=0).to(dtype)
    b = tl.load(plane + y * width + x_next, mask=mask, other=0).to(dtype)
    c = tl.load(plane + y_next * width + x, mask=mask, other=0).to(dtype)
    d = tl.load(plane + y_next * width + x_next, mask=mask, other=0).to(dtype)
    above = a + fx * (b - a)
    below = c + fx * (d - c)
    return above + fy * (below - above)


@triton.jit
def _next_to_border(index, source, size):
    """Return the index-th sample next to a border of cells: see bilinear.axis."""
    border = index // 2
    # The numerator is made positive, as integer division rounds towards zero.
    behind = ((2 * border + 1) * size - source + 2 * source * size + 2 * source - 1) // (2 * source)
    return tl.minimum(tl.maximum(behind - size - 1 + index % 2, 0), size - 1)


@triton.jit
def _ranges(
    cam, labels, listed, counts, ranges,
    channels, classes, source_height, source_width, height, width,
    RELU: tl.constexpr, MINMAX: tl.constexpr, FIRST: tl.constexpr,
    EVERY: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """One program per image and channel: write its range, and its place in the image's list."""
    image = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1)
    number = channel - FIRST
    every = tl.arange(0, EVERY)
    row = tl.load(labels + image * classes + every, mask=every < classes, other=0)
    row = (row > 0).to(tl.int32)
    here = tl.sum(tl.where(every == number, row, 0))
    if number <= 0:  # once per image, or twice with the same value
        tl.store(counts + image, tl.sum(row))
    if here > 0:
        slot = tl.sum(tl.where(every < number, row, 0))
        tl.store(listed + image * classes + slot, number)
    if MINMAX and (here > 0 or number < 0):
        plane = cam + (image * channels + channel) * source_height * source_width
        rows, columns = 2 * (source_height + 1), 2 * (source_width + 1)
        least = tl.full((BLOCK,), float("inf"), DTYPE)
        most = tl.full((BLOCK,), float("-inf"), DTYPE)
        for start in range(0, rows * columns, BLOCK):
            at = start + tl.arange(0, BLOCK)
            inside = at < rows * columns
            y, y_next, fy = _place(
                _next_to_border(at // columns, source_height, height), source_height, height, DTYPE
            )
            x, x_next, fx = _place(
                _next_to_border(at % columns, source_width, width), source_width, width, DTYPE
            )
            value = _bilinear(plane, y, y_next, fy, x, x_next, fx, source_width, inside, DTYPE)
            if RELU:
                value = tl.maximum(value, 0)
            least = tl.minimum(least, tl.where(inside, value, float("inf")))
            most = tl.maximum(most, tl.where(inside, value, float("-inf")))
        low = tl.min(least)
        to = ranges + 2 * (image * channels + channel)
        tl.store(to, low)
        tl.store(to + 1, 1 / (tl.max(most) - low + 1e-5))


@triton.jit
def _labels(
    cam, listed, counts, ranges, low, high, box, out,
    channels, classes, source_height, source_width, height, width, power, ignore_index,
    RELU: tl.constexpr, MINMAX: tl.constexpr, FIRST: tl.constexpr, POWER: tl.constexpr,
    PAIR: tl.constexpr, BOX: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr, LABEL: tl.constexpr,
):  # fmt: skip
    """One program per tile of an image: a running maximum over its present classes."""
    image = tl.program_id(2).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < height) & (column < width)
    y, y_next, fy = _place(row, source_height, height, DTYPE)
    x, x_next, fx = _place(column, source_width, width, DTYPE)
    planes = cam + image * channels * source_height * source_width

    label = tl.zeros((ROWS, COLUMNS), LABEL)
    best = tl.zeros((ROWS, COLUMNS), DTYPE)
    if FIRST:
        best = _bilinear(planes, y, y_next, fy, x, x_next, fx, source_width, inside, DTYPE)
        if RELU:
            best = tl.maximum(best, 0)
        if MINMAX:
            scale = ranges + 2 * image * channels
            best = (best - tl.load(scale)) * tl.load(scale + 1)
    elif not POWER:
        best += tl.load(low + image)
    # Scores are not rectified: with RELU, `best` starts at 0 or above.
    for slot in range(tl.load(counts + image)):
        number = tl.load(listed + image * classes + slot)
        channel = number.to(tl.int64) + FIRST
        plane = planes + channel * source_height * source_width
        score = _bilinear(plane, y, y_next, fy, x, x_next, fx, source_width, inside, DTYPE)
        if MINMAX:
            scale = ranges + 2 * (image * channels + channel)
            score = (score - tl.load(scale)) * tl.load(scale + 1)
        wins = score > best
        label = tl.where(wins, (number + 1).to(LABEL), label)
        best = tl.where(wins, score, best)
    if POWER:
        rest = 1 - best
        left = tl.exp2(power * tl.log2(tl.where(rest > 0, rest, 1)))
        label = tl.where(best > tl.where(rest > 0, left, 0), label, 0)
    if PAIR:
        label = tl.where((label > 0) & (best <= tl.load(high + image)), ignore_index, label)
    if BOX:
        top, left = tl.load(box + 4 * image), tl.load(box + 4 * image + 1)
        bottom, right = tl.load(box + 4 * image + 2), tl.load(box + 4 * image + 3)
        image_part = (row >= top) & (row < bottom) & (column >= left) & (column < right)
        label = tl.where(image_part, label, ignore_index)
    to = out + image * height * width + row.to(tl.int64) * width + column
    tl.store(to, label.to(out.dtype.element_ty), mask=inside)


def cam_to_label(
    cam: Tensor,
    labels: Tensor,
    low: Tensor | None,
    high: Tensor | None,
    box: Tensor | None,
    height: int,
    width: int,
    power: float | None,
    relu: bool,
    minmax: bool,
    ignore_index: int,
    dtype: torch.dtype,
) -> Tensor:
    """Compute what the reference computes."""
    batch, channels, source_height, source_width = cam.shape
    classes = labels.shape[1]
    out = torch.empty((batch, height, width), dtype=dtype, device=cam.device)
    if not batch:
        return out
    cam, labels = cam.contiguous(), labels.contiguous()
    labels = labels.view(torch.uint8) if labels.dtype == torch.bool else labels
    exact = torch.float64 if cam.dtype == torch.float64 else torch.float32
    listed = torch.empty((batch, classes), dtype=torch.int32, device=cam.device)
    counts = torch.empty(batch, dtype=torch.int32, device=cam.device)
    ranges = torch.empty((batch, channels, 2), dtype=exact, device=cam.device)
    sizes = (channels, classes, source_height, source_width, height, width)
    options = {
        "RELU": relu,
        "MINMAX": minmax,
        "FIRST": channels - classes,
        "DTYPE": tl.float64 if exact == torch.float64 else tl.float32,
    }
    tiles = (triton.cdiv(width, COLUMNS), triton.cdiv(height, ROWS), batch)
    guard = torch.cuda.device(cam.device) if cam.is_cuda else contextlib.nullcontext()
    with guard:
        _ranges[(batch, channels)](
            cam, labels, listed, counts, ranges, *sizes,
            EVERY=triton.next_power_of_2(classes), BLOCK=1024, **options,
        )  # fmt: skip
        _labels[tiles](
            cam, listed, counts, ranges,
            counts if low is None else low.contiguous(),
            counts if high is None else high.contiguous(),
            counts if box is None else box.contiguous(),
            out, *sizes, power or 0.0, ignore_index,
            POWER=power is not None, PAIR=high is not None, BOX=box is not None,
            ROWS=ROWS, COLUMNS=COLUMNS,
            LABEL=tl.int32 if ignore_index < 2**31 else tl.int64, **options,
        )  # fmt: skip
    return out
