"""Save and load the weights of a module: safetensors, or another's ``.pth`` read safely."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsss_blocks._files import replaced

__all__ = ["LoadReport", "load_weights", "save_weights"]


class LoadReport(NamedTuple):
    """List what did not match when weights were loaded with ``strict=False``."""

    missing: list[str]
    unexpected: list[str]


def save_weights(path: str | os.PathLike[str], module: nn.Module) -> None:
    """Write a module's state as safetensors, under a temporary name first.

    Args:
        path: file to write or replace.
        module: parameters and persistent buffers; tied ones are written once per name.

    Raises:
        TypeError: the state holds something else than tensors (extra state).

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(f"{folder}/a.safetensors", nn.Linear(2, 1))
        ...     load_weights(f"{folder}/a.safetensors", nn.Linear(2, 1))
        LoadReport(missing=[], unexpected=[])
    """
    from safetensors.torch import save_file

    state = module.state_dict()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"module must have tensors as state, got {key}: {type(value).__name__}."
            )
    # Copies: safetensors refuses tensors that share memory.
    copies = {k: v.detach().cpu().clone().contiguous() for k, v in state.items()}
    with replaced(os.fspath(path)) as temporary:
        save_file(copies, temporary)


def load_weights(
    path: str | os.PathLike[str],
    module: nn.Module,
    *,
    strict: bool = True,
    prefix_map: Mapping[str, str] = MappingProxyType({}),
) -> LoadReport:
    """Load safetensors, or another's ``.pth`` without executing anything in it.

    Args:
        path: ``.safetensors``; any other suffix is read by ``torch.load(weights_only=True)``,
            where a dictionary under ``"state_dict"`` or ``"model"`` is unwrapped.
        module: takes the weights in place.
        strict: refuse missing and unexpected keys.
        prefix_map: prefix in the file -> prefix in the module (``{"module.": ""}``), the longest
            that fits; other keys stay.

    Returns:
        Missing and unexpected keys, both empty if ``strict``.

    Raises:
        ValueError: keys (if ``strict``) or shapes do not match, a prefix that no key has, two keys
            mapped to one, a pickle that holds more than weights, or a damaged file.
    """
    state = _renamed(_read_weights(Path(path)), prefix_map)
    own = module.state_dict()
    report = LoadReport(
        missing=[k for k in own if k not in state], unexpected=[k for k in state if k not in own]
    )
    if strict and (report.missing or report.unexpected):
        raise ValueError(f"{path} must hold exactly the module's keys, got {report}.")
    for key in own.keys() & state.keys():
        if own[key].shape != state[key].shape:
            raise ValueError(
                f"{key} must have shape {tuple(own[key].shape)}, got {tuple(state[key].shape)} "
                f"in {path}."
            )
    module.load_state_dict(state, strict=False)
    return report


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read as safetensors: {error}.") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} must hold weights only, and whole: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} must hold a dictionary of tensors, possibly under 'state_dict'.")
    return dict(state)


def _renamed(state: dict[str, Tensor], prefix_map: Mapping[str, str]) -> dict[str, Tensor]:
    by_length = sorted(prefix_map, key=len, reverse=True)
    renamed: dict[str, Tensor] = {}
    used = set()
    for key, value in state.items():
        old = next((p for p in by_length if key.startswith(p)), "")
        used.add(old)
        new = prefix_map.get(old, "") + key[len(old) :]
        if new in renamed:
            raise ValueError(f"prefix_map must keep keys apart, but two become {new!r}.")
        renamed[new] = value
    unused = [p for p in prefix_map if p not in used]
    if unused:
        raise ValueError(f"prefix_map must name prefixes of the file's keys, none has {unused}.")
    return renamed
