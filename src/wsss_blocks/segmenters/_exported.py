"""From a segmenter to a graph of torch.export, and from a graph to how well it agrees."""

import copy
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from wsss_blocks import __version__
from wsss_blocks._evaluating import evaluating
from wsss_blocks._validate import check_choice, check_size
from wsss_blocks.segmenters._inference import resized
from wsss_blocks.segmenters.segmenter import Segmenter

__all__ = ["check_options", "compare", "deployable", "description", "traced"]

TOLERANCE = 1e-3  # of a score, in [0, 1]
SHARE = 1e-3  # of the pixels whose best two scores are further apart than errors of both
_SIDES = (64, 65, 97, 131, 160, 224, 319, 384, 512, 1001)


def check_options(segmenter: object, output: str, views: str, size: tuple[int, int] | None) -> None:
    """Raise unless a segmenter can be deployed with these options."""
    if not isinstance(segmenter, Segmenter):
        raise TypeError(f"segmenter must be a Segmenter, got {type(segmenter).__name__}.")
    check_choice("output", output, ("mask", "scores"))
    check_choice("views", views, ("protocol", "one"))
    check_size("size", size, optional=True)


def deployable(segmenter: Segmenter, views: str) -> Segmenter:
    """Return the segmenter on the CPU in float32, with the views that are wanted.

    Weights with channels last, as in training, would tie the graph to more than one image.
    """
    tensors = [*segmenter.parameters(), *segmenter.buffers()]
    kinds = (torch.float32, torch.int64)
    if not all(x.device.type == "cpu" and x.dtype in kinds and x.is_contiguous() for x in tensors):
        segmenter = copy.deepcopy(segmenter).cpu().float().to(memory_format=torch.contiguous_format)
    if views == "protocol":
        return segmenter
    return Segmenter(
        segmenter.network,
        names=segmenter.names,
        protocol=replace(segmenter.protocol, scales=(1.0,), flip=False),
        palette=segmenter.palette,
        size=segmenter.size,
    )


def traced(segmenter: Segmenter, output: str, size: tuple[int, int] | None) -> ExportedProgram:
    """Record what a :func:`deployable` segmenter does, for any batch and, without size, any size.

    What torch noted beside the operators, lines of source files and their folders, is left out.
    """
    height, width = (157, 237) if size is None else size  # of which nothing is a special case
    axes = {0: Dim.DYNAMIC} if size is not None else dict.fromkeys((0, 2, 3), Dim.DYNAMIC)
    example = torch.zeros(3, 3, height, width)
    try:
        with torch.no_grad(), evaluating(segmenter), _any_side():
            program = torch.export.export(
                _Answer(segmenter, output).eval(),
                (example,),
                dynamic_shapes=(axes,),
            )
        _check_guards(program, size)
    except Exception as error:  # whatever tracing somebody's network may raise
        first = str(error).strip().partition("\n")[0]
        if size is None:
            raise ValueError(
                "the network of segmenter cannot be exported for images of any size; "
                f"size=(height, width) fixes the size. {type(error).__name__}: {first}"
            ) from error
        raise ValueError(
            f"the network of segmenter cannot be exported at size={size}. "
            f"{type(error).__name__}: {first}"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    program.example_inputs = None  # would be saved, too
    return program


class _Answer(nn.Module):
    def __init__(self, segmenter: Segmenter, output: str) -> None:
        super().__init__()
        self.segmenter, self.output = segmenter, output

    def forward(self, images: Tensor) -> Tensor:
        logits = cast(Tensor, self.segmenter(images))
        return logits.softmax(1) if self.output == "scores" else logits.argmax(1).to(torch.uint8)


def _any_side() -> AbstractContextManager[None]:
    """Let a graph hold for sides of one cell, too, where torch can (2.8 and later)."""
    from torch.fx.experimental import _config

    if not hasattr(_config, "backed_size_oblivious"):
        return nullcontext()
    return cast(Any, _config).patch(backed_size_oblivious=True)  # type: ignore[no-any-return]


def _check_guards(program: ExportedProgram, size: tuple[int, int] | None) -> None:
    """Raise where the graph says that it does not hold: ONNX would not keep that condition."""
    guards = getattr(program.module(), "_guards_fn", None)
    if guards is None:
        return
    sizes = [(h, w) for h in _SIDES for w in _SIDES] if size is None else [size]
    for height, width in sizes:
        for batch in (1, 2, 3, 8):
            guards(torch.empty(1).expand(batch, 3, height, width))


def compare(
    run: Callable[[Tensor], Tensor], segmenter: Segmenter, output: str, size: tuple[int, int] | None
) -> tuple[float | None, float]:
    """Return the largest difference of scores, and the share of pixels that are of another class.

    Raises:
        ValueError: they are larger than rounding explains.
    """
    shapes = [(1, 61, 93), (2, 97, 131), (1, 64, 96)] if size is None else [(1, *size), (2, *size)]
    generator = torch.Generator().manual_seed(0)
    worst, others, clear_others, pixels = 0.0, 0, 0, 0
    for batch, height, width in shapes:
        coarse = torch.rand(batch, 3, height // 8 + 1, width // 8 + 1, generator=generator)
        grain = torch.rand(batch, 3, height, width, generator=generator)
        images = 0.8 * resized(coarse, (height, width)) + 0.2 * grain
        with torch.no_grad(), evaluating(segmenter):
            scores = segmenter(images).softmax(1)
            answer = run(images)
        wanted = scores.argmax(1)
        if output == "scores":
            worst = max(worst, float((answer - scores).abs().nan_to_num(torch.inf).max()))
            answer = answer.argmax(1)
        best = scores.topk(2, dim=1).values
        wrong = answer.long() != wanted
        others += int(wrong.sum())
        clear_others += int((wrong & (best[:, 0] - best[:, 1] > 2 * TOLERANCE)).sum())
        pixels += wanted.numel()
    if worst > TOLERANCE or clear_others > SHARE * pixels:
        scores_differ = f"scores differ by up to {worst:.2g}, " if output == "scores" else ""
        raise ValueError(
            f"the exported network does not do what segmenter does: {scores_differ}"
            f"{100 * others / pixels:.2g} % of the pixels are of another class."
        )
    return (worst if output == "scores" else None), others / pixels


def description(
    segmenter: Segmenter, output: str, views: str, size: tuple[int, int] | None
) -> dict[str, str]:
    """Return what a file should say about itself: each value is JSON."""
    about = {
        "names": ["background", *segmenter.names],
        "palette": segmenter.palette.tolist(),
        "protocol": segmenter.protocol.describe(),
        "views": views,
        "output": output,
        "size": size,
        "library": f"wsss-blocks {__version__}",
    }
    return {key: json.dumps(value) for key, value in about.items()}
