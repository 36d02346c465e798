"""Save and load whole runs: weights as safetensors, atomic, exact to the bit on resume."""

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
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
    directory: str | os.PathLike[str],
    *,
    step: int,
    stateful: Mapping[str, Stateful],
    identity: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write all that an exact resume needs; a crash at any moment leaves the last state whole.

    Modules go into ``<name>.safetensors``, everything else and the random states of Python, NumPy,
    torch and CUDA into one file, all in a new folder ``step-...`` inside ``directory``; once these
    are on the disk, ``latest.json`` is replaced to point to it, and only then older folders are
    deleted. In a process group all ranks must call this: rank 0 writes, with the random states of
    all.

    Args:
        directory: made if need be.
        step: number of finished steps.
        stateful: name (a file name) -> object with ``state_dict`` and ``load_state_dict``.
        identity: what the run is, as JSON values: its preset, its class names. A run of another
            identity cannot load the state.

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
    _flush(folder)
    content = {"version": 1, "step": step, "folder": folder.name, "identity": dict(identity)}
    with replaced(folder.parent / _POINTER) as pointer:
        pointer.write_text(json.dumps(content) + "\n")
        _flush(pointer)
    for old in folder.parent.glob("step-*"):
        if old != folder:
            shutil.rmtree(old)
    for left in folder.parent.glob(f".{_POINTER}.*"):  # by a process killed at this very file
        left.unlink()


def load_run_state(
    directory: str | os.PathLike[str],
    *,
    stateful: Mapping[str, Stateful],
    identity: Mapping[str, Any] = MappingProxyType({}),
) -> int:
    """Load what :func:`save_run_state` wrote last, random states included.

    Load last: after the schedulers are built, the model has moved to its device and the data set is
    open (even an import may draw random numbers). With another number of processes than at saving,
    the random states are left alone and a warning says so.

    Args:
        directory: that of :func:`save_run_state`.
        stateful: the same names with objects of the same kind, changed in place.
        identity: that of this run.

    Returns:
        The number of finished steps.

    Raises:
        FileNotFoundError: there is no finished state in the directory.
        ValueError: another identity or other names than were saved, weights that do not fit, or a
            damaged file; nothing has been loaded then but, perhaps, some of the weights.
    """
    pointer = Path(directory) / _POINTER
    if not pointer.is_file():
        raise FileNotFoundError(f"no saved run in {directory}: {_POINTER} is missing.")
    try:
        content = json.loads(pointer.read_text())
        folder = pointer.parent / content["folder"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{pointer} is damaged: {error!r}.") from error
    _check_identity(pointer, content.get("identity", {}), json.loads(json.dumps(dict(identity))))
    saved = _read_state(folder / _STATE)
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


def _check_identity(pointer: Path, saved: dict[str, Any], own: dict[str, Any]) -> None:
    for key in sorted(saved.keys() | own.keys()):
        if saved.get(key) != own.get(key):
            raise ValueError(
                f"identity must have {key} {_shown(saved.get(key))} as in {pointer}, "
                f"got {_shown(own.get(key))}: continue with that, or choose another directory."
            )


def _shown(value: Any) -> str:
    if isinstance(value, list) and len(value) > 4:
        return f"[{', '.join(map(repr, value[:3]))}, ...] ({len(value)} entries)"
    return repr(value)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing, although {_POINTER} names it.") from error
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} is damaged or holds more than a run's state: {error}") from error
    return state


def _flush(path: Path) -> None:
    """Push a file, or a folder with its files, to the disk: a power cut must not lose it."""
    for entry in [*path.iterdir(), path] if path.is_dir() else [path]:
        if entry.is_dir() and os.name == "nt":  # Windows cannot open folders
            continue
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
