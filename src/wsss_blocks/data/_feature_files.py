"""What a cache of features was made with, what it will take, and the files it consists of."""

import hashlib
import json
import math
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import torch
from torch import Tensor, nn

from wsss_blocks._evaluating import evaluating
from wsss_blocks._files import replaced
from wsss_blocks.backbones.features import Encoder

__all__ = [
    "Grid",
    "file_of",
    "probe",
    "read_features",
    "weight_of",
    "weights_hash",
    "write_features",
]

_KEY = "features"


class Grid(NamedTuple):
    """How an encoder turns a size into a grid: rounded up to the stride, divided into cells."""

    dim: int
    layer: int | None
    stride: int
    cell: tuple[float, float]

    def of(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Return the grid of an image of ``size`` at ``scale``."""
        h, w = (
            round(math.ceil(max(1, int(side * scale + 0.5)) / self.stride) * self.stride / cell)
            for side, cell in zip(size, self.cell, strict=True)
        )
        return h, w


def weight_of(module: nn.Module) -> Tensor:
    """Return a tensor with the dtype and the device that images need."""
    tensors = chain(module.parameters(), module.buffers())  # some encoders have buffers alone
    return next((x for x in tensors if x.is_floating_point()), torch.zeros(()))


def probe(encoder: Encoder, module: nn.Module, layer: int | None) -> Grid:
    """Run the encoder on a small image; ``layer`` comes back counted from 0."""
    side = 8 * encoder.stride
    image = torch.zeros(1, 3, side, side).to(weight_of(module))
    with torch.no_grad(), evaluating(module):
        features = encoder(image, layers=() if layer is None else (layer,))
    found = features.feature_map
    if layer is not None:
        ((layer, found),) = features.intermediates.items()
    h, w = found.shape[-2:]
    return Grid(found.shape[1], layer, encoder.stride, (side / h, side / w))


def weights_hash(module: nn.Module) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes of a module's state."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(data.numpy().data)
    return digest.hexdigest()


def file_of(folder: Path, image: str) -> Path:
    """Return the file of an id: slashes and what is not ASCII as %XX; long names end in a hash."""
    name = quote(image, safe=" ")
    if len(name) > 200:  # file systems end at 255
        name = f"{name[:160]}-{hashlib.sha256(image.encode()).hexdigest()[:32]}"
    return folder / f"{name}.safetensors"


def write_features(
    path: Path, features: Tensor, *, image: str, made_with: str, size: tuple[int, int]
) -> None:
    """Write float16 features ``(D, h, w)`` and what they belong to, under a temporary name."""
    from safetensors.torch import save_file

    half = features.detach().to("cpu", torch.float16).contiguous()
    if not half.isfinite().all():
        raise ValueError(
            f"features of {image!r} must fit into float16, got values up to "
            f"{float(features.abs().max()):.4g}."
        )
    about = {"id": image, "made_with": made_with, "image_size": json.dumps(size)}
    with replaced(path) as temporary:
        save_file({_KEY: half}, temporary, metadata=about)


def read_features(path: Path, *, image: str, made_with: str, dim: int) -> Tensor:
    """Map the features of one image into memory; their pages are read when they are used.

    Raises:
        ValueError: the file is damaged, or not this image's of this cache.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about: Mapping[str, str] = file.metadata() or {}
            features: Tensor = file.get_tensor(_KEY)
    except SafetensorError as error:
        raise ValueError(f"{path} must be a whole file of features: {error}.") from error
    if (about.get("id"), about.get("made_with")) != (image, made_with):
        raise ValueError(
            f"{path} must hold features of {image!r} made as cache.json says, got those of "
            f"{about.get('id')!r}: another image or another encoder."
        )
    if features.dtype != torch.float16 or features.ndim != 3 or len(features) != dim:
        raise ValueError(
            f"{path} must hold float16 features ({dim}, h, w), got {features.dtype} "
            f"{tuple(features.shape)}."
        )
    return features
