"""Save and load whole runs: weights as safetensors, atomic, exact to the bit on resume."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from wsss_blocks._files import replaced
from wsss_blocks.distributed import rank
from wsss_blocks.training._random_state import gather_random_states, set_random_state
from wsss_blocks.training.weights import load_weights, save_weights

__all__ = ["Stateful", "load_run_state", "save_run_state"]

_POINTER = "latest.json"
_STATE = "state.pt"


@runtime_checkable
class Stateful(Protocol):
    """Describe what can be saved: modules, optimizers, schedulers, scalers, samplers."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state: tensors, numbers, strings and containers of them."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Take the state back."""


def save_run_state(
    directory: str | os.PathLike[str], *, step: int, stateful: Mapping[str, Stateful]
) -> None:
    """Write all that an exact resume needs; a crash at any moment leaves the last state whole.

    Modules go into ``<name>.safetensors``, everything else and the random states of Python, NumPy,
    torch and CUDA into one file, all in a new folder ``step-...`` inside ``directory``; then
    ``latest.json`` is replaced to point to it, and only then older folders are deleted. In a
    process group all ranks must call this: rank 0 writes, with the random states of all.

    Args:
        directory: made if need be.
        step: number of finished steps.
        stateful: name (a file name) -> object with ``state_dict`` and ``load_state_dict``.

    Raises:
        ValueError: a negative step, or a name that cannot be a file name.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_run_state(folder, step=7, stateful={"model": nn.Linear(2, 1)})
        ...     load_run_state(folder, stateful={"model": nn.Linear(2, 1)})
        7
    """
    if step < 0:
        raise ValueError(f"step must be >= 0, got {step}.")
    for name in stateful:
        if not name or name != Path(name).name or name.startswith("."):
            raise ValueError(f"stateful must have plain file names as keys, got {name!r}.")
    random_states = gather_random_states(_device_of(stateful))
    if rank() != 0:
        return
    folder = _new_folder(Path(directory), step)
    others: dict[str, Any] = {}
    for name, item in stateful.items():
        if isinstance(item, nn.Module):
            save_weights(folder / f"{name}.safetensors", item)
        else:
            others[name] = item.state_dict()
    torch.save({"step": step, "states": others, "random": random_states}, folder / _STATE)
    with replaced(folder.parent / _POINTER) as pointer:
        pointer.write_text(json.dumps({"version": 1, "step": step, "folder": folder.name}) + "\n")
    for old in folder.parent.glob("step-*"):
        if old != folder:
            shutil.rmtree(old)


def load_run_state(directory: str | os.PathLike[str], *, stateful: Mapping[str, Stateful]) -> int:
    """Load what :func:`save_run_state` wrote last, random states included.

    Build schedulers before loading, and load after the model has moved to its device. With another
    number of processes than at saving, the random states are left alone and a warning says so.

    Args:
        directory: that of :func:`save_run_state`.
        stateful: the same names with objects of the same kind, changed in place.

    Returns:
        The number of finished steps.

    Raises:
        FileNotFoundError: there is no finished state in the directory.
        ValueError: other names than were saved, or weights that do not fit.
    """
    pointer = Path(directory) / _POINTER
    if not pointer.is_file():
        raise FileNotFoundError(f"no saved run in {directory}: {_POINTER} is missing.")
    folder = pointer.parent / json.loads(pointer.read_text())["folder"]
    saved = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
    names = set(saved["states"]) | {path.stem for path in folder.glob("*.safetensors")}
    if names != set(stateful):
        raise ValueError(f"stateful must be {sorted(names)} as saved, got {sorted(stateful)}.")
    for name, item in stateful.items():
        if isinstance(item, nn.Module):
            load_weights(folder / f"{name}.safetensors", item)
        else:
            item.load_state_dict(saved["states"][name])
    set_random_state(saved["random"])
    return int(saved["step"])


def _device_of(stateful: Mapping[str, Stateful]) -> torch.device:
    for item in stateful.values():
        if isinstance(item, nn.Module):
            for parameter in item.parameters():
                return parameter.device
    return torch.device("cpu")


def _new_folder(directory: Path, step: int) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    attempt = 0
    while True:
        folder = directory / (f"step-{step:08d}" + (f"-{attempt}" if attempt else ""))
        try:
            folder.mkdir()
        except FileExistsError:  # saved before, or left by a crash
            attempt += 1
        else:
            return folder
