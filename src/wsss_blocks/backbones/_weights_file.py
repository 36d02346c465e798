"""Another's file of weights for a timm model: tensors only, every key accounted for."""

import math
import os

from timm.models import VisionTransformer, load_state_dict
from torch import Tensor, nn

from wsss_blocks.backbones._common import resample_position

__all__ = ["fitted_position", "load_weights_file", "read_tensors"]

# What a checkpoint holds beside the encoder; "pre_logits" is in old ones of ImageNet-21k.
_CLASSIFIER = ("head.", "head_dist.", "pre_logits.", "attn_pool.")


def load_weights_file(path: str | os.PathLike[str], model: nn.Module, *, name: str) -> None:
    """Load ``path`` into ``model`` strictly, or say what is missing, unknown or of another shape.

    A dictionary under "model" or "state_dict" is unwrapped and "module." taken off, as timm does.
    The classifier of a vision transformer is left out and its position embedding resampled; the
    counters of batch norms may be missing.
    """
    state = read_tensors(path)
    if isinstance(model, VisionTransformer):
        state = {key: value for key, value in state.items() if not key.startswith(_CLASSIFIER)}
        if "pos_embed" in state:
            state["pos_embed"] = fitted_position(state["pos_embed"], model)
    own = model.state_dict()
    # Files older than torch 0.4.1 lack the counters of batch norms, as torch itself tolerates.
    counters = {key: own[key] for key in own if key.endswith(".num_batches_tracked")}
    state = counters | state
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    if missing or unknown:
        raise ValueError(
            f"weights must be those of {name!r}: {path} lacks {_listed(missing)} of its "
            f"{len(own)} keys and holds {_listed(unknown)} that it has not."
        )
    for key, value in own.items():
        if value.shape != state[key].shape:
            raise ValueError(
                f"weights must be those of {name!r}: {key} must have shape {tuple(value.shape)}, "
                f"got {tuple(state[key].shape)} in {path}."
            )
    model.load_state_dict(state)


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a file as timm does, if it is whole and holds tensors alone."""
    try:
        state = load_state_dict(os.fspath(path), weights_only=True)
    except Exception as error:  # each reader of timm's has its own for a damaged file
        raise ValueError(
            f"weights must be a whole file of tensors, but {path} is not: "
            f"{type(error).__name__}: {error}"
        ) from error
    others = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"weights must be tensors alone, but {path} also holds {_listed(others)}.")
    return state


def fitted_position(position: Tensor, vit: VisionTransformer) -> Tensor:
    """Resample a position embedding ``(1, prefix + N, D)`` from a square grid to the model's."""
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    count = position.shape[1] - prefix if position.ndim == 3 else 0
    side = math.isqrt(max(0, count))
    own = vit.pos_embed
    if own is None or own.shape == position.shape or count < 1 or side**2 != count:
        return position  # fits, or cannot: the shapes are compared afterwards
    grid = vit.patch_embed.grid_size
    return resample_position(position, grid=grid, old_grid=(side, side), prefix=prefix)


def _listed(keys: list[str], *, most: int = 4) -> str:
    shown = ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")
    return f"{len(keys)} ({shown})" if keys else "0"
