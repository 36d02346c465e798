"""Triton kernel: sums with Gaussian weights, without a matrix of all pairs of points.

One program holds a block of points and walks through the sources of its image, whose number is
read on the device, so nothing waits for it. The transposed product is the same kernel with points
and sources in each other's place.
"""

import contextlib
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["cell_messages"]

POINTS, SOURCES, CHANNELS = 64, 32, 16  # the tile of one step


@triton.jit
def _messages(
    to, source, values, num_to, num_source, out,
    targets, sources, channels,
    DIMS: tl.constexpr, POINTS: tl.constexpr, SOURCES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(2).to(tl.int64)
    first = tl.program_id(0) * POINTS
    point = first + tl.arange(0, POINTS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    to += image * DIMS * targets
    source += image * DIMS * sources
    values += image * channels * sources
    last = tl.load(num_to + image)
    # A block of points that do not exist has nothing to sum.
    count = tl.where(first < last, tl.load(num_source + image), 0)
    total = tl.zeros((POINTS, CHANNELS), tl.float32)
    # Left to itself, triton 3.8 pipelines this loop, which takes 254 registers a thread.
    for start in tl.range(0, count, SOURCES, num_stages=1):
        other = start + tl.arange(0, SOURCES)
        near = other < count
        distance = tl.zeros((POINTS, SOURCES), tl.float32)
        for axis in tl.static_range(DIMS):
            here = tl.load(to + axis * targets + point, mask=point < last, other=0)
            there = tl.load(source + axis * sources + other, mask=near, other=0)
            apart = here[:, None] - there[None, :]
            distance += apart * apart
        at = channel.to(tl.int64)[None, :] * sources + other[:, None]
        mask = near[:, None] & (channel < channels)[None, :]
        value = tl.load(values + at, mask=mask, other=0)
        # Plain tf32 has 10 bits: thrice, a product is as good as in float32.
        total += tl.dot(tl.exp2(-distance), value, input_precision="tf32x3")
    total = tl.where((point < last)[:, None], total, 0)
    at = (image * channels + channel)[None, :] * targets + point[:, None]
    tl.store(out + at, total, mask=(point < targets)[:, None] & (channel < channels)[None, :])


def cell_messages(
    to: Tensor, source: Tensor, values: Tensor, num_to: Tensor, num_source: Tensor
) -> Tensor:
    """Compute :func:`wsss_blocks.ops.cell_kernel.cell_messages` in float32."""
    batch, channels, sources = values.shape
    dims, targets = to.shape[1:]
    out = values.new_empty((batch, channels, targets))
    if not out.numel():
        return out
    # exp(-x^2 / 2) = 2^-(a x)^2
    to, source = (x.contiguous() * math.sqrt(math.log2(math.e) / 2) for x in (to, source))
    guard = torch.cuda.device(to.device) if to.is_cuda else contextlib.nullcontext()
    with guard:
        _messages[(triton.cdiv(targets, POINTS), triton.cdiv(channels, CHANNELS), batch)](
            to, source, values.contiguous(), num_to.contiguous(), num_source.contiguous(), out,
            targets, sources, channels,
            DIMS=dims, POINTS=POINTS, SOURCES=SOURCES, CHANNELS=CHANNELS,
        )  # fmt: skip
    return out
