"""Dense CRF on the lattice against pydensecrf, on scikit-learn's two photographs.

Run ``python -m benchmarks.bench_dense_crf [--quick] [--output DIR]``. Differences are means of
absolute differences of probabilities; ``benchmarks.crf_agreement`` counts labels on more images.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from torch import Tensor

from benchmarks._harness import Candidate, Options, compare, run
from benchmarks.baselines.dense_crf import pydensecrf
from wsss_blocks.refine import dense_crf
from wsss_blocks.refine._crf_inference import _position_lattice

PEER = "pydensecrf"
MCTFORMER: dict[str, Any] = {"gaussian": (3.0, 3.0), "bilateral": (80.0, 13.0, 10.0)}


def cases(options: Options) -> Iterator[dict[str, Any]]:
    if "cpu" not in options.devices:
        return
    for photo in ("china", "flower"):
        yield one_image(options, photo, 3)
        yield pair(options, photo)
    yield first_of_its_size(options)
    yield one_image(options, "china", 3, "MCTformer's constants", **MCTFORMER)
    yield one_image(options, "china", 21)


def one_image(
    options: Options, photo: str, classes: int, what: str = "DHR's constants", **constants: Any
) -> dict[str, Any]:
    image, probs = problem(options, photo, classes)
    return against(
        options,
        f"one image, {what}, C{classes}, {photo} {size(image)}",
        lambda: dense_crf(image, probs, **constants),
        peer(image, probs, **constants),
        bar=0.7 if classes == 3 else None,
    )


def pair(options: Options, photo: str) -> dict[str, Any]:
    """High and low background over one image: the peer runs twice, ours shares the lattice."""
    image, probs = problem(options, photo, 3)
    sets = torch.stack([probs, probs.flip(1)], 1)
    images, maps = image.expand(2, -1, -1, -1), sets[0]
    return against(
        options,
        f"high/low pair, C3, {photo} {size(image)}",
        lambda: dense_crf(image, sets)[0],
        peer(images, maps),
        bar=1.0,
    )


def first_of_its_size(options: Options) -> dict[str, Any]:
    """The lattice of the positions is made too, which other images of that size use again."""
    image, probs = problem(options, "china", 3)

    def ours() -> Tensor:
        _position_lattice.cache_clear()
        return dense_crf(image, probs)

    name = f"first image of a size, C3, china {size(image)}"
    return against(options, name, ours, peer(image, probs), bar=None)


def against(
    options: Options, case: str, ours: Candidate, theirs: Candidate | None, *, bar: float | None
) -> dict[str, Any]:
    return compare(
        case,
        {PEER: theirs, "ours": ours},
        reference="ours",
        options=options,
        bars={} if bar is None else {PEER: bar},
        difference=lambda a, b: float((a - b).abs().mean()),
        tolerance=1e-4,
    )


def peer(images: Tensor, probs: Tensor, **constants: Any) -> Candidate | None:
    call = pydensecrf()
    return None if call is None else lambda: call(images, probs, **constants)


def problem(options: Options, photo: str, classes: int) -> tuple[Tensor, Tensor]:
    height, width = (60, 80) if options.quick else (375, 500)
    pixels = torch.from_numpy(load_sample_image(f"{photo}.jpg").copy())
    image = pixels[:height, :width].permute(2, 0, 1)[None].float() / 255
    g = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(1, classes, 12, 16, generator=g)
    return image, F.interpolate(scores, size=(height, width), mode="bilinear").softmax(1)


def size(image: Tensor) -> str:
    return f"{image.shape[2]}x{image.shape[3]}"


if __name__ == "__main__":
    run("bench_dense_crf", cases)
