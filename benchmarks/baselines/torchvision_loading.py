"""Decode and augment a photograph with PIL and torchvision alone."""

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import PIL.Image
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision import io
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

__all__ = [
    "best",
    "decode_jpeg",
    "exact",
    "float_pixels",
    "pil_pixels",
    "published",
    "unrounded",
]


def published(steps: Sequence[v2.Transform]) -> Callable[[Path], Tensor]:
    """Transform the PIL image, then make a tensor of it: what most training scripts do."""
    transform = v2.Compose([*steps, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    return lambda path: transform(_opened(path))


def best(steps: Sequence[v2.Transform]) -> Callable[[Path], Tensor]:
    """Transform a tensor of bytes, make numbers in [0, 1] last: what torchvision advises."""
    transform = v2.Compose([v2.PILToTensor(), *steps, v2.ToDtype(torch.float32, scale=True)])
    return lambda path: transform(_opened(path))


def unrounded(steps: Sequence[v2.Transform]) -> Callable[[Path], Tensor]:
    """Transform numbers in [0, 1]: no step rounds to bytes."""
    transform = v2.Compose(steps)
    return lambda path: transform(float_pixels(path))


def exact(image: Tensor, generator: Generator, *, size: int, scale: tuple[float, float]) -> Tensor:
    """Augment as ToCo does, unrounded, with random numbers from a generator."""

    def draw(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), dtype=torch.float64, generator=generator).item()

    factor = draw(*scale)
    image = TF.resize(image, [round(side * factor) for side in image.shape[-2:]], antialias=True)
    if draw(0, 1) < 0.5:
        image = TF.horizontal_flip(image)
    padding: list[int] = []
    for side in image.shape[-2:]:
        spare = side - size
        first = int(torch.randint(min(0, spare), max(0, spare) + 1, (), generator=generator))
        padding = [-first, first - spare, *padding]
    image = F.pad(image, padding)
    if draw(0, 1) < 0.8:
        steps = [
            (TF.adjust_brightness, 0.6, 1.4),
            (TF.adjust_contrast, 0.6, 1.4),
            (TF.adjust_saturation, 0.8, 1.2),
            (TF.adjust_hue, -0.1, 0.1),
        ]
        for i in torch.randperm(4, generator=generator).tolist():
            adjust, low, high = steps[i]
            image = adjust(image, draw(low, high))
    if draw(0, 1) < 0.2:
        image = TF.rgb_to_grayscale(image, num_output_channels=3)
    draw(0, 1)  # for the probability of the blur, which is 1
    sigma = draw(0.1, 2.0)
    side = 2 * math.ceil(3 * sigma) + 1
    return TF.gaussian_blur(image, [side, side], [sigma, sigma])


def pil_pixels(path: Path) -> Tensor:
    """Decode to ``(3, H, W)`` bytes with PIL."""
    return TF.pil_to_tensor(_opened(path))


def decode_jpeg(path: Path) -> Tensor:
    """Decode to ``(3, H, W)`` bytes with torchvision's own reader, of JPEG alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it leaves torchvision for TorchCodec
        return io.decode_jpeg(io.read_file(str(path)), mode=io.ImageReadMode.RGB)


def float_pixels(path: Path) -> Tensor:
    """Decode to ``(3, H, W)`` numbers in [0, 1] with PIL."""
    return TF.to_dtype(pil_pixels(path), torch.float32, scale=True)


def _opened(path: Path) -> PIL.Image.Image:
    with PIL.Image.open(path) as file:
        return file.convert("RGB")
