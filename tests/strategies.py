"""Hypothesis strategies for the library's tensors; sizes include 1."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

seeds = st.integers(0, 2**16)
small = st.integers(1, 3)
sides = st.integers(1, 9)


@st.composite
def sizes(draw: st.DrawFn, limit: int = 9) -> tuple[int, int]:
    """Draw a grid size (h, w)."""
    return draw(st.integers(1, limit)), draw(st.integers(1, limit))


def generator(seed: int) -> torch.Generator:
    """Return a CPU generator with this seed."""
    return torch.Generator().manual_seed(seed)


def random_labels(batch: int, classes: int, g: torch.Generator) -> Tensor:
    """Multi-hot labels; rows without any class occur."""
    return (torch.rand(batch, classes, generator=g) < 0.5).float()


def random_mask(
    shape: tuple[int, ...], num_classes: int, g: torch.Generator, ignore_index: int = 255
) -> Tensor:
    """Class ids 0..num_classes-1 with about a tenth of the pixels ignored."""
    mask = torch.randint(0, num_classes, shape, generator=g)
    mask[torch.rand(shape, generator=g) < 0.1] = ignore_index
    return mask


@dataclass
class CamProblem:
    """A random CAM with labels, in float64 for oracles."""

    cam: Tensor  # (B, K, h, w)
    labels: Tensor  # (B, K)


@st.composite
def cam_problems(draw: st.DrawFn, limit: int = 7) -> CamProblem:
    """Draw CAMs of 1..3 images and 1..4 classes, constant maps and empty label rows included."""
    g = generator(draw(seeds))
    batch, classes = draw(small), draw(st.integers(1, 4))
    h, w = draw(sizes(limit))
    cam = torch.randn(batch, classes, h, w, generator=g, dtype=torch.float64)
    if draw(st.booleans()):
        cam[0, 0] = draw(st.sampled_from([0.0, -1.0, 2.5]))
    return CamProblem(cam, random_labels(batch, classes, g).double())
