"""A network and all that goes with it in one safetensors file."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from wsss_blocks import __version__
from wsss_blocks._files import replaced

__all__ = ["blamed_on", "check_encoder_name", "read_checkpoint", "write_checkpoint"]

_KEY = "wsss_blocks.segmenter"  # one key: the order of several in the file is random
_VERSION = 1
_READERS = dict.fromkeys(("large-fov", "deeplabv2", "deeplabv3plus"), "Segmenter.load") | {
    "loda": "load_loda"
}


def check_encoder_name(encoder: str) -> None:
    """Raise ``ValueError`` for a name that a recipe cannot be built from elsewhere."""
    if ":" in encoder:
        raise ValueError(
            "encoder must be a name that timm can build by itself, so that a checkpoint can be "
            f"loaded anywhere, got {encoder!r}."
        )


def write_checkpoint(path: Path, network: nn.Module, about: Mapping[str, object]) -> None:
    """Write the network's weights under their own names, and its recipe and ``about`` beside."""
    from safetensors.torch import save_file

    header = {
        "version": _VERSION,
        "library": __version__,
        "network": network.recipe,
        "channels_last": _is_channels_last(network),
        **about,
    }
    # Copies: safetensors refuses tensors that share memory.
    state = {k: v.detach().cpu().clone().contiguous() for k, v in network.state_dict().items()}
    with replaced(path) as temporary:
        save_file(state, temporary, metadata={_KEY: json.dumps(header)})


def read_checkpoint(
    path: Path,
    kinds: Mapping[str, Callable[..., nn.Module]],
    changed: Mapping[str, object] = MappingProxyType({}),
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the network of a file and return it with what was written beside.

    Args:
        path: what :func:`write_checkpoint` wrote.
        kinds: what builds the networks that are wanted here, by the ``kind`` of their recipes.
        changed: parts of the recipe that are no longer so.
    """
    about, state = _read(path)
    if about.get("version") != _VERSION:
        raise ValueError(
            f"{path} has segmenter format {about.get('version')!r}, written by wsss-blocks "
            f"{about.get('library')}; wsss-blocks {__version__} reads format {_VERSION}."
        )
    recipe = {**about.get("network", {}), **changed}
    kind = recipe.pop("kind", None)
    if kind not in kinds:
        reader = f"; {_READERS[kind]} reads it" if kind in _READERS else ""
        raise ValueError(
            f"{path} holds a network of kind {kind!r}, written by wsss-blocks "
            f"{about.get('library')}; wsss-blocks {__version__} knows {', '.join(kinds)} here"
            f"{reader}."
        )
    # Initial weights are drawn and thrown away; the caller's random numbers stay as they are.
    with blamed_on(path), torch.random.fork_rng(devices=[]):
        network = kinds[kind](**recipe)
    own = network.state_dict()
    wrong = sorted(own.keys() ^ state.keys())
    wrong += [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if wrong:
        raise ValueError(
            f"{path} must hold the weights of its network, but {len(wrong)} of them are missing, "
            f"unexpected or of another shape: {', '.join(wrong[:3])}."
        )
    network.load_state_dict(state, assign=True)
    # In another memory layout sums have another order, and logits other last bits.
    if about.get("channels_last"):
        network.to(memory_format=torch.channels_last)
    return network, about


@contextmanager
def blamed_on(path: Path) -> Iterator[None]:
    """Name the file in what its contents make the constructors raise."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} holds a segmenter that cannot be built, {type(error).__name__}: {error}"
        ) from error


def _is_channels_last(network: nn.Module) -> bool:
    maps = [p for p in network.parameters() if p.ndim == 4]
    return any(
        p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in maps
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no segmenter at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: what safetensors returns is a view of the file.
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}.") from error
    if _KEY not in metadata:
        raise ValueError(
            f"{path} holds weights but no segmenter: it was written neither by Segmenter.save nor "
            "by save_loda."
        )
    return json.loads(metadata[_KEY]), state
