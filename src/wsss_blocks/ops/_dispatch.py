"""Which form of an operation runs, and the custom operators that hide it from the compiler."""

import functools
import importlib.util
import os
from typing import Literal

import torch
from torch import Tensor

from wsss_blocks.ops import running_max

__all__ = ["Backend", "cam_to_label", "choose_backend"]

Backend = Literal["auto", "torch", "triton"]


def choose_backend(backend: Backend, x: Tensor) -> Literal["torch", "triton"]:
    """Return what runs on the device of ``x``; raise if triton was asked for and cannot."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # triton's own switch: runs on a CPU
    if backend == "auto":
        switched_off = os.environ.get("WSSS_BLOCKS_DISABLE_TRITON") == "1"
        usable = x.is_cuda and torch.version.cuda is not None and not interpreted
        return "triton" if usable and _triton_installed() and not switched_off else "torch"
    if backend == "triton":
        if not _triton_installed():
            raise ValueError("backend must be 'auto' or 'torch' without triton, got 'triton'.")
        if not x.is_cuda and not interpreted:
            raise ValueError(
                f"backend must be 'auto' or 'torch' for tensors on {x.device}, got 'triton'."
            )
        return "triton"
    if backend != "torch":
        raise ValueError(f"backend must be one of 'auto', 'torch', 'triton', got {backend!r}.")
    return "torch"


@functools.cache
def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@torch.library.custom_op("wsss_blocks::cam_to_label", mutates_args=())
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
    backend: str,
) -> Tensor:
    """Label pixels: see :func:`wsss_blocks.ops.reference.cam_to_label`."""
    run = running_max.cam_to_label
    if backend == "triton":
        from wsss_blocks.ops import triton

        run = triton.cam_to_label
    return run(cam, labels, low, high, box, height, width, power, relu, minmax, ignore_index, dtype)


@cam_to_label.register_fake
def _(
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
    backend: str,
) -> Tensor:
    return cam.new_empty((cam.shape[0], height, width), dtype=dtype)
