"""The random states of a process, packed so that ranks can exchange them."""

import io
import random
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsss_blocks.distributed import all_gather_with_grad, rank, world_size

__all__ = ["gather_random_states", "set_random_state"]

_SIZE = 1 << 16  # a state takes about 20 kB; a collective needs the same size on all ranks


def gather_random_states(device: torch.device) -> Tensor:
    """Return the packed states of all ranks ``(world_size, 65536)`` on the CPU."""
    return all_gather_with_grad(_pack(_get()).to(device)[None]).cpu()


def set_random_state(packed: Tensor) -> None:
    """Restore this rank's state, or warn if another number of processes saved."""
    if len(packed) != world_size():
        warnings.warn(
            f"saved by {len(packed)} processes, resumed by {world_size()}: the random states "
            "are not restored, so this run continues differently.",
            stacklevel=3,
        )
        return
    state = _unpack(packed[rank()])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _get() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    has_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        # One process per GPU: only its own device, so that no context is made on the others.
        "cuda": torch.cuda.get_rng_state() if has_cuda else None,
    }


def _pack(state: dict[str, Any]) -> Tensor:
    stream = io.BytesIO()
    torch.save(state, stream)
    content = stream.getvalue()
    packed = torch.zeros(_SIZE, dtype=torch.uint8)
    packed[:8] = torch.frombuffer(bytearray(len(content).to_bytes(8, "big")), dtype=torch.uint8)
    packed[8 : 8 + len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return packed


def _unpack(packed: Tensor) -> dict[str, Any]:
    raw = packed.numpy().tobytes()
    size = int.from_bytes(raw[:8], "big")
    state: dict[str, Any] = torch.load(io.BytesIO(raw[8 : 8 + size]), weights_only=True)
    return state
